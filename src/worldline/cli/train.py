"""`worldline train RECIPE`: train a model into a run folder; and a recipe's options, which `plan` takes too.

A field of a recipe is given with its value, `--model.block-bias True`; a verb's own switch stands alone, `--json`.
"""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from worldline import api
from worldline.checks import texts_of
from worldline.cli.console import choose, options_of, show
from worldline.families.config import TrainConfig
from worldline.families.family import idle, kind_of, parts_of, refuse_idle
from worldline.progress import say
from worldline.recipes import RECIPES
from worldline.rundir import to_json
from worldline.schema import UsageError
from worldline.training.loop import TrainResult

AnyJob = TypeVar("AnyJob")
Recipe = Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
"""How a job holds the recipe that it is given."""
PYTHON_ONLY = ("autocast", "log_every", "keep_checkpoints", "model.kind", "optimizer.beta1", "optimizer.beta2")
"""Fields of every recipe that are no options, since hardly anybody changes them; models have some of their own.

A notebook sets them: `worldline.train(RECIPE, optimizer={"beta2": 0.99})`.
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Train a model by a recipe; its options override it. A notebook can change every field (`worldline.train`).

    Examples:
      worldline train tokenizer_tiny --out runs/tokenizer
      worldline train compression_tiny --tokenizer runs/tokenizer --out runs/world
      worldline train compression_tiny --data.path MY_ROBOT --data.val-path None --data.train-episodes :-10 \\
          --data.val-episodes -10: --tokenizer runs/tokenizer
      worldline train --resume runs/world
      worldline train --resume runs/world --steps 9000 --data.path NEW_PLACE
      torchrun --nproc-per-node 8 --no-python worldline train compression_revontuli --data.path train_v2.0 \\
          --data.val-path val_v2.0
    """

    config: Recipe
    out: Path | None = None
    """Run folder; a new one below `runs/` if not given."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def carry_out(self) -> None:
        _show(api.train(self.config, out=self.out), as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Resume(api.ResumeOptions):
    """A run to resume. It needs no recipe, because the run folder contains the complete configuration."""

    run: tyro.conf.Positional[Path]
    json: bool = False

    def carry_out(self) -> None:
        with options_of():
            _show(api.go_on(self.run, self), as_json=self.json)


def parse(arguments: list[str]) -> Job | Resume:
    if arguments[:1] == ["--resume"]:
        return tyro.cli(Resume, prog="worldline train --resume", args=arguments[1:])
    name, job = parse_recipe(Job, "train", arguments)
    refuse_idle(job.config, RECIPES[name]())
    return replace(job, out=job.out or api.new_run(name))


def _show(result: TrainResult, *, as_json: bool) -> None:
    if result.left_out:
        say(f"{len(result.left_out)} listed episodes were left out, for example: {result.left_out[0]}")
    if result.stopped:
        say(f"stopped by SIGTERM, with a checkpoint; to go on: worldline train --resume {result.run}")
    lines = [f"{result.run}: step {result.step} of {result.total_steps} after {result.seconds:.0f} s"]
    lines += [f"  {name:24} {value:.5g}" for name, value in result.figures.items()]
    done = to_json(TrainResult, result) | {"left_out": len(result.left_out)}
    show(done, text="\n".join(lines), as_json=as_json)


# --- the options of a recipe ---


def parse_recipe(job: type[AnyJob], verb: str, arguments: list[str]) -> tuple[str, AnyJob]:
    """The recipe's name and the job; exits with a message where help is asked for or an option is unknown.

    Args:
        job: dataclass with a field `config`, which the recipe fills, and the verb's own options; it says what it does.

    Raises:
        UsageError: there is no recipe of that name, or none is given.
    """
    name, asked = choose(arguments, RECIPES, what="recipe"), not {"-h", "--help"}.isdisjoint(arguments)
    if name is None:
        if not asked:
            raise UsageError(f"give a recipe: {', '.join(RECIPES)}")
        print(f"usage: worldline {verb} RECIPE [OPTIONS]\n\n{inspect.getdoc(job)}\n\nrecipes:")
        print(*(f"  {name:31} {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()), sep="\n")
        print(f"\nworldline {verb} RECIPE --help shows a recipe's options.")
        raise SystemExit(0)
    rest = [argument for at, argument in enumerate(arguments) if at != arguments.index(name)]
    given = {argument.partition("=")[0][2:] for argument in rest if argument.startswith("--")}
    for length in api.other_lengths(given):
        rest += [f"--{length}", "0"]
    recipe = RECIPES[name]()
    parts = {type(part): start for start, part in parts_of(recipe)}
    hidden = {*PYTHON_ONLY, *kind_of(recipe.model).python_only}
    if asked:  # help does not show what would change nothing; where it is given, the reason is said later
        hidden |= {place.rstrip(".") for place in idle(recipe)}
    with options_of(parts):
        return name, tyro.cli(
            job,
            default=job(config=recipe),  # pyright: ignore[reportCallIssue]
            prog=f"worldline {verb} {name}",
            description=RECIPES[name].__doc__,
            args=rest,
            config=(tyro.conf.AvoidSubcommands,),
            registry=_constructors(parts, hidden),
        )


def _constructors(parts: dict[type, str], hidden: set[str]) -> ConstructorRegistry:
    """How tyro makes a recipe's parts, of those fields that are options.

    Sizes that go together, of a class with `presets`, are one option that takes the name of a preset.
    """
    registry = ConstructorRegistry()

    @registry.struct_rule
    def part(info: StructTypeInfo) -> StructConstructorSpec | None:
        if (place := parts.get(info.type)) is None:
            return None
        texts, default, found, presets = texts_of(info.type), info.default, [], {}
        for name, hint in get_type_hints(info.type, include_extras=True).items():
            if place + name in hidden or not hasattr(default, name):
                continue
            value = getattr(default, name)
            if named := getattr(hint, "presets", None):
                presets[name] = named if value in named.values() else {"as in the recipe": value, **named}
                hint: Any = Literal[tuple(presets[name])]
                value = next(preset for preset, sizes in presets[name].items() if sizes == value)
            found.append(StructFieldSpec(name, hint, value, texts.get(name)))

        def made(**given: Any) -> Any:
            return replace(default, **given | {name: named[given[name]] for name, named in presets.items()})

        return StructConstructorSpec(made, tuple(found))

    return registry
