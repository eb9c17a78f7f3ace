"""The recipes by name."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from worldline.families.config import TrainConfig
from worldline.families.family import idle
from worldline.recipes.compression import compression_revontuli, compression_tiny, compression_tiny_unconditional
from worldline.recipes.sampling import sampling_revontuli, sampling_revontuli_cfg, sampling_tiny
from worldline.recipes.tokenizer import tokenizer_tiny, vae_tiny
from worldline.schema import UsageError

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        tokenizer_tiny,
        compression_tiny,
        compression_tiny_unconditional,
        compression_revontuli,
        vae_tiny,
        sampling_tiny,
        sampling_revontuli,
        sampling_revontuli_cfg,
    )
}


def refuse_idle(config: TrainConfig, recipe: TrainConfig) -> None:
    """Refuse what is set otherwise than in the recipe and would change nothing. Raises `UsageError`."""
    reasons = idle(config)
    for place in _differing(config, recipe):
        for field, reason in reasons.items():
            if place == field or (field.endswith(".") and place.startswith(field)):
                raise UsageError(f"--{place.replace('_', '-')} would change nothing: {reason}")


def _differing(one: Any, other: Any, prefix: str = "") -> Iterator[str]:
    """The places in which two configurations differ."""
    for field in fields(one):
        mine, yours = getattr(one, field.name), getattr(other, field.name)
        if is_dataclass(mine) and type(mine) is type(yours):
            yield from _differing(mine, yours, f"{prefix}{field.name}.")
        elif mine != yours:
            yield prefix + field.name
