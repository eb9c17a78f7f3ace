"""The functions of a notebook, which `import worldline` gives; the command line calls the same ones.

Paths may be names of built-ins (`compression-tiny`, `twin-mini-val`, ...). A wrong value or name is a `UsageError`,
damaged data are a `DataError`; both say what was expected, what was found and what to do.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from tyro.constructors import MISSING, ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from worldline import forecasts
from worldline.builtin import located
from worldline.checks import refuse_unknown
from worldline.evaluation.evaluate import EvaluateOptions
from worldline.evaluation.evaluate import evaluate as evaluated
from worldline.families.card import Part
from worldline.families.config import LoadOptions, TrainConfig, read_config
from worldline.families.family import refuse_idle
from worldline.families.load import load_forecaster
from worldline.formats.open import OpenOptions, open_source
from worldline.nn.kinematics import skeleton_drawn_by
from worldline.planning.plan import refuse_too_little
from worldline.progress import Steps, say
from worldline.ranking.rank import RankOptions
from worldline.ranking.rank import rank as ranked
from worldline.ranks import Ranks
from worldline.recipes import RECIPES
from worldline.rundir import RunDir, built, to_json
from worldline.schema import UsageError
from worldline.training import loop
from worldline.training.loop import TrainResult
from worldline.twin.skeleton import unseen_view

Place = TypeVar("Place")
Given = ParamSpec("Given")
Options = TypeVar("Options")
Result = TypeVar("Result")


def _taking(
    name: str, kind: Callable[Given, Options], function: Callable[[Place, Options], Result]
) -> Callable[Concatenate[Place, Given], Result]:
    """A function that takes its options by name, with the signature of their dataclass."""

    @wraps(function)
    def by_name(place: Place, *none: Given.args, **given: Given.kwargs) -> Result:
        if none:
            raise UsageError(f"{name} takes its options by name, and {none[0]!r:.80} has none; help({name}) lists them")
        return function(place, built(kind, given))

    signature, options = inspect.signature(function), inspect.signature(kind).parameters.values()
    signature = signature.replace(parameters=[*list(signature.parameters.values())[:1], *options])
    by_name.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue] - what help() shows
    by_name.__name__ = by_name.__qualname__ = name
    _KINDS[by_name] = kind
    return by_name


_KINDS: dict[Callable[..., Any], Any] = {}
"""The options that functions take by name, where help does not tell of them yet."""


def told(name: str) -> Any:
    """A function of this module, with its options in its help: reading their texts takes long, and no verb needs it."""
    function = globals()[name]
    if kind := _KINDS.pop(function, None):
        texts = [f"    {field.name}: {text_of(field)}" for field in fields_of(kind, MISSING)]
        function.__doc__ = "\n".join([f"{inspect.getdoc(function)}\n\nOptions:", *texts])
    return function


def fields_of(kind: Any, usual: Any) -> list[StructFieldSpec]:
    """The fields of a dataclass as the command line sees them: each with its type and usual value.

    Its text is made when it is asked for, out of the source file: a command that asks for no help need not wait for it.
    """
    spec = ConstructorRegistry.get_struct_spec(StructTypeInfo.make(kind, usual, in_union_context=False))
    assert isinstance(spec, StructConstructorSpec), "made of a dataclass"
    return [replace(one, helptext=partial(text_of, one)) for one in spec.fields]


def text_of(field: StructFieldSpec) -> str:
    """What the source file says of a field, on one line."""
    text = field.helptext() if callable(field.helptext) else field.helptext
    return " ".join((text or "").split())


open_data = _taking("open_data", OpenOptions, open_source)
load = _taking("load", LoadOptions, load_forecaster)
forecast = _taking("forecast", forecasts.ForecastOptions, forecasts.forecast)
evaluate = _taking("evaluate", EvaluateOptions, evaluated)
rank = _taking("rank", RankOptions, ranked)


# --- training ---


@dataclass(frozen=True, kw_only=True)
class Moved:
    """New places of the same data."""

    path: Path | tuple[Path, ...] | None = None
    """New place of the training data."""
    val_path: Path | tuple[Path, ...] | None = None
    """New place of the validation data."""
    cache: Path | None = None
    """Another folder for decoded frames, tokens and latents; filled again where it has none."""


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Fields that a resumed run may change."""

    steps: int | None = None
    """Another length of the run, for example to continue a finished one. Schedules end at the new last step."""
    epochs: float | None = None
    """The same, in passes over the training clips."""
    data: Moved = field(default_factory=Moved)
    tokenizer: Path | None = None
    """New place of the tokenizer. Everything that has moved must still be the same."""
    weights: Path | None = None
    """New place of the pretrained backbone."""
    text: Path | None = None
    """New place of the encoded prompt."""
    allow_different: tuple[Part, ...] = ()
    """Parts that may differ on purpose from those the run started with."""
    max_minutes: float | None = None
    device: str | None = None
    """As before if not given; so are workers."""
    workers: int | None = None


def train(recipe: str | TrainConfig, *, out: str | Path | None = None, **changes: Any) -> TrainResult:
    """Train a model by a recipe into a run folder.

    Args:
        recipe: its name (see `worldline train --help`), or a whole configuration.
        out: the run folder; a new one below `runs/` if not given.
        changes: fields in place of the recipe's own, parts as dictionaries: `steps=500, data={"path": "MY_ROBOT"}`.

    Raises:
        UsageError: no such recipe or field, a value that cannot be or would change nothing, or a folder in use.
        DataError: data or weights are not what they should be.
    """
    if isinstance(recipe, str):
        refuse_unknown(recipe, RECIPES, what="recipe")
    name = recipe if isinstance(recipe, str) else recipe.model.kind
    config = RECIPES[recipe]() if isinstance(recipe, str) else recipe
    if changes:
        changed = built(TrainConfig, _merged(to_json(TrainConfig, config), changes))
        refuse_idle(changed, config)
        config = changed
    config = replace(config, tokenizer=config.tokenizer or config.weights)
    return _train(config, Path(out) if out else new_run(name), resume=False)


def go_on(run: str | Path, options: ResumeOptions) -> TrainResult:
    """Go on with a run from its latest checkpoint, as if it had never stopped.

    Raises:
        UsageError: there is no run, something else of it would change, or what it was made with is another now.
        DataError: data, weights or checkpoints are not what they should be.
    """
    found = read_config(RunDir(Path(run)))
    named = {name: getattr(options, name) for name in ("tokenizer", "weights", "text", "device", "workers")}
    given, moved = ({name: one for name, one in all.items() if one is not None} for all in (named, vars(options.data)))
    if options.weights and not options.tokenizer and found.tokenizer == found.weights:
        given["tokenizer"] = options.weights  # one folder holds both
    if options.steps is not None or options.epochs is not None:
        given |= {"steps": options.steps or 0, "epochs": options.epochs or 0.0}
    given |= {"max_minutes": options.max_minutes, "allow_different": options.allow_different}
    config = replace(found, data=replace(found.data, **moved), **given)
    return _train(config, Path(run), resume=True)


resume = _taking("resume", ResumeOptions, go_on)


def new_run(name: str) -> Path:
    """A run folder that is not there yet."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def other_lengths(given: Collection[str]) -> set[str]:
    """Which length of a recipe is 0 where some options are given: one way to give a length replaces the other."""
    lengths = {"steps", "epochs"}
    return lengths - set(given) if lengths & set(given) else set()


def _merged(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, with those of `changes` in place of theirs, part by part."""
    found = content | dict.fromkeys(other_lengths(changes), 0)
    for name, value in changes.items():
        inner = found.get(name)
        found[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return found


def _train(config: TrainConfig, run: Path, *, resume: bool) -> TrainResult:
    """Train where the memory that it needs is free. Names of built-ins become paths."""
    config = located(config, Path())
    with Ranks.start(config.device) as ranks:
        run = ranks.agreed(run)  # the default name holds the time, and processes start at different seconds
        say(f"run folder: {run}")
        _tell_of_another_view(config)
        device = ranks.device(config.device)
        with ranks.first():
            if config.check_memory and ranks.writes and device.type == "cuda":
                refuse_too_little(config, free=torch.cuda.mem_get_info(device)[0], gpus=ranks.world_size)
        return loop.train(config, run, resume=resume, ranks=ranks, report=Steps())


def _tell_of_another_view(config: TrainConfig) -> None:
    """Names of states cannot tell the twin from a robot with the same joints and another camera."""
    skeleton, path = skeleton_drawn_by(config.model), config.data.path
    if skeleton is None:
        return
    for folder in (path,) if isinstance(path, Path) else path:
        if folder.exists() and (view := unseen_view(skeleton, folder)):
            say(
                f"{folder}: nothing here says that the pictures show the twin ({view} view), where the recipe draws "
                "the robot's map. If they show anything else, the map misleads: take a recipe without it "
                "(compression_any, sampling_any, driven_any; docs/states.md)"
            )
