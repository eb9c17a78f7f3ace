"""From an action to the states that a forecaster is given: a target or a change, for one frame or for a whole step."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Float32

from worldline.checks import Checked, refuse_unknown
from worldline.formats.limits import OutOfRange, StateLimits
from worldline.schema import UsageError

Action = Literal["state", "delta"]
"""An action is the next state, or a change of the current one."""
Between = Literal["ramp", "hold", "path"]
"""How the frames of a step reach it: in equal parts, at once, or an action has a row for every frame."""

Path = Float32[np.ndarray, "n s"]


@dataclass(frozen=True, kw_only=True)
class MotionConfig(Checked):
    """What an action means."""

    action: Action = "state"
    between: Between = "ramp"
    out_of_range: OutOfRange = "clip"
    chunks: int = 1
    """Steps of the session per step of the environment."""
    moves: tuple[str, ...] | None = None
    """Names of the entries of the state that an action has; all others stay as they were commanded. None: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, kind in (("action", Action), ("between", Between), ("out_of_range", OutOfRange)):
            refuse_unknown(getattr(self, field), kind.__args__, what=f"choice of {field}")


@dataclass(frozen=True, kw_only=True)
class Motion:
    """The states of the next `frames` frames, from an action and the state of now; all in raw units, float32."""

    config: MotionConfig
    limits: StateLimits
    frames: int

    def __post_init__(self) -> None:
        """Raises `UsageError` for entries that there are not."""
        for name in self.config.moves or ():
            refuse_unknown(name, self.limits.names, what="entry of the state")
        if self.config.moves is not None and len({*self.config.moves}) != max(1, len(self.config.moves)):
            raise UsageError(f"moves names some entries of the state, each once, not {self.config.moves}")

    @property
    def entries(self) -> list[int]:
        """Where the entries of an action are in a state."""
        names = self.limits.names if self.config.moves is None else self.config.moves
        return [self.limits.names.index(name) for name in names]

    def space(self) -> Box:
        """The actions there are: `(a,)` of as many entries, or `(frames, a)` of a path."""
        low, high = self.limits.low[self.entries], self.limits.high[self.entries]
        if self.config.action == "delta":
            over = 1 if self.config.between == "path" else self.frames
            high = np.minimum(self.limits.change[self.entries] * over, high - low)
            low = -high
        if self.config.between == "path":
            low, high = (np.tile(one, (self.frames, 1)) for one in (low, high))
        return Box(low, high, dtype=np.float32)

    def path(self, action: Any, now: Float32[np.ndarray, " s"], *, where: str = "") -> tuple[Path, int]:
        """One row for each of the next frames, and how many numbers of the action lead outside of the limits.

        Raises `UsageError` for an action of another shape or that is no finite numbers, and, if chosen, outside of the
        limits; `where` is put before what is said.
        """
        rows, entries = self._checked(action, where), self.entries
        if self.config.action == "delta":
            rows = now[entries] + np.cumsum(rows, axis=0, dtype=np.float64)
        rows, outside = self.limits.held(rows, self.config.out_of_range, entries=entries, where=where)
        whole = np.repeat(now[None].astype(np.float64), len(rows), axis=0)
        whole[:, entries] = rows
        return self._filled(whole, now).astype(np.float32), int(outside.sum())

    def _filled(self, rows: np.ndarray, now: Float32[np.ndarray, " s"]) -> np.ndarray:
        if self.config.between == "path":
            return rows
        if self.config.between == "hold":
            return np.repeat(rows, self.frames, axis=0)
        part = np.arange(1, self.frames + 1)[:, None] / self.frames
        return now * (1 - part) + rows * part

    def _checked(self, action: Any, where: str) -> np.ndarray:
        """The rows of an action: one, or of a path one for each frame."""
        names = [self.limits.names[entry] for entry in self.entries]
        dims = len(names)
        shape = (self.frames, dims) if self.config.between == "path" else (dims,)
        try:
            given = np.asarray(action, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}an action is an array of {shape} numbers, not {action!r:.80}") from error
        if given.shape != shape:
            raise UsageError(f"{where}an action has the shape {shape}, not {given.shape}")
        if not np.isfinite(given).all() or np.abs(given).max(initial=0) > np.finfo(np.float32).max:
            entry = int(np.argwhere(~np.isfinite(given))[0][-1]) if not np.isfinite(given).all() else 0
            found = given.reshape(-1, dims)[:, entry]
            raise UsageError(f"{where}the action holds no finite number for {names[entry]}: {found}")
        return given.reshape(-1, dims)
