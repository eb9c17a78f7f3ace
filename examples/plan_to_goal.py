"""Reach a picture: plan inside a world by the cross-entropy method, then execute the plan in the live twin.

    python examples/plan_to_goal.py [--world compression-tiny] [--starts 8] [--candidates 32] [--rounds 3]

The goal is what the robot really saw about a second later. The planner knows that picture and the present moment, and
nothing of the states between. Candidates are targets of both arms, reached in equal parts; all are imagined from the
same moment in one batch, and only their last frames are decoded. Those whose last frame is nearest to the goal say
where the next are drawn. Printed: how far from the goal the twin is afterwards, against doing nothing and against a
target drawn at random, with intervals over episodes (95 %, paired).
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from worldline.envs import ClipStarts, DreamEnv, DreamVectorEnv, StateLimits
from worldline.envs.made import dream
from worldline.forecasting.live import LiveTwin
from worldline.metrics.bootstrap import interval
from worldline.schema import UsageError
from worldline.twin.generate import physics_of
from worldline.twin.scene import LAYOUT, arm_slice

ARMS = [*range(25)[arm_slice("LEFT")], *range(25)[arm_slice("RIGHT")]]
NAMES = tuple(LAYOUT.names[entry] for entry in ARMS)
MOVED = 0.25
"""Least change of an arm's joints until the goal, in rad (root mean square), for a start to be used."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="compression-tiny", help="built-in or run folder, trained on the twin")
    parser.add_argument("--data", default=None, type=Path, help="episodes of the twin with physics; the world's own")
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=32, help="targets that are imagined together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    world = dream(given.world, data=given.data)
    frames = ahead(world)
    options = {"moves": NAMES, "chunks": frames // world.core.forecaster.chunk_frames, "limits": world.core.limits}
    starts, goals = chosen(world, frames, given.starts)
    root, _ = physics_of(world.core.starts.clips.source, 0)
    live = LiveTwin.beside(world.core.forecaster, root=root, drive="command")
    real = DreamEnv(live, starts, **options)
    imagined = DreamEnv(world.core.forecaster, starts, **options)
    many = DreamVectorEnv(world.core.forecaster, starts, num_envs=given.candidates, **options)
    rng = np.random.default_rng(given.seed)
    errors: dict[str, list[tuple[float, float]]] = {"planned": [], "nothing": [], "random": []}
    for number, (picture, state) in enumerate(goals):
        imagined.reset(seed=number, options={"start": number})
        now = imagined.snapshot()
        targets = {
            "planned": planned(many, now, picture, spread(world.core.limits, frames), given.rounds, rng),
            "nothing": now.moment.command[ARMS],
            "random": drawn(now.moment.command, spread(world.core.limits, frames), 1, many, rng)[0],
        }
        for name, target in targets.items():
            real.reset(seed=number, options={"start": number})
            seen = real.step(target)[0]
            errors[name].append(distances(seen, picture, state))
        told = ", ".join(f"{name} {rows[-1][1]:.1f}" for name, rows in errors.items())
        print(f"start {number}: grey levels from the goal: {told}", flush=True)
    tell(errors, [clip.origin.episode for clip in starts.clips])


def ahead(world: DreamEnv) -> int:
    """Video frames of a plan: whole chunks, about a second."""
    chunk = world.core.forecaster.chunk_frames
    return chunk * max(1, round(world.metadata["render_fps"] * world.core.motion.frames / 2 / chunk))


def chosen(world: DreamEnv, frames: int, count: int) -> tuple[ClipStarts, list[tuple[np.ndarray, np.ndarray]]]:
    """Starts of different episodes in which an arm moves, and what the robot saw and measured when it had moved."""
    clips, context = world.core.starts.clips, world.core.forecaster.context_frames
    kept, goals, used = [], [], set()
    for episode, start in clips.windows.tolist():
        end = start + context + frames
        if episode in used or end > clips.source.episodes[episode].length:
            continue
        states = clips.source.read_states(episode, start, end)
        if np.sqrt(np.mean((states[-1] - states[context - 1])[ARMS] ** 2)) < MOVED:
            continue
        clip = clips.source.read(episode, start, end)
        assert clip.frames is not None, "video"
        used.add(episode)
        kept.append(clip)
        goals.append((clip.frames[-1].permute(1, 2, 0).numpy(), states[-1]))
        if len(kept) == count:
            break
    if not kept:
        raise UsageError(
            f"in no episode do the arms move by {MOVED} rad within {frames} frames; give longer ones (--data)"
        )
    return ClipStarts(kept), goals


def spread(limits: StateLimits, frames: int) -> np.ndarray:
    """How far targets are drawn from the present state: a quarter of what the data's joints can do meanwhile."""
    return np.minimum(limits.change * frames, limits.high - limits.low)[ARMS] / 4


def drawn(state: np.ndarray, std: np.ndarray, count: int, env: DreamVectorEnv, rng: np.random.Generator) -> np.ndarray:
    """Targets around the present state."""
    space = env.single_action_space
    return np.clip(rng.normal(state[ARMS], std, (count, len(ARMS))), space.low, space.high).astype(np.float32)


def planned(
    many: DreamVectorEnv, now, picture: np.ndarray, std: np.ndarray, rounds: int, rng: np.random.Generator
) -> np.ndarray:
    """The cross-entropy method: draw targets, imagine all, keep the best eighth, draw around them; the mean at the end.

    Doing nothing is among the first candidates.
    """
    mean, space = now.moment.command[ARMS], many.single_action_space
    targets = drawn(now.moment.command, std, many.num_envs, many, rng)
    targets[0] = mean
    best, least = mean, np.inf
    for _ in range(rounds):
        many.restore([now] * many.num_envs)
        seen = many.step(targets)[0]["frame"].astype(np.float32)
        costs = ((blurred(seen) - blurred(picture[None].astype(np.float32))) ** 2).mean(axis=(1, 2, 3))
        elite = targets[np.argsort(costs)[: max(2, many.num_envs // 8)]]
        if costs.min() < least:
            best, least = targets[costs.argmin()], costs.min()
        mean, deviation = elite.mean(axis=0), elite.std(axis=0) + 0.02
        targets = np.clip(rng.normal(mean, deviation, targets.shape), space.low, space.high).astype(np.float32)
        targets[0] = mean
    return best


def blurred(frames: np.ndarray) -> np.ndarray:
    """Means of four by four pixels, so that what is nearly in place counts as near."""
    n, h, w, c = frames.shape
    return frames.reshape(n, h // 4, 4, w // 4, 4, c).mean(axis=(2, 4))


def distances(seen: dict, picture: np.ndarray, state: np.ndarray) -> tuple[float, float]:
    """From the goal: of the arms' joints in rad, and of the picture in grey levels; both root mean square."""
    joints = np.sqrt(np.mean((seen["state"] - state)[ARMS] ** 2))
    return float(joints), float(np.sqrt(np.mean((seen["frame"].astype(np.float32) - picture) ** 2)))


def tell(errors: dict[str, list[tuple[float, float]]], episodes: list[int]) -> None:
    """Means with intervals, and how much nearer the plan came, start by start."""
    numbers = torch.tensor(episodes)
    values = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in errors.items()}
    for column, unit in enumerate(("rad, joints of the arms", "grey levels, picture")):
        for name, rows in values.items():
            print(f"{name:8} {interval(rows[:, column], numbers).said(unit)}")
        for other in ("nothing", "random"):
            nearer = interval(values[other][:, column] - values["planned"][:, column], numbers)
            print(f"planned is nearer than {other} by {nearer.said(unit)}")


if __name__ == "__main__":
    main()
