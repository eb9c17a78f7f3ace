"""What a session has shown, as a tree: every branch is a list of moments, of which branches share what came before.

Nothing of a moment ever changes, so a fork copies references alone. A session of a world is deterministic: with its
snapshot at some chunks and the states of all frames any moment can be reached again. Between frames of one chunk a
branch is `(snapshot before the chunk, states of its first frames)`: the chunk is made again with other states behind.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64

from worldline.forecasting.forecaster import Snapshot
from worldline.schema import UsageError
from worldline.viewer.pictures import Media
from worldline.viewer.protocol import BranchInfo, Trust

MOST_BRANCHES = 64
SNAPSHOT_BYTES = 256 * 2**20
"""Of all snapshots that a session keeps; what it does not keep is made again from the one before."""
State = Float32[np.ndarray, " s"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """One shown frame."""

    time: int
    """Its position in video frames, counted from the first of the clip."""
    media: Media
    picture: bytes
    real: bool
    """Whether the robot saw it: of the context."""
    trust: Trust
    maps: dict[str, Float[np.ndarray, "gh gw"]] = field(default_factory=dict)
    """By overlay, what it colours."""


@dataclass(kw_only=True, eq=False)
class Branch:
    """One future. `head` is the frame that is shown; there may be later ones, until a new one is made."""

    id: str
    name: str
    parent: str | None = None
    at: int = 0
    moments: list[Moment] = field(default_factory=list)
    rows: list[State] = field(default_factory=list)
    """The state of every video frame, from the first of the clip."""
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    """Before a chunk, by its number."""
    physics: dict[int, Float64[np.ndarray, " n"]] = field(default_factory=dict)
    """Of the live twin, by time."""
    head: int = 0
    followed: int = 0
    """So many of the rows are those of the clip itself, so that its true frames are the truth."""

    @property
    def now(self) -> Moment:
        return self.moments[self.head]

    def cut(self, *, context: int, chunk: int) -> None:
        """Forget all behind the head, because something else comes there."""
        del self.moments[self.head + 1 :]
        del self.rows[self.now.time + 1 :]
        last = (len(self.rows) - context) // chunk
        self.snapshots = {number: one for number, one in self.snapshots.items() if number <= last}
        self.physics = {time: one for time, one in self.physics.items() if time < len(self.rows)}
        self.followed = min(self.followed, len(self.rows))

    def add_row(self, row: State, own: State | None) -> None:
        """The state of the next frame; `own` is that of the recording, if it has one."""
        if self.followed == len(self.rows) and own is not None and np.array_equal(row, own):
            self.followed += 1
        self.rows.append(row)


class Tree:
    """The branches of a session."""

    def __init__(self, first: Branch) -> None:
        self.branches: dict[str, Branch] = {first.id: first}
        self.current = first
        self.frames = len(first.moments)
        self._made = 1

    def recount(self) -> None:
        """Count the moments that are kept, those of several branches once; after some are forgotten."""
        self.frames = len({id(moment) for branch in self.branches.values() for moment in branch.moments})

    @property
    def infos(self) -> tuple[BranchInfo, ...]:
        there = list(self.branches.values())  # another thread may add one meanwhile
        keys = ("id", "name", "parent", "at")
        parts: list[dict[str, Any]] = [{key: getattr(one, key) for key in keys} for one in there]
        return tuple(BranchInfo(**part, frames=len(one.moments)) for part, one in zip(parts, there, strict=True))

    def named(self, branch: str) -> Branch:
        """Raises `UsageError` where there is none."""
        if branch not in self.branches:
            raise UsageError(f"there is no branch {branch!r}; there are: {', '.join(self.branches)}")
        return self.branches[branch]

    def fork(self, name: str | None, *, context: int, chunk: int) -> Branch:
        """A branch from the frame that is shown; it becomes the current one. Raises `UsageError` for too many."""
        if len(self.branches) >= MOST_BRANCHES:
            raise UsageError(f"there are {MOST_BRANCHES} branches already; drop one")
        self._refuse_taken(name)
        old, self._made = self.current, self._made + 1
        new = Branch(id=f"b{self._made}", name=name or self._free_name(), parent=old.id, at=old.head, head=old.head)
        new.moments, new.rows, new.snapshots = [*old.moments], [*old.rows], {**old.snapshots}
        new.physics, new.followed = {**old.physics}, old.followed
        new.cut(context=context, chunk=chunk)
        self.branches[new.id] = self.current = new
        return new

    def rename(self, branch: str, name: str) -> None:
        found = self.named(branch)
        if found.name != name:
            self._refuse_taken(name)
        found.name = name

    def drop(self, branch: str) -> None:
        """Raises `UsageError` for the current one."""
        found = self.named(branch)
        if found is self.current:
            raise UsageError(f"{found.name!r} is the current branch; switch to another one first")
        del self.branches[branch]
        self.recount()
        for other in self.branches.values():
            if other.parent == branch:  # it went on from there, so what it shares lies behind the grandparent's fork
                other.parent, other.at = found.parent, min(found.at, other.at)

    def _free_name(self) -> str:
        taken = {branch.name for branch in self.branches.values()}
        return next(name for n in range(1, MOST_BRANCHES + 2) if (name := f"branch {n}") not in taken)

    def _refuse_taken(self, name: str | None) -> None:
        if any(branch.name == name for branch in self.branches.values()):
            raise UsageError(f"there is a branch {name!r} already; choose another name")
