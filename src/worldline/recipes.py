"""The recipes: functions that return a complete run. Each docstring gives cost and expected result."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from worldline import builtin
from worldline.contract import FramePattern
from worldline.data.augment import AugmentConfig
from worldline.data.clips import DataConfig
from worldline.families.config import TrainConfig
from worldline.judges.inverse_dynamics import InverseDynamicsConfig
from worldline.nn.optimizer import OptimizerConfig
from worldline.nn.states import StateOptions
from worldline.process.flow import FlowConfig
from worldline.tokenizers.fsq_video import FSQVideoConfig
from worldline.tokenizers.wan_vae import WanVAEConfig, WanVAESizes
from worldline.twin.skeleton import twin_skeleton
from worldline.worlds.causal import CausalConfig
from worldline.worlds.st_transformer import STTransformerConfig
from worldline.worlds.wan import WanConfig
from worldline.worlds.wan_weights import BackboneConfig

TWIN_MINI = DataConfig(path=builtin.TWIN_MINI_TRAIN, val_path=builtin.TWIN_MINI_VAL, image_size=64, cache=Path("cache"))
"""The built-in data. Decoded frames and tokens are kept in the working directory."""


TWIN_TABLE = DataConfig(
    path=builtin.TWIN_TABLE, train_episodes=":5", val_episodes="5:", image_size=128, cache=Path("cache")
)
"""The built-in data of worlds that are driven: the nearer view of the table, 15 frames a second, and few of them. More:
`worldline data twin DIR --view table --fps 15 --size 128 --episodes 480`."""


def tokenizer_tiny() -> TrainConfig:
    """Our FSQ video tokenizer, 2.0 M parameters, vocabulary 4,096, 64x64, on the twin. Runs on two CPU cores.

    Every latent frame is encoded alone (`past=0`): a still patch keeps its tokens, and a world can predict them. The
    decoder is larger than the encoder, looks back at two latent frames and sees the frame before a block: what stands
    still comes out better. About 28 minutes on one core. Expected (docs/results.md): a held-out reconstruction of 29.8
    dB, for the built-in, which was trained in four stages (scripts/builtins.sh), the third one on a GPU.
    """
    return TrainConfig(
        model=FSQVideoConfig(
            levels=(8, 8, 8, 8),
            widths=(64, 192),
            blocks=(1, 3),
            past=0,
            decoder_widths=(128, 256),
            decoder_blocks=(2, 4),
            decoder_past=2,
            decoder_sees=True,
        ),
        data=replace(TWIN_MINI, window_stride=3, augment=AugmentConfig.presets["usual"]),
        optimizer=OptimizerConfig(
            lr=2e-3, warmup_steps=100, schedule="cosine", weight_decay=0.01, clip_norm=1.0, ema_decay=0.998
        ),
        batch_size=4,
        steps=5000,
    )


def tokenizer_fine() -> TrainConfig:
    """tokenizer_tiny with a spatial stride of 4: 16x16 tokens of 64x64, and hands and objects stay.

    A world reads four times the tokens. 25 minutes of a core. Expected (docs/beyond_pictures.md): a held-out
    reconstruction of 30 dB, trained on 400 episodes.
    """
    fine = FSQVideoConfig(levels=(8, 8, 8, 8), merges=(), widths=(128,), blocks=(3,), encoder_kernels=(3,))
    return replace(tokenizer_tiny(), model=fine)


def tokenizer_driven() -> TrainConfig:
    """One token grid a frame, for worlds that are driven: 16x16 tokens of 128x128, 1.1 M parameters, vocabulary 4,096.

    A token is of one frame alone, so that a step of a world is one frame, and nothing that moves fast smears. On the
    twin's table at 15 frames a second. 30 minutes of a core. Expected: docs/driven.md.
    """
    model = FSQVideoConfig(
        levels=(8, 8, 8, 8),
        patch=(1, 4),
        widths=(64, 192),
        blocks=(1, 3),
        encoder_kernels=(3, 3),
        block_frames=1,
    )
    tiny = tokenizer_tiny()
    return replace(tiny, model=model, data=replace(TWIN_TABLE, window_stride=1), batch_size=16)


# --- the compression track ---


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


def compression_revontuli_direct() -> TrainConfig:
    """compression_revontuli that predicts its three future grids in one pass: for the challenge's cross-entropy.

    Weights, training and work per forecast are the same, in one pass instead of three. Never run by us; what it is
    worth at small sizes: docs/beyond_tokens.md.
    """
    recipe = compression_revontuli()
    return replace(recipe, model=replace(recipe.model, direct=True))


def compression_tiny() -> TrainConfig:
    """The same world with 4 layers of width 128 on tokens of twin-mini at 64x64. Runs on two CPU cores.

    It is shown where the robot will be, as a map over the grid, which the twin's skeleton draws; other robots, and
    other views of the twin, take `compression_any`. States also enter every block by adaLN, and tokens begin near their
    codes. About 20 minutes on one core. Expected (docs/results.md), for the built-in, which was trained for longer and
    on 1,600 episodes: 27.2 dB at the last of 17 frames, 8.1 dB above a copy of the last frame seen.
    """
    vectors = compression_any()
    return replace(vectors, model=replace(vectors.model, conditioning="adaln+map", skeleton=twin_skeleton("room")))


def compression_any() -> TrainConfig:
    """compression_tiny without a skeleton, for a robot whose geometry is not known: states enter as vectors alone.

    By adaLN in every block, and tokens begin near their codes: both are options beside the report, and learnt far
    faster (docs/log_first.md). 28 minutes on one core. Expected, for 13,000 steps on 400 episodes of the twin: 24.8 dB
    at the last of 17 frames, 5.7 dB above a copy of the last frame seen (docs/states.md).
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


def compression_report_tiny() -> TrainConfig:
    """compression_any with the states as the report has them: added to the embeddings of the tokens."""
    vectors = compression_any()
    return replace(vectors, model=replace(vectors.model, conditioning="add"))


def compression_tiny_unconditional() -> TrainConfig:
    """compression_tiny without the states: the baseline that shows what conditioning on the robot is worth."""
    vectors = compression_any()
    return replace(vectors, model=replace(vectors.model, unconditional=True))


def driven_tiny() -> TrainConfig:
    """A causal world to drive in, 2.6 M parameters: 128x128, one frame a step, 15 a second. Runs on two CPU cores.

    Every frame costs one pass over its own grid. It is shown where the twin's arms will be in the picture, which its
    skeleton says; other robots take `driven_any`. 60 minutes of a core, and then a stretch on its own roll-outs. The
    built-in `driven-tiny` is larger, 4.5 M, and took five minutes of a GPU: `scripts/driven.sh`, docs/driven.md.
    """
    return TrainConfig(
        model=CausalConfig(skeleton=twin_skeleton()),
        data=replace(TWIN_TABLE, window_stride=4),
        tokenizer=builtin.TOKENIZER_DRIVEN,
        optimizer=OptimizerConfig(
            lr=2e-3, warmup_steps=100, schedule="cosine", weight_decay=0.05, clip_norm=1.0, ema_decay=0.998
        ),
        batch_size=4,
        steps=4000,
        start_offsets=1,
    )


def driven_any() -> TrainConfig:
    """driven_tiny without a skeleton, for a robot whose geometry is not known: states enter as vectors alone."""
    driven = driven_tiny()
    return replace(driven, model=replace(driven.model, skeleton=None))


def driven_unconditional() -> TrainConfig:
    """driven_tiny without the states: what driving is compared with."""
    driven = driven_any()
    return replace(driven, model=replace(driven.model, unconditional=True))


# --- the sampling track ---


def vae_tiny() -> TrainConfig:
    """Wan's causal video VAE with a stride of 8 and 12 channels at 64x64, on the twin. Runs on two CPU cores.

    About 46 minutes on one core. Expected (docs/results.md), for the built-in, trained on 400 episodes, and its decoder
    then on 1,600, at last with LPIPS in its loss and the first frame in view: a held-out reconstruction of 29.1 dB over
    21 frames, and an LPIPS of 0.13 in the last of them.
    """
    return TrainConfig(
        model=WanVAEConfig(sizes=WanVAESizes.presets["tiny"]),
        data=replace(TWIN_MINI, pattern=FramePattern(window=33, stride=4), window_stride=3),
        optimizer=OptimizerConfig(
            lr=2e-3, warmup_steps=100, schedule="cosine", weight_decay=0.0, clip_norm=1.0, ema_decay=0.998
        ),
        batch_size=4,
        steps=2600,
        validation_clips=32,
    )


def sampling_revontuli() -> TrainConfig:
    """The report's sampling world: Wan2.2 TI2V-5B, LoRA rank 32, robot states by adaLN-Zero. Needs GPUs and weights.

    17 frames and 77 states -> the frame at t = 76, at 512x512 (report, section 2). Batch 1,024, constant 4e-4, 23,000
    steps: 36 h on 32 B200 there; never trained by us. Expected, for the mean of 20 samples: 24.88 dB on validation with
    20 steps. Give `--weights` (Wan2.2's folder), `--text` (see `worldline text`) and `--data.path`; `worldline plan
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


def sampling_revontuli_few() -> TrainConfig:
    """sampling_revontuli, told how far it steps: it learns to draw a sample in 1, 2, 4 or 8 calls (`--steps 4`).

    A quarter of the examples learn shortcuts (Frans et al. 2024), from real data alone: two more forward passes for one
    clip in four. Never run by us; `worldline plan sampling_revontuli_few` counts it. Measured: docs/few_calls.md, tiny.
    """
    return _few(sampling_revontuli())


def sampling_tiny() -> TrainConfig:
    """The same world with 5 layers of width 160 on latents of twin-mini at 64x64. Runs on two CPU cores.

    It is shown where the robot is in each latent frame, as a map, which the twin's skeleton draws; other robots, and
    other views of the twin, take `sampling_any`. About 15 minutes on one core. Expected (docs/results.md), for the
    built-in, which was trained for longer and on 1,600 episodes: 27.0 dB 60 frames ahead, in one network call.
    """
    vectors = sampling_any()
    return replace(vectors, model=replace(vectors.model, conditioning="adaln+map", skeleton=twin_skeleton("room")))


def sampling_any() -> TrainConfig:
    """sampling_tiny without a skeleton, for a robot whose geometry is not known: states enter as the report has them.

    About 34 minutes on one core. Expected, trained on 400 episodes of the twin: the mean of 20 samples 60 frames ahead
    3.7 dB above a copy of the last frame seen (docs/states.md).
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


def sampling_few_tiny() -> TrainConfig:
    """sampling_tiny, told how far it steps: it learns to draw a sample in 1, 2, 4 or 8 calls (`--steps 4`).

    Best begun from a world without shortcuts (`--init-from sampling-tiny`). A step costs a quarter more. Expected:
    docs/few_calls.md.
    """
    return _few(sampling_tiny())


def _few(recipe: TrainConfig) -> TrainConfig:
    """The recipe of a world over latents, with shortcuts."""
    return replace(recipe, model=replace(recipe.model, flow=FlowConfig(shortcut=0.25)))


# --- to judge forecasts ---


def inverse_dynamics_tiny() -> TrainConfig:
    """Reads states from frames, to say whether a forecast shows what was commanded; 0.46 M parameters, on the twin.

    `worldline evaluate WORLD --inverse-dynamics RUN` uses it. About 17 minutes on one core. Expected
    (docs/inverse_dynamics.md), trained on 400 episodes, which is the built-in: the 14 joints of the arms are read with
    an R^2 of 0.6 to 0.98, most of the others are not.
    """
    colours = AugmentConfig(brightness=0.1, contrast=0.1, saturation=0.1)  # a crop would move what is measured
    return TrainConfig(
        model=InverseDynamicsConfig(),
        data=replace(TWIN_MINI, window_stride=4, augment=colours),
        optimizer=OptimizerConfig(
            lr=1.5e-3, warmup_steps=100, schedule="cosine", weight_decay=0.05, clip_norm=1.0, ema_decay=0.998
        ),
        batch_size=16,
        steps=8000,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        tokenizer_tiny,
        tokenizer_fine,
        tokenizer_driven,
        compression_tiny,
        compression_any,
        compression_report_tiny,
        compression_tiny_unconditional,
        driven_tiny,
        driven_any,
        driven_unconditional,
        compression_revontuli,
        compression_revontuli_direct,
        vae_tiny,
        sampling_tiny,
        sampling_any,
        sampling_few_tiny,
        sampling_revontuli,
        sampling_revontuli_cfg,
        sampling_revontuli_few,
        inverse_dynamics_tiny,
    )
}
