"""What was played is kept, a file for each policy and place, so that a ranking that was cut off goes on.

A part is known by a hash of everything that decides it: place, policy, starts, reader, manner, and the code that plays.
So parts of another world, another policy or older code are never mixed in, and several processes may fill one folder.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from worldline.files import hash_of, read_npz, write_npz
from worldline.ranking.actors import Contender
from worldline.ranking.protocol import Manner, Place, Played, Reader, Starts

_ROOMS = ("ranking", "policies", "judges", "forecasting", "twin", "tokenizers", "worlds", "process", "nn")
"""Whose code decides what is played."""
_FIX = "Delete it; it will be played again."


@dataclass(frozen=True)
class Parts:
    """The parts in a folder."""

    folder: Path

    def get(self, key: str) -> Played | None:
        """A kept part. Raises `DataError` where its file is damaged."""
        path = self._path(key)
        if not path.exists():
            return None
        held: dict[str, Any] = read_npz(path, what="episodes of a policy", fix=_FIX)
        held = dict.fromkeys(("succeeded", "gap", "signal", "outside")) | held
        held["seconds"] = float(held["seconds"])
        return Played(**held)

    def put(self, key: str, played: Played) -> None:
        """Keep a part, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = {name: value for name, value in vars(played).items() if value is not None}
        write_npz(self._path(key), held)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.npz"


def key_of(place: Place, contender: Contender, starts: Starts, reader: Reader, manner: Manner, more: Any = None) -> str:
    """Hash of all that decides a part; `more` is what else does."""
    contexts = starts.contexts(place.forecaster.context_frames)
    assert contexts.frames is not None, "checked by contexts"
    seen = hashlib.sha256(contexts.frames.numpy().tobytes() + contexts.states.numpy().tobytes())
    how: list[Any] = [manner.steps, manner.seed, manner.between, manner.signal, manner.films]
    if manner.held is not None:
        limits = manner.held.limits
        how += [manner.held.out_of_range, content_of(np.stack([limits.low, limits.high]))]
    named = [starts.task, starts.named.ids, starts.named.seeds, seen.hexdigest(), starts.batch.fps]
    which = [place.identity, place.given, contender.identity, reader.identity]
    return hash_of([which, named, how, _code(), more])


@cache
def _code() -> str:
    """Hash of the source files that decide what is played."""
    digest = hashlib.sha256()
    for path in _files():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    package = Path(__file__).parents[1]
    for room in _ROOMS:
        yield from sorted((package / room).rglob("*.py"))


def content_of(array: np.ndarray) -> str:
    """Hash of an array."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
