"""A recipe by its name and what overrides it: the arguments that `train` and `plan` share.

A field of a recipe is given with its value, `--model.block-bias True`; a verb's own switch stands alone, `--json`.
An optional part goes with `--model.lora None` and comes with any of its own fields, `--model.lora.rank 8`.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

from worldline.cli.console import choose, options_of
from worldline.families.config import TrainConfig
from worldline.recipes.all import RECIPES

Job = TypeVar("Job")
Recipe = Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
"""How a job holds the recipe that it is given."""
LENGTHS = {"--steps": "--epochs", "--epochs": "--steps"}
"""Giving the length of a run in one way replaces a recipe's own in the other."""

_PRESETS = tyro.constructors.ConstructorRegistry()


@_PRESETS.primitive_rule
def _preset(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Sizes that go together, of a class with `presets`, are one option that takes the name of a preset."""
    presets: dict[str, Any] | None = getattr(info.type, "presets", None)
    if presets is None:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(presets) + "}",
        instance_from_str=lambda words: presets[words[0]],
        is_instance=lambda value: isinstance(value, type(next(iter(presets.values())))),
        str_from_instance=lambda value: [next((name for name, one in presets.items() if one == value), "other sizes")],
        choices=tuple(presets),
    )


def parse_recipe(job: Callable[..., Job], verb: str, description: str, arguments: list[str]) -> tuple[str | None, Job]:
    """The recipe's name, if it is given, and the job; exits with a message where the name or an option is unknown.

    Args:
        job: dataclass with a field `config`, which the recipe fills, and the verb's own options.
    """
    name = choose(arguments, RECIPES, what="recipe")
    recipes = {known: recipe() for known, recipe in RECIPES.items()}
    if name is not None:
        recipes[name], arguments = _with_parts(recipes[name], arguments)
    for given, other in LENGTHS.items():
        if _given(given, arguments) and not _given(other, arguments):
            arguments = [*arguments, other, "0"]
    kind: Any = tyro.extras.subcommand_type_from_defaults(
        {known: job(config=recipe) for known, recipe in recipes.items()},
        {known: (recipe.__doc__ or "").splitlines()[0] for known, recipe in RECIPES.items()},
        prefix_names=False,
    )
    with options_of(TrainConfig):
        return name, tyro.cli(
            kind,
            prog=f"worldline {verb}",
            description=description,
            args=arguments,
            config=(tyro.conf.AvoidSubcommands,),
            registry=_PRESETS,
        )


def _given(option: str, arguments: list[str]) -> bool:
    return any(argument.partition("=")[0].replace("_", "-") == option for argument in arguments)


def _with_parts(config: Any, arguments: list[str], prefix: str = "--") -> tuple[Any, list[str]]:
    """The configuration with its optional parts there or absent as the arguments say, and the arguments that are left.

    Whether a part is there decides which options exist, so this comes before they are parsed.
    """
    changes, hints = {}, get_type_hints(type(config))
    for field in fields(config):
        value, option = getattr(config, field.name), prefix + field.name.replace("_", "-")
        kinds: Any = get_args(hints[field.name])
        part = next((kind for kind in kinds if is_dataclass(kind)), None) if type(None) in kinds else None
        absent = _without(arguments, option) if part else arguments
        if len(absent) < len(arguments):
            changes[field.name], arguments = None, absent
        elif part and value is None and any(a.startswith(f"{option}.") for a in arguments):
            changes[field.name] = part()  # pyright: ignore[reportCallIssue]
        elif is_dataclass(value):
            changes[field.name], arguments = _with_parts(value, arguments, f"{option}.")
    return replace(config, **changes), arguments


def _without(arguments: list[str], option: str) -> list[str]:
    """The arguments without `option None`."""
    for at, argument in enumerate(arguments):
        if argument == f"{option}=None":
            return arguments[:at] + arguments[at + 1 :]
        if arguments[at : at + 2] == [option, "None"]:
            return arguments[:at] + arguments[at + 2 :]
    return arguments
