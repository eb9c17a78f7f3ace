"""Windows of a data set encoded to continuous latents once, on disk: the format, its writing and a `Source` over it.

    encode.json            what the latents depend on, and how they lie (the claim on the folder)
    latents_{e}.npy        float16 `n l c gh gw`: window i of episode e starts at frame i * stride
    states_{e}.npy         float32 `f s`: all states of episode e, raw units
    metadata.json          written last: a folder without it is unfinished

A causal VAE encodes the first frame of a window alone, so latents belong to a window and cannot be cut from a longer
run: a window is read back exactly where it was encoded. Knows no VAE.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import Field

from worldline.contract import FramePattern, Reading
from worldline.files import mapped_npy, npy_rows, read_json, write_json
from worldline.formats.checks import Report, check_window, validated
from worldline.formats.source import Source
from worldline.schema import Clip, DataError, Episode, LatentGrid, StateKind, StateLayout, UsageError

CLAIM, METADATA = "encode.json", "metadata.json"
_AGAIN = "Encode the data again."


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentSource(Source):
    """Encoded windows of a data set, which is read by whole windows."""

    @property
    def alike(self) -> dict[str, object]:
        return super().alike | {"reading": self.reading}

    def read(self, episode: int, start: int, stop: int) -> Clip:
        """Latents of the window `start .. stop-1`, and its states.

        Raises:
            UsageError: a window of another length, or one that was not encoded.
            DataError: its file is missing or damaged.
        """
        check_window(self.episodes[episode], start, stop)
        grid, pattern = self.latent_grid, self.pattern
        assert grid is not None, "opened as latents"
        assert pattern is not None, "opened as latents"
        if stop - start != pattern.window or start % self.stride:
            raise UsageError(
                f"{self.path} holds windows of {pattern.window} frames at multiples of {self.stride}, "
                f"not of {stop - start} at {start}; encode the data again for those"
            )
        count = 1 + (self.episodes[episode].length - pattern.window) // self.stride
        shape = (count, grid.latents_of(len(pattern.frames)), grid.channels, grid.height, grid.width)
        latents = torch.from_numpy(np.array(self._table(episode, "latents", shape)[start // self.stride], np.float32))
        states = torch.from_numpy(self.read_states(episode, start, stop))
        fps = self.fps / pattern.stride
        return Clip(states=states, fps=fps, origin=self.origin(episode, start), latents=latents)

    def footage(self, episode: int) -> tuple[Path, int]:
        """The file of an episode's latents, which begins with its first frame."""
        return self._file(episode, "latents"), 0

    def check_footage(self, episodes: Sequence[int], report: Report) -> None:
        raise UsageError(f"{self.path} holds latents; give the LeRobot or 1X data set they were made from")

    def read_states(self, episode: int, start: int, stop: int) -> Float32[np.ndarray, "t s"]:
        """States alone, a copy."""
        check_window(self.episodes[episode], start, stop)
        table = self._table(episode, "states", (self.episodes[episode].length, self.layout.dim))
        return np.array(table[start:stop], np.float32)

    def _file(self, episode: int, what: str) -> Path:
        folder, number = self.places[episode]
        return folder / f"{what}_{number}.npy"

    def _table(self, episode: int, what: str, shape: tuple[int, ...]) -> np.ndarray:
        return mapped_npy(self._file(episode, what), np.floating, shape, what="numbers", fix=_AGAIN)


def looks_like_latents(path: Path) -> bool:
    """Whether a folder was begun by `worldline data encode`."""
    return (path / CLAIM).is_file()


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """The used part of encode.json."""

    episodes: list[Any]
    pattern: FramePattern
    window_stride: Annotated[int, Field(ge=1)]
    tokenizer: str


@dataclass(frozen=True, kw_only=True)
class _Metadata:
    """metadata.json."""

    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    state_names: tuple[str, ...]
    state_kinds: tuple[StateKind, ...]
    lengths: tuple[Annotated[int, Field(ge=0, le=10**9)], ...]
    names: tuple[str, ...]
    left_out: tuple[str, ...]
    latent_grid: LatentGrid
    contract: Reading
    recordings: tuple[str, ...] | None = None


def open_latents(path: Path) -> LatentSource:
    """Open a folder of latents. Raises `DataError` where it is unfinished or damaged."""
    key = validated(path / CLAIM, _Claim, read_json(path / CLAIM))
    if not (path / METADATA).exists():
        done = len(list(path.glob("latents_*.npy")))
        raise DataError(
            path,
            expected=f"latents of {len(key.episodes)} episodes and {METADATA}",
            found=f"{done} episodes, encoding unfinished",
            fix="Run the same `worldline data encode` again; it continues.",
            kind="unfinished",
        )
    metadata = validated(path / METADATA, _Metadata, read_json(path / METADATA))
    lengths, names = metadata.lengths, metadata.names
    recordings = metadata.recordings or (None,) * len(names)
    try:
        metadata.latent_grid.latents_of(len(key.pattern.frames))
        listed = list(zip(lengths, names, recordings, strict=True))
        list(zip(metadata.state_names, metadata.state_kinds, strict=True))
    except (UsageError, ZeroDivisionError, ValueError) as error:
        expected = "as many names as lengths, as many kinds as states, and a grid of the pattern's frames"
        raise DataError(path / METADATA, expected=expected, found=str(error), fix=_AGAIN, kind="metadata") from None
    return LatentSource(
        kind="latents",
        path=path,
        fps=metadata.fps,
        layout=StateLayout(names=metadata.state_names, kinds=metadata.state_kinds),
        episodes=tuple(
            Episode(index=i, length=length, name=name, recording=recording)
            for i, (length, name, recording) in enumerate(listed)
        ),
        places=tuple((path, i) for i in range(len(listed))),
        left_out=metadata.left_out,
        latent_grid=metadata.latent_grid,
        pattern=key.pattern,
        stride=key.window_stride,
        tokenizer=key.tokenizer,
        reading=metadata.contract,
    )


def episode_done(out: Path, episode: int) -> bool:
    """Whether an episode's latents are written. They are written last."""
    return (out / f"latents_{episode}.npy").exists()


@contextmanager
def written_episode(
    out: Path, episode: int, *, states: Float32[np.ndarray, "f s"], shape: tuple[int, ...]
) -> Iterator[Callable[[Float32[np.ndarray, "n l c gh gw"]], object]]:
    """Write one episode whose latents, `shape` of them, come in pieces; it is done when the block succeeds."""
    with npy_rows(out / f"states_{episode}.npy", "float32", states.shape) as append:
        append(states)
    with npy_rows(out / f"latents_{episode}.npy", "float16", shape) as append:
        yield append


def finish(out: Path, source: Source, episodes: Sequence[int], grid: LatentGrid, provenance: dict[str, Any]) -> None:
    """Write the metadata that make the folder readable, once every episode is there.

    Args:
        provenance: what is noted of the source (`worldline.encoding.convert.fill`).
    """
    content = {
        "fps": source.fps,
        "state_names": list(source.layout.names),
        "state_kinds": list(source.layout.kinds),
        "lengths": [source.episodes[i].length for i in episodes],
        "names": [source.episodes[i].name for i in episodes],
        "recordings": provenance["recordings"],
        "left_out": provenance["left_out"],
        "latent_grid": asdict(grid),
        "contract": provenance["reading"],
    }
    write_json(out / METADATA, content)
