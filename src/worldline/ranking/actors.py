"""A policy in n episodes at once, one row each, and everything that it can do wrong.

A policy is any object with `act(observation) -> action`: see `Contender` for what it may have beyond that. It is code
of somebody else: it may raise, return what is no state, or never return. Each is a `PolicyError` that names the policy,
the start and the step, so that a ranking goes on with the others.
"""

import ctypes
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from worldline.formats.limits import OutOfRange, StateLimits
from worldline.schema import UsageError

ACT_SECONDS = 10.0
"""Longest time of one call of a policy; the first may load what it needs."""
MAKE_SECONDS = 600.0
"""Longest time in which a policy is made, if more is not allowed for each call: it may load large weights."""
_OTHERWISE = "it must stay within, or choose --out-of-range clip or allow"


class PolicyError(UsageError):
    """A policy did what no policy may do. Names it, the start and the step."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A policy that takes part.

    `make()` gives an object with `act({"frame": uint8 (h, w, 3), "state": float32 (s,)}) -> float32 (s,)`, the next
    commanded state. Optional: `reset(seed)` before every episode; `needs_start = True`, and then `reset(seed, start)`;
    `reset_batch(seeds, starts)` with `act_batch(observations)` for n episodes at once, row i of each call being of
    episode i; `fps`, the actions per second that it was made for; `looks_now = False` while it does not read the frame,
    which then may be an older one.
    """

    label: str
    make: Callable[[], Any]
    identity: str
    """Hash of all that decides what it does, or what is known of that; results are kept by it."""
    task: str | None = None
    """The task it was made for; None if it takes part in all."""
    origin: str = ""
    """Where it comes from, for people: a folder, or `module:function`."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """The starts of the rows, as they are called, and what a policy is told of each."""

    ids: tuple[str, ...]
    seeds: tuple[int, ...]
    told: tuple[Any, ...] = ()
    """What a policy with `needs_start` is told; nothing where starts are clips of a data set."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """In which range actions are to lie, and what becomes of others."""

    limits: StateLimits
    out_of_range: OutOfRange = "allow"


class Actors:
    """A policy that acts in n episodes. Use as a context manager: it has a thread of its own."""

    def __init__(
        self, contender: Contender, named: Named, *, dim: int, limit: float = ACT_SECONDS, held: Held | None = None
    ) -> None:
        self.contender, self.named, self.dim, self.limit, self.held = contender, named, dim, limit, held
        self.outside = np.zeros(len(named.ids), np.int64)
        """Actions of each row so far of which a number was outside of the range."""
        self._thread = _Thread()
        self._together: Any = None
        self._each: list[Any] = []

    def __enter__(self) -> "Actors":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.end()

    def reset(self, *, rate: float) -> None:
        """Make the policy, once where it plays all rows together and else once for each, and begin the episodes.

        Args:
            rate: actions per second that will be asked for.
        """
        first = self._made(0)
        made_for = getattr(first, "fps", None)
        if made_for is not None and abs(float(made_for) / rate - 1) > 1e-6:
            raise self._wrong(
                0, 0, f"it was made for {made_for:g} actions per second, but here it acts {rate:g} times; train it anew"
            )
        starts = self.named.told
        if getattr(first, "needs_start", False) and not starts:
            raise self._wrong(0, 0, "it must be told where things are (`needs_start`), which these starts do not say")
        seeds = self.named.seeds
        if hasattr(first, "act_batch"):
            self._together = first
            if hasattr(first, "reset_batch"):
                self._call(first.reset_batch, list(seeds), list(starts) if starts else None, row=None, step=0)
            return
        self._each = [first, *(self._made(row) for row in range(1, len(seeds)))]
        for row, policy in enumerate(self._each):
            if hasattr(policy, "reset"):
                told = (starts[row],) if getattr(policy, "needs_start", False) else ()
                self._call(policy.reset, seeds[row], *told, row=row, step=0)

    @property
    def looks(self) -> bool:
        """Whether any row reads the frame that it is shown next; if not, it may be an older one."""
        own = self._each if self._together is None else [self._together]
        return any(getattr(one, "looks_now", True) for one in own)

    def act(
        self, frames: UInt8[np.ndarray, "n h w 3"], states: Float32[np.ndarray, "n s"], *, step: int
    ) -> Float32[np.ndarray, "n s"]:
        """The next commanded state of every row. Raises `PolicyError`."""
        if self._together is not None:
            seen = {"frame": frames.copy(), "state": states.copy()}
            acted = self._call(self._together.act_batch, seen, row=None, step=step)
            if len(shape := np.shape(acted)) != 2 or shape[0] != len(frames):
                expected = f"({len(frames)}, {self.dim})"
                raise self._wrong(None, step, f"`act_batch` returned the shape {shape}, not {expected}")
            return np.stack([self._checked(one, row, step) for row, one in enumerate(acted)])
        found = []
        for row, policy in enumerate(self._each):
            seen = {"frame": frames[row].copy(), "state": states[row].copy()}
            found.append(self._checked(self._call(policy.act, seen, row=row, step=step), row, step))
        return np.stack(found)

    def _made(self, row: int) -> Any:
        policy = self._call(self.contender.make, row=row, step=0, limit=max(self.limit, MAKE_SECONDS))
        if not callable(getattr(policy, "act", None)) and not callable(getattr(policy, "act_batch", None)):
            raise self._wrong(row, 0, f"it is a {type(policy).__name__} without a method `act(observation)`")
        return policy

    def _call(
        self, function: Callable[..., Any], *given: Any, row: int | None, step: int, limit: float | None = None
    ) -> Any:
        limit = self.limit if limit is None else limit
        try:
            return self._thread.call(function, given, limit=limit)
        except PolicyError:
            raise
        except _TooSlow as error:
            what = f"no answer within {limit:g} s; make it faster, or allow more (--act-seconds)"
            raise self._wrong(row, step, what) from error
        except Exception as error:  # whatever a policy raises
            raise self._wrong(row, step, f"it raised {type(error).__name__}: {error}") from error

    def _checked(self, action: Any, row: int, step: int) -> Float32[np.ndarray, " s"]:
        try:
            found = np.asarray(action.detach().cpu() if isinstance(action, torch.Tensor) else action)
        except Exception as error:  # lists of different lengths, say
            raise self._wrong(row, step, f"its action is no array ({error})") from error
        if found.dtype.kind not in "fiu":
            raise self._wrong(row, step, f"its action holds {found.dtype}, not numbers")
        if found.shape != (self.dim,):
            raise self._wrong(row, step, f"its action has the shape {found.shape}, not ({self.dim},): a whole state")
        if bad := np.flatnonzero(~np.isfinite(found)).tolist():
            raise self._wrong(row, step, f"its action is no finite number in entry {bad[0]} ({len(bad)} of {self.dim})")
        return self._within(found.astype(np.float32), row, step)

    def _within(self, action: Float32[np.ndarray, " s"], row: int, step: int) -> Float32[np.ndarray, " s"]:
        """The action, kept within the range where that was chosen; whether it was outside is counted."""
        if self.held is None:
            return action
        try:
            rows, outside = self.held.limits.held(action[None], self.held.out_of_range, fix=_OTHERWISE)
        except UsageError as error:
            raise self._wrong(row, step, str(error)) from None
        self.outside[row] += bool(outside.any())
        return rows[0]

    def _wrong(self, row: int | None, step: int, what: str) -> PolicyError:
        ids = self.named.ids
        where = f"starts {ids[0]} to {ids[-1]}" if row is None and len(ids) > 1 else f"start {ids[row or 0]}"
        return PolicyError(f"policy {self.contender.label!r}, {where}, step {step}: {what}")


class _TooSlow(Exception):  # noqa: N818 - becomes a PolicyError
    """A call did not end in time."""


class _Left(BaseException):
    """Raised inside a call that has been given up, so that a loop of Python ends."""


class _Thread:
    """Calls functions one after the other in a thread of its own, and leaves behind what does not end.

    A signal could end more, but only in the main thread, which is not ours in a notebook or a server.
    """

    def __init__(self) -> None:
        self._todo, self._done = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
        self._own = threading.Thread(target=self._serve, name="policy", daemon=True)
        self._own.start()

    def call(self, function: Callable[..., Any], given: Sequence[Any], *, limit: float) -> Any:
        self._todo.put((function, given))
        try:
            worked, value = self._done.get(timeout=limit)
        except queue.Empty:
            self._leave()
            raise _TooSlow from None
        if worked:
            return value
        raise value

    def end(self) -> None:
        self._todo.put(None)

    def _leave(self) -> None:
        self._todo.put(None)
        ident = ctypes.c_ulong(self._own.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_Left))

    def _serve(self) -> None:
        try:
            while (job := self._todo.get()) is not None:
                function, given = job
                try:
                    with torch.no_grad():
                        result = True, function(*given)
                except Exception as error:
                    result = False, error
                except SystemExit as error:
                    result = False, RuntimeError(f"it called exit ({error})")
                self._done.put(result)
        except _Left:
            return
