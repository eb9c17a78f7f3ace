"""Policies in the twin: from the starts of a task, commands to its motors, success by physics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from worldline.policies.policy import BatchPolicy
from worldline.twin.tasks import Start
from worldline.twin.trial import Trial

AT_ONCE = 10
"""Episodes that are played together: each has its own OpenGL context."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """Starts of one task, played by policies one after the other."""

    starts: Sequence[Start]

    def succeeded(self, policy: BatchPolicy, *, seed: int = 0) -> Bool[np.ndarray, " n"]:
        """Whether a policy succeeds from each start."""
        parts = range(0, len(self.starts), AT_ONCE)
        return np.concatenate([_played(policy, self.starts[i : i + AT_ONCE], seed) for i in parts])


def _played(policy: BatchPolicy, starts: Sequence[Start], seed: int) -> Bool[np.ndarray, " n"]:
    trials = [Trial(start.open()) for start in starts]
    try:
        policy.reset_batch([seed + start.seed for start in starts], list(starts))
        over: list[Any] = [None] * len(starts)
        frames = [trial.simulation.frame() for trial in trials]
        for _ in range(starts[0].frames):
            if policy.looks_now:
                frames = [trial.simulation.frame() for trial in trials]
            states = np.stack([trial.simulation.state() for trial in trials])
            commands = policy.act_batch({"frame": np.stack(frames), "state": states})
            for i, (start, trial) in enumerate(zip(starts, trials, strict=True)):
                trial.step(commands[i])
                if over[i] is None and (outcome := start.outcome(trial.facts())) != "open":
                    over[i] = outcome
        return np.array([one == "succeeded" for one in over])
    finally:
        for trial in trials:
            trial.simulation.close()
