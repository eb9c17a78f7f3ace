"""A short run of each kind of recipe."""

from dataclasses import replace
from pathlib import Path

from builders import SMALL_TOKENIZER, SMALL_WORLD, small_tokenizer
from latent_builders import SMALL_VAE, SMALL_WAN, small_vae

from worldline.contract import FramePattern
from worldline.data.clips import DataConfig
from worldline.families.card import ModelCard
from worldline.families.config import TrainConfig
from worldline.nn.optimizer import OptimizerConfig
from worldline.rundir import write_model

NINE = FramePattern(window=9)


def run_of(root: Path, kind: str, **data: object) -> TrainConfig:
    """A run of each kind of recipe: two that train on frames, two that first turn frames into something else."""
    tokenizer = None
    if kind == "tokens":
        tokenizer = root.parent / "tokenizer"
        _write_tokenizer(tokenizer)
    if kind == "latents":
        tokenizer = small_vae(root.parent / "vae")[0]
    model = {"tokenizer": SMALL_TOKENIZER, "vae": SMALL_VAE, "tokens": SMALL_WORLD, "latents": SMALL_WAN}[kind]
    config = DataConfig(path=root, image_size=16, pattern=NINE, window_stride=9, cache=root.parent / "cache")
    return TrainConfig(
        model=model,
        data=replace(config, **data),
        optimizer=OptimizerConfig(),
        batch_size=2,
        tokenizer=tokenizer,
        steps=1,
        device="cpu",
        validation_clips=2,
    )


def _write_tokenizer(folder: Path) -> None:
    folder.mkdir()
    tokenizer = small_tokenizer()
    write_model(folder, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
