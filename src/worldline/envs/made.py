"""Environments by name: what `gymnasium.make` and `gymnasium.make_vec` call for the ids that are registered here."""

import math
from pathlib import Path
from typing import Any, get_args

import gymnasium

from worldline import builtin
from worldline.checks import refuse_unknown
from worldline.contract import FramePattern
from worldline.envs.core import EnvConfig
from worldline.envs.single import DreamEnv
from worldline.envs.starts import ClipStarts, Starts
from worldline.envs.tasks import REWARDS, SEEDS, Physics, TaskStarts
from worldline.envs.vector import DreamVectorEnv
from worldline.evaluation.held_out import DataChoice, held_out
from worldline.families.card import describe_model
from worldline.families.config import LoadOptions
from worldline.families.load import Loaded, load_forecaster
from worldline.forecasting.live import Drive, LiveTwin
from worldline.rundir import built, model_folder
from worldline.schema import TokenGrid, UsageError
from worldline.twin.scene import LAYOUT
from worldline.twin.simulation import STEPS_PER_SECOND
from worldline.twin.tasks import TASKS

DREAM = "worldline/Dream-v0"
WORLD = "driven-tiny"
TWINS = {"touch": "TwinReach", "push": "TwinPush", "topple": "TwinTopple", "avoid": "TwinAvoid"}
"""Ids of the live twin's environments, `worldline/{id}-v0`, by the task."""
Parts = dict[str, Any]


def dream(world: str | Path = WORLD, **options: Any) -> DreamEnv:
    """`worldline/Dream-v0`: act inside a world. Raises what `worldline.load` raises, and `UsageError` for other data.

    Args:
        world: a run folder, or the name of a built-in.
        options: where episodes begin (`data`, `episodes`, or `task` and `seeds`), `load` with options of
            `worldline.load` by name, and those of `DreamEnv`.

    Episodes begin with clips of the run's own validation data (of a built-in: of the twin's), or of `data`, of all
    `episodes` or of some (Python slices and numbers, `:-10`). With a `task` of the twin they begin where it begins, at
    the starts of `seeds`.
    """
    return DreamEnv(**_world(world, options))


def dream_vector(num_envs: int, world: str | Path = WORLD, **options: Any) -> DreamVectorEnv:
    """The same, many in one batch: `gymnasium.make_vec("worldline/Dream-v0", num_envs=16, world=...)`."""
    return DreamVectorEnv(num_envs=num_envs, **_world(world, options))


def twin(task: str, **options: Any) -> DreamEnv:
    """`worldline/TwinReach-v0` and others: a task of the twin, in MuJoCo; success is what physics says.

    Args:
        task: `touch`, `push`, `topple` or `avoid`.
        options: `drive` (how the robot gets to a state: `command`, by its motors, or `follow`, moved there), `fps`,
            `size` of the pictures, `chunk_frames`, `seeds` of the starts, `reward` (also `distance`: for learning, less
            the distance from hand to object), and those of `DreamEnv`.
    """
    return DreamEnv(**_twin(task, options))


def twin_vector(num_envs: int, task: str, **options: Any) -> DreamVectorEnv:
    """The same, several; their physics run one after the other."""
    return DreamVectorEnv(num_envs=num_envs, **_twin(task, options))


def _world(
    world: str | Path,
    options: Parts,
) -> Parts:
    """A world, where its episodes begin, and the limits of its states: of its training, where its card says them."""
    rest = dict(options)
    place = {name: rest.pop(name, None) for name in ("data", "episodes", "task", "seeds")}
    path, how = builtin.resolve(world), built(LoadOptions, dict(rest.pop("load", None) or {}))
    loaded = load_forecaster(path, how)
    starts = _of_task(loaded, place) if place["task"] is not None else _of_data(path, loaded, place)
    statistics = describe_model(model_folder(path, how.checkpoint)).statistics
    limits = starts.limits().within(statistics)
    return {"forecaster": loaded, "starts": starts, "limits": limits, "fps": loaded.contract.fps} | rest


def _of_data(path: Path, loaded: Loaded, place: Parts) -> Starts:
    """Disjoint contexts of the data that a world is judged on, or of others."""
    if place["seeds"] is not None:
        raise UsageError("seeds are those of the starts of a task; give the task too (task='push')")
    forecaster, grid = loaded.forecaster, loaded.contract.grid
    block = grid.block if isinstance(grid, TokenGrid) else 1
    window = -(-forecaster.context_frames // block) * block
    choice = DataChoice(data=None if place["data"] is None else Path(place["data"]), episodes=place["episodes"])
    return ClipStarts(held_out(path, loaded.contract, choice, pattern=FramePattern(window=window), stride=window))


def _of_task(loaded: Loaded, place: Parts) -> Starts:
    """The starts of a task, as the twin's camera shows them. Raises `UsageError` for a world of another robot."""
    refuse_unknown(place["task"], TASKS, what="task")
    if place["data"] is not None or place["episodes"] is not None:
        raise UsageError("episodes begin at the starts of a task or with clips of data; leave out one of the two")
    contract, size = loaded.contract, loaded.forecaster.image_size
    if contract.state_names != LAYOUT.names or size is None:
        raise UsageError(
            "this world is of another robot than the twin; its episodes begin with clips of data (data=...)"
        )
    return TaskStarts(task=place["task"], fps=contract.fps, size=size, numbers=place["seeds"] or SEEDS)


def _twin(task: str, options: Parts) -> Parts:
    """The live twin, the starts of a task, and the judgement of physics."""
    refuse_unknown(task, TASKS, what="task")
    rest = {**_OF_THE_TWIN, **options}
    drive, fps, size, chunk, seeds, reward = (rest.pop(name) for name in _OF_THE_TWIN)
    refuse_unknown(drive, get_args(Drive), what="drive")
    chunks = EnvConfig(chunks=rest.get("chunks", 1)).chunks
    for name, value, least, most in (("chunk_frames", chunk, 1, 100), ("size", size, 2, 512)):
        if not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"{name} is a whole number from {least} to {most}, not {value!r}")
    if not isinstance(fps, int | float) or not fps > 0:
        raise UsageError(f"fps is a number above 0 that divides {STEPS_PER_SECOND}, not {fps!r}")
    if isinstance(reward, str):
        refuse_unknown(reward, REWARDS, what="reward")
        reward = REWARDS[reward]
    live = LiveTwin(context_frames=8, times=tuple(range(8, 8 + chunk)), chunk_frames=chunk, drive=drive)
    starts = TaskStarts(task=task, fps=float(fps), size=size, numbers=seeds)
    steps = math.ceil(TASKS[task].seconds * fps / (chunk * chunks))
    judges = {"reward": reward, "success": Physics("succeeded"), "failure": Physics("failed")}
    return {"forecaster": live, "starts": starts, "fps": float(fps), "max_episode_steps": steps} | judges | rest


_OF_THE_TWIN: Parts = {
    "drive": "command",
    "fps": 15.0,
    "size": 128,
    "chunk_frames": 1,
    "seeds": SEEDS,
    "reward": "success",
}
"""Options of its own, with their usual values."""


def register() -> None:
    """Make the ids known to Gymnasium; again has no effect."""
    ids: dict[str, Parts] = {DREAM: {}} | {f"worldline/{name}-v0": {"task": task} for task, name in TWINS.items()}
    for name, given in ids.items():
        kind = "twin" if given else "dream"
        if name not in gymnasium.registry:
            places: Parts = {"entry_point": f"{__name__}:{kind}", "vector_entry_point": f"{__name__}:{kind}_vector"}
            gymnasium.register(id=name, kwargs=given, **places)


# With it, Gymnasium wraps an environment for render modes that it can make of this one (`human`, `rgb_array_list`).
dream.metadata = twin.metadata = DreamEnv.metadata  # pyright: ignore[reportFunctionMemberAccess]
