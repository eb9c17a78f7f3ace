"""The recipes by name."""

from collections.abc import Callable

from worldline.families.config import TrainConfig
from worldline.recipes.compression import compression_revontuli, compression_tiny, compression_tiny_unconditional
from worldline.recipes.sampling import sampling_revontuli, sampling_revontuli_cfg, sampling_tiny
from worldline.recipes.tokenizer import tokenizer_tiny, vae_tiny

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
