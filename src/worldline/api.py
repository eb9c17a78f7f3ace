"""The functions of a notebook, which `import worldline` gives; each verb of the command line calls the same ones.

Paths may be names of built-ins (`compression-tiny`, `twin-mini-val`, ...). A wrong value or name is a `UsageError`,
damaged data are a `DataError`; both say what was expected, what was found and what to do.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from worldline import builtin
from worldline.checks import texts_of
from worldline.evaluation.evaluate import EvaluateOptions
from worldline.evaluation.evaluate import evaluate as evaluated
from worldline.evaluation.result import Evaluation
from worldline.families.config import TrainConfig
from worldline.families.family import refuse_idle
from worldline.families.load import Loaded, load_forecaster
from worldline.families.sample import LoadOptions
from worldline.forecasts import ForecastOptions, write_forecasts
from worldline.formats.open import OpenOptions
from worldline.formats.source import Source
from worldline.launch import ResumeOptions, go_on, new_run, start
from worldline.ranks import Ranks
from worldline.recipes import RECIPES
from worldline.rundir import built, to_json
from worldline.schema import UsageError
from worldline.training.loop import TrainResult

Place = TypeVar("Place")
Given = ParamSpec("Given")
Options = TypeVar("Options")
Result = TypeVar("Result")


def _taking(
    kind: Callable[Given, Options],
) -> Callable[[Callable[[Place, Options], Result]], Callable[Concatenate[Place, Given], Result]]:
    """Let a function take its options by name, with the signature and the documentation of their dataclass."""

    def wrap(function: Callable[[Place, Options], Result]) -> Callable[Concatenate[Place, Given], Result]:
        @wraps(function)
        def by_name(place: Place, *none: Given.args, **given: Given.kwargs) -> Result:
            return function(place, built(kind, given))

        first, _ = inspect.signature(function).parameters.values()
        options = inspect.signature(kind).parameters.values()
        signature = inspect.signature(function).replace(parameters=[first, *options])
        by_name.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue] - what help() shows
        texts = [f"    {name}: {text}" for name, text in texts_of(kind).items()]  # pyright: ignore[reportArgumentType]
        by_name.__doc__ = "\n".join([f"{inspect.getdoc(function)}\n\nOptions:", *texts])
        return by_name

    return wrap


@_taking(OpenOptions)
def open_data(path: str | Path | Sequence[str | Path], options: OpenOptions) -> Source:
    """Open a data set on disk, 1X v2.0 or LeRobot, or several of one layout as one. Decodes nothing yet.

    `data.episodes` lists the episodes; `data.read(episode, start, stop)` gives a `Clip` with frames (uint8
    `f 3 h w`) or tokens (int64 `l h w`), and states (float32 `t s`, raw units).

    Raises:
        DataError: no known format, or an unfinished, incomplete or inconsistent folder.
        UsageError: a camera, column or state name that the data set does not have, or data sets that differ.
    """
    return options.open(builtin.resolve_all(path))


@_taking(LoadOptions)
def load(run: str | Path, options: LoadOptions) -> Loaded:
    """Load the world of a run with its tokenizer, ready to forecast.

    `world.forecast(frames, states)` takes the context, uint8 `b c 3 h w`, and the states of context and horizon,
    float32 `b t s`, and gives a `Forecast` whose frames are uint8 `b k t 3 h w`, with `k` samples.

    Raises:
        UsageError: there is no such run, it holds no world, or its tokenizer is missing or another one.
        DataError: files are missing or damaged.
    """
    return load_forecaster(builtin.resolve(run), options)


@_taking(ForecastOptions)
def forecast(run: str | Path, options: ForecastOptions) -> list[Path]:
    """Forecast clips of a data set and write each as a video, pictures or arrays; give the paths.

    Raises:
        UsageError: the run holds no world, an option would change nothing, or the data do not fit the world.
        DataError: data or checkpoint are not what they should be.
    """
    with Ranks.start(options.device) as ranks:
        return write_forecasts(Path(run), options, ranks=ranks)


@_taking(EvaluateOptions)
def evaluate(run: str | Path, options: EvaluateOptions) -> Evaluation:
    """Evaluate a run on held-out data, beside the baselines, and write metrics.json and forecasts.npz.

    `evaluation.rows` are forecaster, baselines and ceilings by id; `row.metrics["psnr_db_last"]` is a mean with its
    interval. `text_table(evaluation)`, of `worldline.report.text`, shows all of it.

    Raises:
        UsageError: an option would change nothing, or run, data and compared models do not belong together.
        DataError: data or checkpoint are not what they should be.
    """
    with Ranks.start(options.device) as ranks:
        return evaluated(Path(run), options, ranks=ranks)


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
    name = recipe if isinstance(recipe, str) else recipe.model.kind
    if name not in RECIPES and isinstance(recipe, str):
        raise UsageError(f"there is no recipe {name!r}; there are: {', '.join(RECIPES)}")
    config = RECIPES[recipe]() if isinstance(recipe, str) else recipe
    if changes:
        changed = built(TrainConfig, _merged(to_json(TrainConfig, config), changes))
        refuse_idle(changed, config)
        config = changed
    return start(config, Path(out) if out else new_run(name))


@_taking(ResumeOptions)
def resume(run: str | Path, options: ResumeOptions) -> TrainResult:
    """Go on with a run from its latest checkpoint, as if it had never stopped.

    Raises:
        UsageError: there is no run, something else of it would change, or what it was made with is another now.
        DataError: data, weights or checkpoints are not what they should be.
    """
    return go_on(Path(run), options)


def _merged(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, with those of `changes` in place of theirs, part by part. One length replaces the other."""
    lengths = {"steps": "epochs", "epochs": "steps"}
    found = content | {lengths[name]: 0 for name in changes if name in lengths and lengths[name] not in changes}
    for name, value in changes.items():
        inner = found.get(name)
        found[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return found
