"""Environments by name: what `gymnasium.make` and `gymnasium.make_vec` call for the ids that are registered here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium

from worldline import builtin
from worldline.contract import FramePattern
from worldline.envs.limits import StateLimits
from worldline.envs.single import DreamEnv
from worldline.envs.vector import DreamVectorEnv
from worldline.evaluation.held_out import DataChoice, held_out
from worldline.families.card import describe_model
from worldline.families.config import LoadOptions
from worldline.families.load import load_forecaster
from worldline.rundir import built, model_folder
from worldline.schema import TokenGrid

DREAM = "worldline/Dream-v0"
WORLD = "compression-tiny"


def dream(
    world: str | Path = WORLD,
    *,
    data: str | Path | None = None,
    episodes: str | None = None,
    load: Mapping[str, Any] | None = None,
    **options: Any,
) -> DreamEnv:
    """`worldline/Dream-v0`: act inside a world. Raises what `worldline.load` raises, and `UsageError` for other data.

    Args:
        world: a run folder, or the name of a built-in.
        data: where episodes begin; if not given, the run's own validation data (for built-ins: the twin's).
        episodes: which of its episodes, as Python slices and numbers (`:-10`).
        load: options of `worldline.load`, by name.
        options: of `DreamEnv`.
    """
    return DreamEnv(**_parts(world, data, episodes, load), **options)


def dream_vector(
    num_envs: int,
    world: str | Path = WORLD,
    *,
    data: str | Path | None = None,
    episodes: str | None = None,
    load: Mapping[str, Any] | None = None,
    **options: Any,
) -> DreamVectorEnv:
    """The same, many in one batch: `gymnasium.make_vec("worldline/Dream-v0", num_envs=16, world=...)`."""
    return DreamVectorEnv(**_parts(world, data, episodes, load), num_envs=num_envs, **options)


def _parts(
    world: str | Path, data: str | Path | None, episodes: str | None, load: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A world, the contexts of its data, and their limits: what a model was trained on where its card says so."""
    path, options = builtin.resolve(world), built(LoadOptions, load or {})
    loaded = load_forecaster(path, options)
    forecaster, grid = loaded.forecaster, loaded.contract.grid
    block = grid.block if isinstance(grid, TokenGrid) else 1
    window = -(-forecaster.context_frames // block) * block
    choice = DataChoice(data=None if data is None else Path(data), episodes=episodes)
    clips = held_out(path, loaded.contract, choice, pattern=FramePattern(window=window), stride=window)
    statistics = describe_model(model_folder(path, options.checkpoint)).statistics
    limits = StateLimits.of_source(clips.source, sorted(set(clips.windows[:, 0].tolist()))).within(statistics)
    return {"forecaster": forecaster, "starts": clips, "limits": limits, "fps": loaded.contract.fps}


def register() -> None:
    """Make the ids known to Gymnasium; again has no effect."""
    places = {"entry_point": f"{__name__}:dream", "vector_entry_point": f"{__name__}:dream_vector"}
    if DREAM not in gymnasium.registry:
        gymnasium.register(id=DREAM, **places)


# With it, Gymnasium wraps an environment for render modes that it can make of this one (`human`, `rgb_array_list`).
dream.metadata = DreamEnv.metadata  # pyright: ignore[reportFunctionMemberAccess]
