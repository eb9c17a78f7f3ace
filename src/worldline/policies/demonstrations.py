"""Demonstrations: successful scripted episodes, with pushes off their path from which they come back."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from worldline.checks import Checked, Limit, Positive
from worldline.nn.pictures import seen_small
from worldline.policies.starts import STARTS
from worldline.schema import UsageError
from worldline.twin.scene import INDEX
from worldline.twin.tasks import Start, Task, solve
from worldline.twin.trial import Trial

ARMS = slice(INDEX["LEFT_SHOULDER_PITCH"], INDEX["RIGHT_WRIST_ROLL"] + 1)
KEPT = 0.85
"""Share of a push that is left one frame later."""


@dataclass(frozen=True, kw_only=True)
class DemonstrationConfig(Checked):
    """How episodes are demonstrated."""

    fps: Positive = 15.0
    side: Annotated[int, Limit(least=16, most=512)] = 64
    """Frames are kept with this many pixels a side."""
    every: int = 3
    """Every so many frames one is kept: the others are never looked at."""
    push: float = 0.04
    """The arms' commands are pushed off the demonstrated ones by random amounts of this standard deviation, in rad,
    which pass slowly (DART, Laskey et al. 2017)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstrations:
    """Successful episodes of one length."""

    fps: float
    every: int
    frames: UInt8[np.ndarray, "n k 3 h w"]
    """Frames `0, every, 2 * every, ...` of the `t`."""
    states: Float32[np.ndarray, "n t s"]
    """Measured."""
    commands: Float32[np.ndarray, "n t s"]
    """What should have been commanded: the path without the pushes."""

    def __len__(self) -> int:
        return len(self.states)

    def part(self, chosen: slice) -> "Demonstrations":
        """Some of them."""
        parts = {name: getattr(self, name)[chosen] for name in ("frames", "states", "commands")}
        return Demonstrations(fps=self.fps, every=self.every, **parts)


def demonstrate(task: Task, count: int, config: DemonstrationConfig | None = None) -> Demonstrations:
    """The first `count` successful episodes of the starts for demonstrations. Deterministic.

    Raises `UsageError` where there are not that many among three times as many starts.
    """
    config, shown = config or DemonstrationConfig(), list[tuple[np.ndarray, ...]]()
    for seed in STARTS["demonstrations"][: 3 * count]:
        found = _demonstrated(task.start(seed, fps=config.fps), config)
        shown += [found] if found else []
        if len(shown) == count:
            frames, states, commands = (np.stack(part) for part in zip(*shown, strict=True))
            return Demonstrations(fps=config.fps, every=config.every, frames=frames, states=states, commands=commands)
    raise UsageError(f"of {3 * count} demonstrations of the task {task.id!r} only {len(shown)} succeeded")


def _demonstrated(start: Start, config: DemonstrationConfig) -> tuple[np.ndarray, ...] | None:
    """Frames, states and commands of one episode; None where it does not succeed."""
    rng, push = np.random.default_rng([start.seed, start.place]), np.zeros(ARMS.stop - ARMS.start)
    frames, states, commands = [], [], solve(start)
    with start.open() as simulation:
        trial = Trial(simulation)
        for i, command in enumerate(commands):
            if i % config.every == 0:
                frames.append(simulation.frame())
            states.append(simulation.state())
            push = KEPT * push + np.sqrt(1 - KEPT**2) * config.push * rng.standard_normal(len(push))
            pushed = command.copy()
            pushed[ARMS] += push.astype(np.float32)
            trial.step(pushed)
        if start.outcome(trial.facts()) != "succeeded":
            return None
    seen = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    return seen_small(seen, config.side).numpy(), np.stack(states), commands
