"""A recipe by its name and what overrides it: the arguments that `train` and `plan` share."""

from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from worldline.cli.console import choose
from worldline.recipes.all import RECIPES

Job = TypeVar("Job")


def parse_recipe(job: Callable[..., Job], verb: str, description: str, arguments: list[str]) -> tuple[str | None, Job]:
    """The recipe's name, if it is given, and the job; exits with a message where the name or an option is unknown.

    Args:
        job: dataclass with a field `config`, which the recipe fills, and the verb's own options.
    """
    name = choose(arguments, RECIPES, what="recipe")
    kind: Any = tyro.extras.subcommand_type_from_defaults(
        {name: job(config=recipe()) for name, recipe in RECIPES.items()},
        {name: (recipe.__doc__ or "").splitlines()[0] for name, recipe in RECIPES.items()},
        prefix_names=False,
    )
    return name, tyro.cli(
        kind,
        prog=f"worldline {verb}",
        description=description,
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),
    )
