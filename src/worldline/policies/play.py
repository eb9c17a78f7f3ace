"""Policies in the twin: from the starts of a task, commands to its motors, success by physics."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
from jaxtyping import Bool

from worldline.policies.policy import BatchPolicy
from worldline.progress import watched
from worldline.twin.simulation import Simulation
from worldline.twin.tasks import Outcome, Start
from worldline.twin.trial import Trial

AT_ONCE = 10
"""Episodes that are played together: each has its own OpenGL context, which is slow to make and serves all policies."""


def successes(
    policies: Mapping[str, BatchPolicy], starts: Sequence[Start], *, seed: int = 0, what: str = "playing"
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Whether each policy succeeds from each start of a task. Deterministic; an episode ends with its first outcome."""
    found: dict[str, list[bool]] = {name: [] for name in policies}
    jobs = [(starts[i : i + AT_ONCE], name) for i in range(0, len(starts), AT_ONCE) for name in policies]
    with ExitStack() as stack:
        opened: Sequence[Start] = ()
        scenes: list[Simulation] = []
        for some, name in watched(jobs, what):
            if some is not opened:
                stack.close()
                opened, scenes = some, [stack.enter_context(start.open()) for start in some]
            found[name] += _played(policies[name], some, scenes, seed)
    return {name: np.array(one) for name, one in found.items()}


def _played(policy: BatchPolicy, starts: Sequence[Start], scenes: Sequence[Simulation], seed: int) -> list[bool]:
    for start, scene in zip(starts, scenes, strict=True):
        scene.restore(start.snapshot)
    trials, over = [Trial(scene) for scene in scenes], list[Outcome]("open" for _ in starts)
    policy.reset_batch([seed + start.seed for start in starts], list(starts))
    frames = np.zeros((len(starts), scenes[0].size, scenes[0].size, 3), np.uint8)
    for _ in range(starts[0].frames):
        if policy.looks_now:
            frames = np.stack([scene.frame() for scene in scenes])
        states = np.stack([scene.state() for scene in scenes])
        commands = policy.act_batch({"frame": frames, "state": states})
        for i, (start, trial) in enumerate(zip(starts, trials, strict=True)):
            if over[i] == "open":
                trial.step(commands[i])
                over[i] = start.outcome(trial.facts())
    return [one == "succeeded" for one in over]
