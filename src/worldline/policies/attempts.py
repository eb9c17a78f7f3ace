"""Attempts: scripted episodes with every size of aim error, with what physics says, for the success classifier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.checks import Checked, Positive
from worldline.judges.success import Attempts
from worldline.nn.pictures import seen_small
from worldline.policies.demonstrations import ARMS, KEPT
from worldline.policies.scripted import ScriptedConfig, ScriptedPolicy, missed
from worldline.policies.starts import STARTS, Use
from worldline.twin.simulation import Simulation
from worldline.twin.tasks import Start, Task, solve
from worldline.twin.trial import Trial

Reconstruct = Callable[[UInt8[Tensor, "b t 3 h w"]], UInt8[Tensor, "b t 3 h w"]]
"""Frames through a tokenizer and back."""
AIMS = ((0.0, 0.05), (0.05, 0.13), (0.13, 0.24))
"""Ranges of the aim errors in m from every start: about half of the attempts succeed."""
IDLE = 0.08
"""Share of the attempts with a large error that hold still or wave instead."""


@dataclass(frozen=True, kw_only=True)
class AttemptConfig(Checked):
    """How attempts are recorded."""

    fps: Positive = 15.0
    side: int = 64
    every: int = 3
    """Every so many frames one is kept."""
    push: float = 0.06
    """The arms' commands are pushed off the path by up to this standard deviation, in rad, so that hands do not only
    move as scripts do."""


def record_attempts(
    tasks: Sequence[Task],
    use: Use,
    starts: int,
    config: AttemptConfig | None = None,
    *,
    reconstruct: Reconstruct | None = None,
) -> Attempts:
    """Three attempts from each of the first starts of a use, for every task. Deterministic."""
    config, parts = config or AttemptConfig(), list[tuple[np.ndarray, np.ndarray | None, int, int, int]]()
    for place, task in enumerate(tasks):
        for seed in STARTS[use][:starts]:
            start = task.start(seed, fps=config.fps)
            rng = np.random.default_rng([seed, start.place, 1])
            with start.open() as simulation:  # one for all attempts: its OpenGL context is slow to make
                for low, high in AIMS:
                    simulation.restore(start.snapshot)
                    frames, done = _recorded(start, simulation, _commands(start, low, high, rng), rng, config)
                    seen = _reconstructed(frames, reconstruct, config.side)
                    parts.append((_small(frames, config.side), seen, place, seed, done))
    frames, degraded, task, start, done = zip(*parts, strict=True)
    length = round(tasks[0].seconds * config.fps)
    return Attempts(
        tasks=tuple(one.id for one in tasks),
        task=np.array(task),
        start=np.array(start),
        times=np.arange(0, length + 1, config.every),
        frames=np.stack(frames),
        done=np.array(done),
        degraded=None if reconstruct is None else np.stack([one for one in degraded if one is not None]),
    )


def _commands(start: Start, low: float, high: float, rng: np.random.Generator) -> Float32[np.ndarray, "t 25"]:
    miss, late, pace = rng.uniform(low, high), rng.choice([0.0, rng.uniform(0, 0.8)]), rng.uniform(0.9, 1.2)
    if low == AIMS[-1][0] and rng.random() < IDLE:
        policy = ScriptedPolicy(ScriptedConfig(motion="nothing" if rng.random() < 0.5 else "wave", fps=start.fps))
        policy.reset(0)
        return np.stack([policy.act({"state": start.command}) for _ in range(start.frames)])
    return solve(start, miss=missed(start, miss, [int(rng.integers(2**31))]), late=float(late), pace=pace)


def _recorded(
    start: Start, simulation: Simulation, commands: np.ndarray, rng: np.random.Generator, config: AttemptConfig
) -> tuple[UInt8[np.ndarray, "k h w 3"], int]:
    """Frames of an episode and the frame at which it succeeded, or -1."""
    trial, seen, off, done = Trial(simulation), [simulation.frame()], np.zeros(ARMS.stop - ARMS.start), 0
    push = rng.uniform(0, config.push)
    for i, command in enumerate(commands, start=1):
        off = KEPT * off + np.sqrt(1 - KEPT**2) * push * rng.standard_normal(len(off))
        pushed = command.copy()
        pushed[ARMS] += off.astype(np.float32)
        trial.step(pushed)
        if not done and (outcome := start.outcome(trial.facts())) != "open":
            done = i if outcome == "succeeded" else -1
        if i % config.every == 0:
            seen.append(simulation.frame())
    return np.stack(seen), done or -1


def _small(frames: UInt8[np.ndarray, "k h w 3"], side: int) -> UInt8[np.ndarray, "k 3 side side"]:
    return seen_small(torch.from_numpy(frames).permute(0, 3, 1, 2), side).numpy()


def _reconstructed(
    frames: UInt8[np.ndarray, "k h w 3"], reconstruct: Reconstruct | None, side: int
) -> UInt8[np.ndarray, "k 3 side side"] | None:
    if reconstruct is None:
        return None
    whole = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    return seen_small(reconstruct(whole[None])[0], side).numpy()
