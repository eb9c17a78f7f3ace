"""Video files <-> uint8 frames, with PyAV: timestamps and colour.

Frames are numbered in the order in which they are shown; `frame_times` says when. Decoding seeks to the keyframe before
the first wanted frame and goes forward by timestamp, so B-frames, long GOPs, variable rates and concatenated files come
out right. Which frame belongs to a row of a table is decided by time (`pair`), never by a nominal rate.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from io import BytesIO
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from worldline.files import atomic, unreadable, while_unchanged
from worldline.schema import DataError, UsageError

RATE_SLACK = 0.03  # clocks of recorders differ and jitter by less; no two usual rates are that near but 29.97 and 30
CLOCK_SLACK = 0.005  # rows and frames that are one to one may differ by this in rate (29.97 and 30)
_HALF = 0.52  # half a frame, and a little: times are rounded to float32 and to a container's time base
_AGAIN = "Download or encode it again."
_BT601, _LIMITED = 6, 1  # ffmpeg's AVCOL_SPC_SMPTE170M: what readers that ignore the tag assume at these sizes
# Without accurate rounding swscale darkens pixels by about one level: 44 instead of 53 dB on a smooth image.
_TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND
_TO_YUV = Interpolation.BICUBIC | Interpolation.ACCURATE_RND
_TO_YUV |= Interpolation.FULL_CHR_H_INP | Interpolation.FULL_CHR_H_INT


class VideoInfo(NamedTuple):
    """Header of a video: frames (counted from the packets where it does not say), height and width, rate."""

    num_frames: int
    size: tuple[int, int]
    fps: float

    def holds(self, num_frames: int, fps: float) -> bool:
        """Whether it is conclusive: so many frames, at this rate."""
        return self.num_frames == num_frames and abs(self.fps - fps) <= 0.005 * fps


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameTimes:
    """When the frames of a file are shown, in ticks of `tick` seconds: read from all packets, none decoded."""

    ticks: Int64[np.ndarray, "n"]
    """Rising; frame i is shown at `ticks[i]`."""
    keys: Int64[np.ndarray, "k 2"]
    """When each keyframe is shown, rising, and when it is decoded: some containers seek by that."""
    tick: Fraction

    @property
    def seconds(self) -> Float64[np.ndarray, "n"]:
        return self.ticks * float(self.tick)

    def seeks_for(self, tick: int) -> tuple[int, ...]:
        """Where to seek so that decoding begins at or before a frame: the nearest first, the file's beginning last."""
        shown, decoded = self.keys.T
        before = int(np.searchsorted(shown, tick, side="right"))
        near = self.keys[before - 1].tolist() if before else ()
        return (*near, int(min(decoded.min(initial=0), self.ticks[0])))


@while_unchanged(4096)
def probe(path: Path) -> VideoInfo:
    """Read size, rate and number of frames from the header. Raises `DataError` for what is no video."""
    with _opened(path) as (_, stream):
        size = stream.codec_context.height, stream.codec_context.width
        num_frames, fps = stream.frames, float(stream.average_rate or 0)
    return VideoInfo(num_frames or len(frame_times(path).ticks), size, fps)


@while_unchanged(4096)
def frame_times(path: Path) -> FrameTimes:
    """When every frame of a file is shown. Raises `DataError` for what is no video, or holds no frame."""
    shown: list[int] = []
    keys: dict[int, int] = {}
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.pts is not None and packet.size and not packet.is_discard:
                shown.append(packet.pts)
                if packet.is_keyframe:
                    keys[packet.pts] = packet.pts if packet.dts is None else packet.dts
        tick = stream.time_base
    if not shown or tick is None:
        raise DataError(path, expected="a video", found="no frame in it", fix=_AGAIN)
    pairs = np.array(sorted(keys.items()), np.int64).reshape(-1, 2)
    return FrameTimes(ticks=np.unique(np.array(shown, np.int64)), keys=pairs, tick=tick)


def stream_frames(
    path: Path, frames: range | Int64[np.ndarray, "t"], *, chunk: int = 64, threads: int = 1
) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
    """Decode frames of rising numbers, RGB, at most `chunk` at a time. Raises `DataError` where one is damaged."""
    times = frame_times(path)
    numbers: list[int] = np.asarray(frames).tolist()
    expected, fix = f"frames {numbers[0]}..{numbers[-1]} to decode", f"The file is cut short or damaged. {_AGAIN}"
    damaged = partial(DataError, path, expected=expected, fix=fix, kind="frames")
    if numbers[-1] >= len(times.ticks):
        raise damaged(found=f"no frame {max(numbers[0], len(times.ticks))}")
    pending: list[np.ndarray] = []
    shape, converter = None, VideoReformatter()
    with _opened(path, expected=expected) as (container, stream):
        stream.codec_context.thread_count = threads
        decoded, begin = iter(()), int(times.ticks[numbers[0]])
        for place in times.seeks_for(begin):
            container.seek(place, stream=stream, backward=True)
            frames_on = container.decode(stream)
            first = next((frame for frame in frames_on if frame.pts is not None), None)
            if first is not None and first.pts is not None and first.pts <= begin:
                decoded = chain([first], frames_on)
                break
        for number, tick in zip(numbers, times.ticks[numbers].tolist(), strict=True):
            frame = next((frame for frame in decoded if frame.pts is not None and frame.pts >= tick), None)
            if frame is None or frame.pts != tick or frame.is_corrupt:
                raise damaged(found=f"no intact frame {number}")
            pending.append(_pixels(frame, converter))
            shape = shape or pending[-1].shape
            if pending[-1].shape != shape:
                raise damaged(found=f"another picture size from frame {number} on")
            if len(pending) == chunk or number == numbers[-1]:
                yield torch.from_numpy(np.stack(pending))
                pending = []


def decode_image(data: bytes, path: Path, where: str) -> UInt8[Tensor, "3 h w"]:
    """Decode a PNG, JPEG or other image that lies `where` in a file. Raises `DataError` where it is damaged."""
    with _opened(path, data, expected=f"{where} to decode") as (container, stream):
        for frame in container.decode(stream):
            return torch.from_numpy(_pixels(frame, VideoReformatter()))
    raise DataError(path, expected="an image", found=f"none that decodes in {where}")


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
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def resize(frames: UInt8[Tensor, "t 3 h w"], size: int) -> UInt8[Tensor, "t 3 size size"]:
    """Crop the central square and scale it to `size`, antialiased bicubic. Returns the input where it fits already."""
    height, width = frames.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[..., top : top + side, left : left + side]
    if side == size:
        return frames if height == width else square.contiguous()
    return functional.interpolate(square, size=(size, size), mode="bicubic", antialias=True)


def _pixels(frame: av.VideoFrame, converter: VideoReformatter) -> UInt8[np.ndarray, "3 h w"]:
    """Convert to planar RGB; planes of "gbrp" come as green, blue, red, with padded rows."""
    planes = converter.reformat(frame, format="gbrp", interpolation=_TO_RGB, threads=1).planes
    rows = [np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in planes]
    return np.stack([rows[plane][:, : frame.width] for plane in (2, 0, 1)])


@contextmanager
def _opened(
    path: Path, data: bytes | None = None, *, expected: str = "a video"
) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Open a container, or an image's bytes, and its first video stream. The one place that maps PyAV's errors."""
    try:
        # Names and comments in a container may be of any encoding; none is used.
        with av.open(str(path) if data is None else BytesIO(data), "r", metadata_errors="ignore") as container:
            stream = container.streams.best("video")  # not a cover picture
            if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
                found = "none" if stream is None else "one of a codec that this build of FFmpeg does not know"
                raise DataError(path, expected="a video stream", found=found, fix=_AGAIN)
            yield container, stream
    except (FFmpegError, OSError, ValueError, OverflowError, MemoryError) as error:
        found = str(getattr(error, "strerror", None) or error)
        raise unreadable(path, expected=expected, found=found, fix=_AGAIN) from error


def rate(times: Float64[np.ndarray, "n"]) -> float:
    """Steps per second, from the median step; 0 where there is none."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return 1 / step if step > 0 else 0.0


def runs_at(times: Float64[np.ndarray, "n"], fps: float, *, slack: float = RATE_SLACK) -> bool:
    """Tell whether times run at a rate, up to jitter, a gap and the clocks of recorders."""
    if len(times) < 2 or abs(rate(times) - fps) <= slack * fps:
        return True
    steps = len(times) - 1
    return bool(abs((times[-1] - times[0]) * fps - steps) <= max(1.0, slack * steps))


def pair(
    rows: Float64[np.ndarray, "n"],
    shown: Float64[np.ndarray, "m"],
    *,
    starts: tuple[float, ...],
    first: int | None,
    fps: float,
) -> Int64[np.ndarray, "n"] | str:
    """Give the frame of every row, the nearest in time, or say of which row it is more than half a frame away.

    Args:
        rows: seconds since the episode began (or its first row), and `shown`: those at which frames are shown.
        starts: where in the file the episode may begin, the likeliest first.
        first: the frame at which the episode begins, where as many frames as rows are known to be its own.
        fps: the rate where there is no step to measure it by.
    """
    half = _HALF / (max(rate(rows), rate(shown)) or fps)
    if first is not None and first + len(rows) <= len(shown):
        own = shown[first : first + len(rows)]
        faster = (rows[-1] - rows[0]) / (own[-1] - own[0]) if len(rows) > 1 else 1.0  # the rows' clock
        faster = faster if abs(faster - 1) <= CLOCK_SLACK else 1.0
        if np.abs((own - own[0]) * faster - (rows - rows[0])).max() <= half:
            return first + np.arange(len(rows))
    mismatches: list[tuple[int, str]] = []
    for start, begun in product(starts, dict.fromkeys((0.0, float(rows[0])))):
        wanted = rows - begun + start
        frames = np.searchsorted((shown[1:] + shown[:-1]) / 2, wanted)
        # The nearest frame is further away than half a frame, or is nearest to two rows.
        wrong = np.flatnonzero((np.abs(shown[frames] - wanted) > half) | (np.diff(frames, prepend=-1) <= 0))
        if len(wrong) == 0:
            return frames
        row = int(wrong[0])
        at, nearest = wanted[row] - wanted[0], shown[frames[row]] - wanted[0]
        mismatches.append((row, f"row {row} at {at:.3f} s, the nearest frame at {nearest:.3f} s"))
    return max(mismatches)[1]
