"""Recipes for the compression track: the report's run, and the same classes with smaller numbers."""

from dataclasses import replace
from pathlib import Path

from worldline import builtin
from worldline.data.clips import DataConfig
from worldline.families.config import TrainConfig
from worldline.nn.optimizer import OptimizerConfig
from worldline.recipes.tokenizer import TWIN_MINI
from worldline.worlds.st_transformer import STTransformerConfig


def compression_revontuli() -> TrainConfig:
    """The report's world: 24 layers, width 512, vocabulary 64,000, 80 epochs of 1X v2.0 tokens. Needs a cluster.

    Every number the report states (sections 3.1 and 3.2): 8 heads, T=5, dropout 0.1, fused AdamW 0.9/0.95, weight
    decay 0.05 on matrices, 8e-4 to 0 linearly after 2,000 steps, batch 160, bfloat16 autocast, all of it under 17 h
    on 32 B200 there. Expected: top-500 CE 4.92 on validation, 6.64 on the test set (the report's scorer, which is
    not public). Point `--data.path` at `train_v2.0` and `--data.val-path` at `val_v2.0`.
    """
    return TrainConfig(
        model=STTransformerConfig(),
        data=DataConfig(path=Path("train_v2.0"), val_path=Path("val_v2.0"), window_stride=34),
        optimizer=OptimizerConfig(),
        batch_size=160,
        epochs=80.0,
        workers=8,
        evaluate_every=2000,
        checkpoint_every=2000,
    )


def compression_tiny() -> TrainConfig:
    """The same world with 4 layers of width 128 on tokens of twin-mini at 64x64. Runs on two CPU cores.

    States enter every block by adaLN and tokens begin near their codes: both are options beside the report, and learnt
    far faster (docs/log.md). 28 minutes on one core. Expected (docs/results.md), for 13,000 steps on 400 episodes,
    which is the built-in: 24.8 dB at the last of 17 frames, 5.7 dB above a copy of the last frame seen.
    """
    return TrainConfig(
        model=STTransformerConfig(
            width=128,
            heads=4,
            layers=4,
            dropout=0.0,  # a quarter of a CPU step, and the runs are too short to overfit
            conditioning="adaln",
            code_levels=(8, 8, 8, 8),
            normalise_states=True,
        ),
        data=replace(TWIN_MINI, window_stride=17),
        tokenizer=builtin.TOKENIZER_TINY,
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=100, clip_norm=1.0, ema_decay=0.995),
        batch_size=4,
        steps=5000,
        start_offsets=4,
    )


def compression_tiny_unconditional() -> TrainConfig:
    """compression_tiny without the states: the baseline that shows what conditioning on the robot is worth."""
    tiny = compression_tiny()
    return replace(tiny, model=replace(tiny.model, unconditional=True))
