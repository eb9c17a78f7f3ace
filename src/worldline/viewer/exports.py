"""A branch as a file to download: a video, or a LeRobot data set of one episode, in a zip."""

import secrets
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from worldline.data.splits import recording_of
from worldline.forecasting.recorded import Imagined, write_session
from worldline.formats.lerobot.write import Version, camera_of
from worldline.formats.video import encode
from worldline.schema import UsageError
from worldline.viewer.branches import Branch, Moment
from worldline.viewer.pictures import decoded
from worldline.viewer.protocol import ExportFormat
from worldline.viewer.recording import Recording
from worldline.viewer.stage import Stage

_LOOKED_AT = 256
"""Smaller frames are enlarged to about this size in videos, which are to be looked at."""
_MOST_OF_A_GIF = 900
"""Frames; they are all in memory at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Copied:
    """A branch as it was when its export was asked for."""

    name: str
    label: str
    recording: str
    """Which one its context is of (`splits.recording_of`)."""
    start: int
    """Its frame at which the times of the moments begin."""
    moments: tuple[Moment, ...]
    states: Float32[np.ndarray, "f s"]
    """Of every moment."""

    @classmethod
    def of(cls, branch: Branch, clip: Recording) -> "Copied":
        rows = np.stack([branch.rows[moment.time] for moment in branch.moments])
        of = recording_of(clip.clips.source, clip.episode)
        moments = tuple(branch.moments)
        return cls(name=branch.name, label=clip.label, recording=of, start=clip.start, moments=moments, states=rows)

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """One by one."""
        for moment in self.moments:
            yield decoded(moment.picture)


@dataclass(frozen=True, kw_only=True)
class Exports:
    """The files of one session, in a folder of its own that ends with it."""

    folder: Path
    most: int

    def write(self, copied: Copied, form: ExportFormat, stage: Stage) -> tuple[str, Path]:
        """Write a branch; the oldest file goes where there are too many. Gives a secret token, and the file.

        Raises what writing raises, such as a full disk.
        """
        token = secrets.token_urlsafe(18)
        there = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for old in there[: max(0, len(there) + 1 - self.most)]:
            shutil.rmtree(old, ignore_errors=True)
        stem = f"{stage.world} {copied.name}".replace(" ", "_").replace("/", "_")
        into = self.folder / token
        into.mkdir()
        try:
            if form == "mp4":
                path = into / f"{stem}.mp4"
                encode(path, enlarged(copied), fps=stage.rate)
            elif form == "gif":
                if len(copied.moments) > _MOST_OF_A_GIF:
                    count = len(copied.moments)
                    raise UsageError(f"a GIF has at most {_MOST_OF_A_GIF} frames here, not {count}; choose mp4")
                path = into / f"{stem}.gif"
                write_gif(path, [*enlarged(copied)], fps=stage.rate)
            else:
                path = into / f"{stem}_{form}.zip"
                write_lerobot(path, copied, stage, version="v3.0" if form == "lerobot-v3.0" else "v2.1")
        except BaseException:
            shutil.rmtree(into, ignore_errors=True)
            raise
        return token, path


def enlarged(copied: Copied) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Frames that are large enough to look at, every pixel a square."""
    for frame in copied.frames():
        times = max(1, _LOOKED_AT // max(frame.shape[:2]))
        yield frame.repeat(times, axis=0).repeat(times, axis=1)


def write_gif(path: Path, frames: Sequence[UInt8[np.ndarray, "h w 3"]], *, fps: float) -> None:
    """An animation without end. Its clock has hundredths of a second; browsers play at most 50 frames a second."""
    pictures = [Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in frames]
    ends = [round(100 * (i + 1) / min(fps, 50.0)) for i in range(len(frames))]
    durations = [10 * (end - begin) for begin, end in zip([0, *ends], ends, strict=False)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False)


def write_lerobot(path: Path, copied: Copied, stage: Stage, *, version: Version) -> None:
    """A data set of one episode, in a zip. Which frames are real, and where they come from, is in it."""
    video = torch.from_numpy(np.stack([*copied.frames()])).permute(0, 3, 1, 2)
    context = sum(moment.real for moment in copied.moments)
    known = [0.0 if moment.real else float(moment.maps["spread"].mean()) if "spread" in moment.maps else -1.0
             for moment in copied.moments]  # fmt: skip
    imagined = Imagined(
        frames=video[None, None],
        states=torch.from_numpy(copied.states)[None],
        times=tuple(moment.time for moment in copied.moments),
        context=context,
        uncertainty=torch.tensor([known]),
    )
    root = path.with_suffix("")
    how = {"fps": stage.fps, "layout": stage.layout, "camera": camera_of(stage.clips.source)}
    name = f"{stage.world}, {copied.label}, {copied.name}"
    whose = {"name": name, "recordings": (copied.recording,), "starts": (copied.start,)}
    write_session(root, imagined, version=version, seed=stage.options.seed, **whose, **how)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # video is packed already
        for file in sorted(root.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                archive.write(file, Path(root.name) / file.relative_to(root))
    shutil.rmtree(root)
