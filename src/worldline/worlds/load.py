"""Save and load worlds by path: a run folder or a model folder is enough."""

from pathlib import Path
from typing import Any

from worldline.nn.load import load_weights
from worldline.rundir import from_json, model_folder, read_model, to_json
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig

WorldConfig = STTransformerConfig
AnyWorld = STTransformer


def load_world(path: Path) -> tuple[AnyWorld, dict[str, Any]]:
    """Build the world a path describes, in evaluation mode and fp32, on the CPU; with its whole description.

    fp32 because the report found bfloat16 inference to be worse (section 3.2).

    Raises:
        DataError: files are missing or damaged, or weights do not fit the description.
        UsageError: the path is no run or model folder.
    """
    folder = model_folder(path)
    description, weights = read_model(folder)
    world = from_json(WorldConfig, description.get("config"), folder / "model.json").build()
    load_weights(world, weights, folder)
    return world.float().eval(), description


def describe(world: AnyWorld) -> dict[str, Any]:
    """The part of `model.json` that rebuilds a world."""
    return {"config": to_json(WorldConfig, world.config)}
