"""Video files <-> uint8 frames, with PyAV. Knows timestamps and colour, nothing of episodes or robots.

Frame `i` of a file is the frame whose presentation time is `i / fps` after the first one: decoding seeks to
the keyframe before it and goes forward by timestamp, so B-frames, long GOPs and concatenated files come out
right.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from worldline.files import atomic
from worldline.schema import DataError, UsageError

_BT601 = 6  # ffmpeg's AVCOL_SPC_SMPTE170M: what readers that ignore the tag assume at these sizes
_LIMITED = 1
# Without accurate rounding swscale darkens pixels by about one level: 44 instead of 53 dB on a smooth image.
_TO_YUV = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP | Interpolation.FULL_CHR_H_INT
)
_TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What the container says of its first video stream."""

    num_frames: int
    """Frames, counted from the packets where the container does not say."""
    height: int
    width: int
    fps: float
    codec: str


def probe(path: Path) -> VideoInfo:
    """Read size, rate, codec and number of frames without decoding.

    Raises `DataError` for what is no video.
    """
    with _opened(path) as (container, stream):
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.pts is not None)
        return VideoInfo(
            num_frames=count,
            height=stream.codec_context.height,
            width=stream.codec_context.width,
            fps=float(stream.average_rate or 0),
            codec=stream.codec_context.name,
        )


def decode(
    path: Path, start: int, stop: int, *, fps: float | None = None, threads: int = 1
) -> UInt8[Tensor, "t 3 h w"]:
    """Decode frames `start .. stop-1`, RGB. Raises `DataError` where one is missing or damaged.

    `fps` is the rate by which frames are counted; the container's average rate where it is not given.
    """
    return torch.cat(list(stream_frames(path, start, stop, fps=fps, threads=threads)))


def stream_frames(
    path: Path, start: int, stop: int, *, fps: float | None = None, chunk: int = 64, threads: int = 1
) -> Iterator[UInt8[Tensor, "t 3 h w"]]:
    """Decode frames `start .. stop-1` in chunks of at most `chunk`, so that memory stays bounded."""
    pending: list[np.ndarray] = []
    wanted = start
    converter = VideoReformatter()
    try:
        with _opened(path) as (container, stream):
            stream.codec_context.thread_count = threads
            for index, frame in _from_keyframe(container, stream, start, fps):
                if index < wanted:
                    continue
                if index > wanted or frame.is_corrupt:
                    break
                pending.append(_pixels(frame, converter))
                wanted += 1
                if len(pending) == chunk or wanted == stop:
                    yield torch.from_numpy(np.stack(pending))
                    pending = []
                if wanted == stop:
                    return
    except FFmpegError as error:
        raise _damaged(path, start, stop, f"{error} at frame {wanted}") from error
    raise _damaged(path, start, stop, f"no intact frame {wanted}")


def encode(
    path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], *, fps: float, crf: int = 18, gop: int = 16
) -> None:
    """Write H.264 in an mp4, atomically; the same frames give the same bytes. They may come one by one.

    No B-frames over a short GOP: random windows then decode after at most `gop - 1` extra frames. yuv420p, BT.601
    limited range and tagged so; sizes must be even. One thread, and no macroblock tree: x264's (core 165) reads
    memory it has not written, which changed the bytes of about 1 small clip in 20.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise UsageError(f"{path}: there are no frames to encode; a video needs at least one")
    height, width, _ = first.shape
    if height % 2 or width % 2:
        raise UsageError(f"{path}: cannot encode frames of {height}x{width}; H.264 needs an even size")
    rate = Fraction(fps).limit_denominator(100_000)
    options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
    with atomic(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.gop_size, context.max_b_frames, context.thread_count = gop, 0, 1
        context.colorspace, context.color_range = _BT601, _LIMITED
        converter = VideoReformatter()
        for i, rgb in enumerate(chain([first], frames)):
            frame = converter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                interpolation=_TO_YUV,
                threads=1,
            )
            frame.pts = i
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def resize(frames: UInt8[Tensor, "t 3 h w"], size: int) -> UInt8[Tensor, "t 3 size size"]:
    """Crop the central square and scale it to `size`, antialiased bicubic.

    Returns the input where it fits already.
    """
    height, width = frames.shape[-2:]
    if height == width == size:
        return frames
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[..., top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    return functional.interpolate(square, size=(size, size), mode="bicubic", antialias=True)


def _pixels(frame: av.VideoFrame, converter: VideoReformatter) -> UInt8[np.ndarray, "3 h w"]:
    """Convert to planar RGB; planes of "gbrp" come as green, blue, red, with padded rows."""
    planes = converter.reformat(frame, format="gbrp", interpolation=_TO_RGB, threads=1).planes
    rows = [
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : frame.width] for plane in planes
    ]
    return np.stack([rows[2], rows[0], rows[1]])


class _opened:  # noqa: N801 - reads as a verb phrase: `with _opened(path) as (container, stream)`
    """Open a video's container and first video stream; what is no video raises `DataError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> tuple[InputContainer, av.VideoStream]:
        try:
            self.container = av.open(str(self.path))
        except FileNotFoundError:
            raise DataError(self.path, expected="a video", found="no file", fix="Restore it.") from None
        except FFmpegError as error:
            raise DataError(
                self.path, expected="a video", found=str(error), fix="Download or encode it again."
            ) from error
        if not self.container.streams.video:
            self.container.close()
            raise DataError(self.path, expected="a video stream", found="none", fix="Download it again.")
        return self.container, self.container.streams.video[0]

    def __exit__(self, *_: object) -> None:
        self.container.close()


def _from_keyframe(
    container: InputContainer, stream: av.VideoStream, start: int, fps: float | None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decoded frames with their indices, beginning at or before `start`."""
    rate = stream.average_rate if fps is None else Fraction(fps).limit_denominator(100_000)
    if rate is None or stream.time_base is None:
        raise DataError(container.name, expected="a frame rate", found="none", fix="Encode the video again.")
    first, per_tick = stream.start_time or 0, stream.time_base * rate

    def numbered() -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in container.decode(stream):
            if frame.pts is not None:
                yield round((frame.pts - first) * per_tick), frame

    # Half a frame later than wanted, so that rounding never lands on the keyframe before the right one.
    container.seek(first + int((start + Fraction(1, 2)) / per_tick), stream=stream, backward=True)
    frames = numbered()
    index, frame = next(frames, (-1, None))
    if frame is None or index > start:
        # Some files index keyframes wrongly: then go through the file from its beginning.
        container.seek(first, stream=stream, backward=True)
        yield from numbered()
        return
    yield index, frame
    yield from frames


def _damaged(path: Path, start: int, stop: int, found: str) -> DataError:
    return DataError(
        path,
        expected=f"frames {start}..{stop - 1} to decode",
        found=found,
        fix="The file is cut short or damaged: download or encode it again.",
    )
