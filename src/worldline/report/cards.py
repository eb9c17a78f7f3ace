"""Model card and data card, from what a run folder holds. What it does not hold is said, never guessed."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from worldline.contract import Contract
from worldline.evaluation.result import Evaluation
from worldline.files import read_json, reading
from worldline.formats.source import JOINED
from worldline.report.tables import duration, tokenizer_of
from worldline.rundir import ROW_SCALES, RunDir, from_json
from worldline.schema import LatentGrid, TokenGrid

UNKNOWN = "not recorded"
NOT_A_LICENCE = "not recorded: worldline keeps no licence of data or weights; look where they came from"
SHORT = 12
"""Digits of a hash that people compare."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The newest checkpoint of a run, as its model.json and the header of its weights say."""

    content: dict[str, Any]
    contract: Contract | None
    parameters: int
    """Numbers in its weights file; frozen weights under adapters are not in it."""

    @staticmethod
    def newest(run: Path) -> "Model | None":
        """Of a run folder or a model folder; None without any. Raises `DataError` where all there are damaged."""
        folder = run if (run / "model.json").is_file() else RunDir(run).latest()
        if folder is None:
            return None
        content, weights = read_json(folder / "model.json"), folder / "model.safetensors"
        contract = content.get("contract")
        return Model(
            content=content,
            contract=None if contract is None else from_json(Contract, contract, folder / "model.json"),
            parameters=_numbers(weights),
        )


class Fact(NamedTuple):
    """A line of a card."""

    label: str
    value: str


def model_card(
    model: Model | None,
    config: dict[str, Any] | None,
    environment: dict[str, Any] | None,
    evaluation: Evaluation | None,
    seconds: float | None,
) -> list[Fact]:
    """What was trained, how large it is, with what, for how long and where.

    Args:
        seconds: of training, if its log says so.
    """
    found = model.content.get("config") if model else None
    kept = found if isinstance(found, dict) else (config or {}).get("model")
    about = kept if isinstance(kept, dict) else {}
    facts = [Fact("kind", f"{about.get('kind', UNKNOWN)}{_family(about)}")]
    facts += _sizes(model)
    facts += [Fact("forecasts", _window(model, about)), Fact("tokens or latents", _grid(model))]
    named = tokenizer_of(evaluation) if evaluation else UNKNOWN
    facts += [Fact("tokenizer", named.removeprefix("tokenizer ")), *_hyperparameters(config)]
    facts.append(Fact("training time", UNKNOWN if seconds is None else duration(seconds)))
    for name in ("worldline", "commit", "torch", "cpu", "device"):
        facts.append(Fact(name, str((environment or {}).get(name, UNKNOWN))))
    facts.append(Fact("licence of the weights", NOT_A_LICENCE))
    return facts


def data_card(model: Model | None, config: dict[str, Any] | None, evaluation: Evaluation | None) -> list[Fact]:
    """What it was trained and evaluated on: names, identities, sizes, split, rate, states by kind and name."""
    data, content = (config or {}).get("data"), model.content if model else {}
    given: dict[str, Any] = data if isinstance(data, dict) else {}
    facts = [Fact("training data", _name(given.get("path"))), Fact("episodes", _episodes(given))]
    recordings = (content.get("trained_on") or {}).get("contents")
    facts.append(Fact("recordings", f"{len(recordings)}" if recordings else UNKNOWN))
    count = (content.get("statistics") or {}).get("count")
    facts.append(Fact("rows of states", f"{count:,}" if isinstance(count, int) else UNKNOWN))
    identity = content.get("identity") or {}
    facts += [Fact(f"identity: {part}", str(value)[:SHORT]) for part, value in identity.items()]
    facts += _recorded(model.contract if model else None)
    if evaluation is not None:
        held, size = evaluation.data, evaluation.data.image_size
        pixels = f", {size[0]} x {size[1]} px" if size else ""
        facts.append(Fact("evaluated on", f"{held.name} ({held.kind}{pixels})"))
        facts.append(Fact("clips", f"{held.num_clips} of {held.num_episodes} episodes; {held.split}"))
    facts.append(Fact("licence", NOT_A_LICENCE))
    return facts


def _recorded(contract: Contract | None) -> list[Fact]:
    """How the data were recorded and read."""
    if contract is None:
        return [Fact("rate, pictures, states", "not recorded: the run folder has no checkpoint")]
    kinds = Counter(contract.state_kinds)
    names, many = ", ".join(contract.state_names), ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    pixels = "as stored" if contract.image_size is None else f"{contract.image_size} x {contract.image_size} px"
    pattern = contract.pattern
    every = "every frame" if pattern.stride == 1 else f"every {pattern.stride}th frame"
    return [
        Fact("format", contract.source_kind),
        Fact("rate", f"{contract.fps:g} frames per second; {every} of windows of {pattern.window}"),
        Fact("pictures", f"{pixels}{f', camera {contract.camera}' if contract.camera else ''}"),
        Fact("conditioned on", contract.conditioning),
        Fact("states", f"{len(contract.state_names)} ({many}): {names}"),
    ]


def _family(about: dict[str, Any]) -> str:
    """What kind of conditioning a world has, where its configuration says so."""
    if about.get("unconditional"):
        return ", without states"
    return f", states by {about['conditioning']}" if "conditioning" in about else ""


def _sizes(model: Model | None) -> list[Fact]:
    if model is None:
        return [Fact("parameters", "not recorded: the run folder has no checkpoint")]
    base = "; frozen weights under it are not counted" if model.content.get("base") else ""
    return [
        Fact("parameters", f"{model.parameters:,}{base}"),
        Fact("checkpoint", f"step {model.content.get('step', UNKNOWN)}"),
    ]


def _window(model: Model | None, about: dict[str, Any]) -> str:
    """Context and horizon, in the model's own grids or latent frames."""
    for unit in ("grids", "latents"):
        context, horizon = about.get(f"context_{unit}"), about.get(f"horizon_{unit}")
        if context and horizon:
            named = {"grids": "token grids", "latents": "latent frames"}[unit]
            return f"{horizon} {named} from {context}"
    if model and model.contract and "context_grids" not in about:
        grid = model.contract.grid
        # Tokens are of a block, also where a clip of the training is a pair of them; a judge has no grid.
        count = grid.block if isinstance(grid, TokenGrid) else len(model.contract.pattern.frames)
        return f"no forecast, it {'encodes' if grid else 'reads'} {count} frame{'s' * (count > 1)} at once"
    return UNKNOWN


def _grid(model: Model | None) -> str:
    grid = model.contract.grid if model and model.contract else None
    if isinstance(grid, TokenGrid):
        return f"{grid.height} x {grid.width} tokens of {grid.vocab_size:,}, one grid for {grid.temporal_stride} frames"
    if isinstance(grid, LatentGrid):
        return f"{grid.channels} x {grid.height} x {grid.width} latents, one frame for {grid.temporal_stride}"
    return UNKNOWN


def _hyperparameters(config: dict[str, Any] | None) -> list[Fact]:
    """Those that a reader asks for first; the page shows all of them elsewhere."""
    found, optimizer = config or {}, (config or {}).get("optimizer")
    rate = optimizer.get("lr", UNKNOWN) if isinstance(optimizer, dict) else UNKNOWN
    length = f"{found['epochs']:g} epochs" if found.get("epochs") else f"{found.get('steps', UNKNOWN)} steps"
    return [Fact("training", f"batch {found.get('batch_size', UNKNOWN)}, {length}, learning rate {rate}")]


def _episodes(data: dict[str, Any]) -> str:
    if not data:
        return UNKNOWN
    said = f"training {_all(data.get('train_episodes'))}, validation {_all(data.get('val_episodes'))}"
    said += f" of {_name(data['val_path'])}" if data.get("val_path") else ""
    excluded = ", ".join(map(str, data.get("exclude_episodes") or ()))
    return f"{said}; excluded of {_name(data.get('path'))}: {excluded}" if excluded else said


def _all(episodes: object) -> str:
    return "all" if episodes == ":" else str(UNKNOWN if episodes is None else episodes)


def _name(path: object) -> str:
    """The last part of a path, or of each of several: where data lie on a machine is nobody's business."""
    paths = path if isinstance(path, list) else [path]
    return JOINED.join(Path(str(one)).name for one in paths) if path else UNKNOWN


def _numbers(weights: Path) -> int:
    """How many numbers a safetensors file holds, from its header alone."""
    fix = "Copy the model folder again, or retrain."
    whole = reading(weights, SafetensorError, expected="a safetensors file", fix=fix)
    with whole, safe_open(weights, "np") as file:
        names = [name for name in file.keys() if not name.endswith(ROW_SCALES)]  # noqa: SIM118 - it is no dictionary
        shapes = [file.get_slice(name).get_shape() for name in names]
    return sum(math.prod(shape) for shape in shapes)
