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
from jaxtyping import Float, Float32
from pydantic import Field
from torch import Tensor

from worldline.contract import FramePattern, Reading
from worldline.files import mapped_npy, npy_rows, read_json, write_json
from worldline.formats.source import Report, Source, validated
from worldline.schema import DataError, Episode, LatentGrid, StateKind, StateLayout, UsageError

CLAIM, METADATA = "encode.json", "metadata.json"
_AGAIN = "Encode the data again."


@dataclass(frozen=True, kw_only=True)
class _Encoded(Episode):
    """An episode, and the file of its latents; that of its states lies beside it."""

    latents: Path


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentSource(Source):
    """Encoded windows of a data set, which is read by whole windows."""

    episodes: tuple[_Encoded, ...]

    @property
    def alike(self) -> dict[str, object]:
        return super().alike | {"reading": self.reading}

    def shows(self, episode: int, start: int, stop: int) -> dict[str, Tensor]:
        """The latents of a window. Raises `UsageError` for one of another length, or one that was not encoded."""
        assert self.pattern is not None, "opened as latents"
        if stop - start != self.pattern.window or start % self.stride:
            raise UsageError(
                f"{self.path} holds windows of {self.pattern.window} frames at multiples of {self.stride}, "
                f"not of {stop - start} at {start}; encode the data again for those"
            )
        return {"latents": torch.from_numpy(np.array(self._windows(episode)[start // self.stride], np.float32))}

    def _windows(self, episode: int) -> Float[np.ndarray, "n l c gh gw"]:
        of, pattern, grid = self.episodes[episode], self.pattern, self.latent_grid
        assert pattern is not None, "opened as latents"
        assert grid is not None, "opened as latents"
        number = max(0, 1 + (of.length - pattern.window) // self.stride)
        shape = (number, grid.latents_of(len(pattern.frames)), grid.channels, grid.height, grid.width)
        return mapped_npy(of.latents, np.floating, shape, what="numbers", fix=_AGAIN)

    def check_footage(self, episodes: Sequence[int], report: Report) -> None:
        self._windows(episodes[0])

    def footage(self, episode: int) -> tuple[Path, int]:
        return self.episodes[episode].latents, 0

    def states_of(self, episode: int) -> tuple[Path, Float[np.ndarray, "n s"]]:
        of = self.episodes[episode]
        path = of.latents.with_name(of.latents.name.replace("latents", "states"))
        return path, mapped_npy(path, np.floating, (of.length, self.layout.dim), what="numbers", fix=_AGAIN)


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
        expected = f"latents of {len(key.episodes)} episodes and {METADATA}"
        found, fix = f"{done} episodes, encoding unfinished", "Run the same `worldline data encode` again."
        raise DataError(path, expected=expected, found=found, fix=fix, kind="unfinished")
    metadata = validated(path / METADATA, _Metadata, read_json(path / METADATA))
    grid, named = metadata.latent_grid, metadata.recordings or (None,) * len(metadata.names)
    try:
        grid.latents_of(len(key.pattern.frames))
        listed = list(zip(metadata.lengths, metadata.names, named, strict=True))
        dict(zip(metadata.state_names, metadata.state_kinds, strict=True))
    except (UsageError, ZeroDivisionError, ValueError) as error:
        expected = "as many names as lengths, as many kinds as states, and a grid of the pattern's frames"
        raise DataError(path / METADATA, expected=expected, found=str(error), fix=_AGAIN, kind="metadata") from None
    return LatentSource(
        kind="latents",
        path=path,
        fps=metadata.fps,
        layout=StateLayout(names=metadata.state_names, kinds=metadata.state_kinds),
        episodes=tuple(
            _Encoded(index=i, length=length, name=name, recording=recording, latents=path / f"latents_{i}.npy")
            for i, (length, name, recording) in enumerate(listed)
        ),
        left_out=metadata.left_out,
        latent_grid=grid,
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
    """Write the metadata that make the folder readable, once all is there; `provenance` are notes on the source."""
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
