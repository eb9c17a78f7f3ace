"""Recipes for the sampling track: the report's run, and the same classes with smaller numbers."""

from dataclasses import replace
from pathlib import Path

from worldline import builtin
from worldline.contract import FramePattern
from worldline.data.clips import DataConfig
from worldline.families.config import TrainConfig
from worldline.nn.adaln import StateOptions
from worldline.nn.optimizer import OptimizerConfig
from worldline.recipes.tokenizer import TWIN_MINI
from worldline.worlds.wan import WanConfig
from worldline.worlds.wan_weights import BackboneConfig


def sampling_revontuli() -> TrainConfig:
    """The report's sampling world: Wan2.2 TI2V-5B, LoRA rank 32, robot states by adaLN-Zero. Needs GPUs and weights.

    17 frames and 77 states -> the frame at t = 76, at 512x512 (report, section 2). Batch 1,024, constant 4e-4, 23,000
    steps: 36 h on 32 B200 there; never run by us. Expected, for the mean of 20 samples: 24.88 dB on validation with 20
    steps. Give `--weights` (Wan2.2's folder), `--text` (see `worldline text`) and `--data.path`; `worldline plan
    sampling_revontuli` says what fits a GPU, and `--accumulate` makes it fit.
    """
    return TrainConfig(
        model=WanConfig(block_bias=True, gradient_checkpointing=True),
        data=DataConfig(
            path=Path("train_v2.0_raw"),
            val_path=Path("val_v2.0_raw"),
            image_size=512,
            pattern=FramePattern.report_77(),
            window_stride=8,
        ),
        optimizer=OptimizerConfig(lr=4e-4, warmup_steps=0, schedule="constant", beta2=0.999, weight_decay=0.01),
        batch_size=1024,
        steps=23_000,
        workers=8,
        validation_clips=16,
    )


def sampling_revontuli_cfg() -> TrainConfig:
    """sampling_revontuli with states dropped for one clip in ten, for guidance on states (the report's best row).

    Expected, 20 samples of 100 steps at guidance 1.0: 25.53 dB on validation, 23.0 dB on the test set (tables 1, 2).
    """
    recipe = sampling_revontuli()
    return replace(recipe, model=replace(recipe.model, states=StateOptions(null=True), drop_states=0.1))


def sampling_tiny() -> TrainConfig:
    """The same world with 5 layers of width 160 on latents of twin-mini at 64x64. Runs on two CPU cores.

    About 30 minutes on one core. Expected (docs/results.md): the mean of 20 samples 60 frames ahead 3.8 dB above a copy
    of the last frame seen, trained on 400 episodes, which is the built-in.
    """
    return TrainConfig(
        model=WanConfig(
            backbone=BackboneConfig.presets["tiny"],
            lora=None,
            states=StateOptions(hidden=128, null=True, normalise=True),
            drop_states=0.1,
            text_length=1,
        ),
        data=replace(TWIN_MINI, pattern=FramePattern.report_77(), window_stride=4),
        tokenizer=builtin.VAE_TINY,
        optimizer=OptimizerConfig(
            lr=1e-3,
            warmup_steps=200,
            schedule="cosine",
            beta2=0.99,
            weight_decay=0.01,
            clip_norm=1.0,
            ema_decay=0.999,
        ),
        batch_size=8,
        steps=4000,
        validation_clips=24,
    )
