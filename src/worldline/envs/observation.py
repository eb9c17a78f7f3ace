"""What an environment shows: frames that are decoded when they are read, and states."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

Shows = Literal["frame", "frames", "state"]
"""The last frame (`frame`, `h w 3`), all frames that a step predicts (`frames`, `f h w 3`), or no picture."""


class Look:
    """What one environment sees at one moment: made when it is first read, for all that were forecast with it at once.

    It may be kept: until it is read it holds tokens at most, and it does not change when the environment goes on.
    """

    def __init__(self, made: Callable[[], UInt8[Tensor, "t 3 h w"]]) -> None:
        self._made: Callable[[], Tensor] | None = made
        self._frames: UInt8[np.ndarray, "t h w 3"] | None = None

    def frames(self) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames, RGB; write into a copy."""
        if self._frames is None:
            assert self._made is not None, "unread"
            frames = np.ascontiguousarray(self._made().permute(0, 2, 3, 1).numpy())
            self._frames, self._made = frames.copy() if frames.base is not None else frames, None
        return self._frames

    def __getstate__(self) -> dict[str, Any]:
        """Pickled as what is seen."""
        return {"_frames": self.frames(), "_made": None}


class Observation(dict[str, Any]):
    """A dictionary whose pictures are made when they are read: a policy that does not look does not pay for them."""

    def __init__(self, known: dict[str, Any], unread: dict[str, Callable[[], np.ndarray]]) -> None:
        super().__init__(dict.fromkeys(unread) | known)
        self._unread = dict(unread)

    @property
    def unread(self) -> frozenset[str]:
        """Names of what has not been made."""
        return frozenset(self._unread)

    def __getitem__(self, name: str) -> Any:
        if name in self._unread:
            super().__setitem__(name, self._unread[name]())
            del self._unread[name]
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._unread.pop(name, None)
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._unread.pop(name, None)

    # A dictionary's own would put a value beside what is unread, which would then be made and shown in its place.
    update = MutableMapping.update
    setdefault = MutableMapping.setdefault

    def __ior__(self, other: Any) -> "Observation":  # pyright: ignore[reportIncompatibleMethodOverride]
        self.update(other)
        return self

    def __iter__(self) -> Iterator[str]:  # with one of its own, `dict(...)` and `**` ask for every item
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        return self.read().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        if name in self._unread:
            self[name]
        return super().pop(name, *default)

    def items(self) -> Any:
        return self.read().items()

    def values(self) -> Any:
        return self.read().values()

    def read(self) -> dict[str, Any]:
        """All of it, made, as a plain dictionary."""
        return {name: self[name] for name in self}

    copy = read

    def __or__(self, other: Any) -> dict[str, Any]:
        return self.read() | other

    def __eq__(self, other: object) -> bool:
        return self.read() == other

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> tuple[Any, ...]:
        return Observation, (self.read(), {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "Observation":
        return Observation({name: value.copy() for name, value in self.read().items()}, {})

    def __repr__(self) -> str:
        known = (f"{name!r}: {'...' if name in self._unread else repr(self[name])}" for name in self)
        return "{" + ", ".join(known) + "}"


def observation(shows: Shows, count: int, look: Look, state: Float32[np.ndarray, " s"]) -> Observation:
    """What one environment observes; of frames the last `count`, after copies of the first where there are fewer."""
    return Observation({"state": state.copy()}, _pictures(shows, count, [look], lambda seen: seen[0]))


def batched(shows: Shows, count: int, looks: Sequence[Look], states: Float32[np.ndarray, "n s"]) -> Observation:
    """The same of several, stacked."""
    return Observation({"state": states.copy()}, _pictures(shows, count, looks, np.stack))


def _pictures(shows: Shows, count: int, looks: Sequence[Look], together: Callable[..., np.ndarray]) -> dict[str, Any]:
    def frame() -> np.ndarray:
        return np.array(together([look.frames()[-1] for look in looks]))

    def frames() -> np.ndarray:
        return np.array(together([_last(look.frames(), count) for look in looks]))

    return {"frame": {"frame": frame}, "frames": {"frames": frames}, "state": {}}[shows]


def _last(frames: UInt8[np.ndarray, "t h w 3"], count: int) -> UInt8[np.ndarray, "n h w 3"]:
    missing = max(0, count - len(frames))
    return np.concatenate([np.repeat(frames[:1], missing, axis=0), frames[-count:]])


def seen(frames: UInt8[Tensor, "b t 3 h w"]) -> list[Look]:
    """What is there already."""
    return [Look(lambda own=own: own) for own in torch.unbind(frames.clone())]
