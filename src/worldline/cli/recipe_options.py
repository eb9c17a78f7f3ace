"""A recipe by its name, and the options that override it: the arguments of `train` and `plan`.

A field of a recipe is given with its value, `--model.block-bias True`; a verb's own switch stands alone, `--json`.
"""

from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from worldline.checks import texts_of
from worldline.cli.console import choose, options_of
from worldline.families.config import TrainConfig
from worldline.families.family import idle, kind_of
from worldline.recipes.all import RECIPES
from worldline.schema import UsageError

Job = TypeVar("Job")
Recipe = Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
"""How a job holds the recipe that it is given."""
LENGTHS = {"--steps": "--epochs", "--epochs": "--steps"}
"""Giving the length of a run in one way replaces a recipe's own in the other."""
PYTHON_ONLY = ("autocast", "log_every", "keep_checkpoints", "model.kind", "optimizer.beta1", "optimizer.beta2")
"""Fields of every recipe that are no options, since hardly anybody changes them; models have some of their own.

A notebook sets them: `worldline.train(RECIPE, optimizer={"beta2": 0.99})`.
"""


def parse_recipe(job: type[Job], verb: str, description: str, arguments: list[str]) -> tuple[str, Job]:
    """The recipe's name and the job; exits with a message where help is asked for or an option is unknown.

    Args:
        job: dataclass with a field `config`, which the recipe fills, and the verb's own options.

    Raises:
        UsageError: there is no recipe of that name, or none is given.
    """
    name = choose(arguments, RECIPES, what="recipe")
    if name is None:
        if not _asked(arguments):
            raise UsageError(f"give a recipe: {', '.join(RECIPES)}")
        _say_recipes(verb, description)
        raise SystemExit(0)
    rest = [argument for at, argument in enumerate(arguments) if at != arguments.index(name)]
    recipe = RECIPES[name]()
    for given, other in LENGTHS.items():
        if _given(given, rest) and not _given(other, rest):
            rest = [*rest, other, "0"]
    with options_of(TrainConfig):
        return name, tyro.cli(
            job,
            default=job(config=recipe),  # pyright: ignore[reportCallIssue]
            prog=f"worldline {verb} {name}",
            description=RECIPES[name].__doc__,
            args=rest,
            config=(tyro.conf.AvoidSubcommands,),
            registry=_constructors(recipe, asked=_asked(rest)),
        )


def _asked(arguments: list[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _say_recipes(verb: str, description: str) -> None:
    lines = [f"  {name:31} {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()]
    options = f"worldline {verb} RECIPE --help shows a recipe's options."
    print(f"usage: worldline {verb} RECIPE [OPTIONS]\n\n{description}\nrecipes:", *lines, "", options, sep="\n")


def _constructors(recipe: TrainConfig, *, asked: bool) -> ConstructorRegistry:
    """How tyro makes a recipe's parts, of those fields that are options.

    Args:
        asked: for help, which does not show what would change nothing; where it is given, the reason is said later.
    """
    registry, places = ConstructorRegistry(), dict(_places(recipe))
    hidden = {*PYTHON_ONLY, *kind_of(recipe.model).python_only}
    hidden |= {name.rstrip(".") for name in idle(recipe)} if asked else set()

    @registry.primitive_rule
    def preset(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        """Sizes that go together, of a class with `presets`, are one option that takes the name of a preset."""
        presets: dict[str, Any] | None = getattr(info.type, "presets", None)
        if presets is None:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{" + ",".join(presets) + "}",
            instance_from_str=lambda words: presets[words[0]],
            is_instance=lambda value: isinstance(value, type(next(iter(presets.values())))),
            str_from_instance=lambda value: [next((n for n, one in presets.items() if one == value), "other sizes")],
            choices=tuple(presets),
        )

    @registry.struct_rule
    def part(info: StructTypeInfo) -> StructConstructorSpec | None:
        if (place := places.get(info.type)) is None or hasattr(info.type, "presets"):
            return None
        texts, default = texts_of(info.type), info.default
        found = [
            StructFieldSpec(name, hint, getattr(default, name), texts.get(name))
            for name, hint in get_type_hints(info.type, include_extras=True).items()
            if place + name not in hidden and hasattr(default, name)
        ]
        return StructConstructorSpec(lambda **given: replace(default, **given), tuple(found))

    return registry


def _places(config: Any, place: str = "") -> Any:
    """The class of every part of a configuration, and what its fields' options begin with."""
    yield type(config), place
    for field in fields(config):
        if is_dataclass(part := getattr(config, field.name)):
            yield from _places(part, f"{place}{field.name}.")


def _given(option: str, arguments: list[str]) -> bool:
    return any(argument.partition("=")[0].replace("_", "-") == option for argument in arguments)
