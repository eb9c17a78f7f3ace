"""Save and load worlds by path: a run folder or a model folder is enough."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from worldline.identity import Identity, Part, refuse_another
from worldline.nn.load import load_weights
from worldline.rundir import from_json, model_folder, read_model, to_json
from worldline.schema import UsageError
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig
from worldline.worlds.wan import WanConfig, WanWorld
from worldline.worlds.wan_weights import fingerprint_backbone, load_backbone

WorldConfig = Annotated[STTransformerConfig | WanConfig, Field(discriminator="kind")]
AnyWorld = STTransformer | WanWorld


def load_world(
    path: Path, *, weights: Path | None = None, allow_different: Collection[Part] = ()
) -> tuple[AnyWorld, dict[str, Any]]:
    """Build the world a path describes, in evaluation mode, on the CPU; with its whole description.

    What was trained is fp32, because the report found bfloat16 inference to be worse (section 3.2). A frozen backbone
    stays in the type it was trained on.

    Args:
        weights: folder of the pretrained backbone, if not where the checkpoint says (worlds with adapters only).
        allow_different: `backbone`, where it may be another one on purpose.

    Raises:
        DataError: files are missing or damaged, or weights do not fit the description.
        UsageError: the path is no run or model folder, or the backbone is absent or another one.
    """
    folder = model_folder(path)
    description, tensors = read_model(folder)
    config: STTransformerConfig | WanConfig = from_json(WorldConfig, description.get("config"), folder / "model.json")
    world: AnyWorld
    if isinstance(config, WanConfig) and config.lora is not None:
        world = config.build(_backbone(config, description, weights, folder, allow_different))
    elif weights is not None:
        raise UsageError(f"{folder} holds all weights of its world; --weights would change nothing")
    else:
        world = config.build()
    load_weights(world, tensors, folder)
    return world.eval(), description


def _backbone(
    config: WanConfig, description: dict[str, Any], weights: Path | None, folder: Path, allowed: Collection[Part]
) -> Any:
    place = weights or Path(description["base"]["path"])
    if not place.exists():
        raise UsageError(
            f"the backbone under the adapters in {folder} was at {place} when they were trained, and is not there now; "
            "give its new place (--weights DIR)"
        )
    made, found = Identity(**description["identity"]), Identity(backbone=fingerprint_backbone(place))
    refuse_another(made, found, what=f"the world in {folder}", places={"backbone": place}, allowed=allowed)
    return load_backbone(place, config.backbone)


def describe(world: AnyWorld) -> dict[str, Any]:
    """The part of `model.json` that rebuilds a world."""
    return {"config": to_json(WorldConfig, world.config)}
