"""What a run would need, before it is started: parameters, memory of each GPU, FLOP, and settings that fit a card.

The model of the configuration is built on the `meta` device and one step is followed there (`footprint.py`), so
neither weights nor data nor a GPU are needed. What is counted and what estimated: `Plan.notes`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from worldline.data.latents import looks_like_latents
from worldline.files import read_json
from worldline.nn.load import changing_state
from worldline.rundir import from_json, model_folder
from worldline.schema import Batch, UsageError
from worldline.tokenizers.fsq_video import FSQVideoConfig
from worldline.tokenizers.wan_vae import WanVAEConfig
from worldline.tokenizers.wan_vae_keys import read_config, vae_files
from worldline.training.config import ModelConfig, TrainConfig
from worldline.training.footprint import Pass, empty_batch, follow
from worldline.training.ranks import Ranks, shards_of
from worldline.training.validate import PREVIEW_CLIPS
from worldline.worlds.st_transformer import STTransformerConfig
from worldline.worlds.wan import WanConfig

CARDS_GB = (24.0, 40.0, 80.0, 141.0)
RESERVE = 0.1
"""Share of a card to leave free for what is not counted: see `footprint.py`."""
SAMPLED = (1, 3, 8)
"""Clips at which a pass is followed; in between and beyond, straight lines."""
DEPTHS = (2, 3)
"""Blocks with which a deep model is followed; every further one adds the same."""
MAX_GPUS = 1024


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each GPU at the worst moment of a training step, by what holds them."""

    weights: int
    """Parameters and buffers: this GPU's share."""
    gathered: int
    """Over several GPUs: what lies outside the blocks, and three blocks, whole (at work, on the way, its copy)."""
    tokenizer: int
    gradients: int
    """Counted as there all along, as they are from a batch's second piece on."""
    moments: int
    average: int
    activations: int
    """Waiting for the backward pass."""
    working: int
    """The most that is alive besides, for a moment."""

    @property
    def total(self) -> int:
        return self.resident + self.gathered + self.activations + self.working

    @property
    def resident(self) -> int:
        """What stays from step to step."""
        return self.weights + self.tokenizer + self.gradients + self.moments + self.average


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A way to run the same training."""

    gpus: int
    accumulate: int
    gradient_checkpointing: bool
    clips: int
    """In the largest piece on one GPU."""
    memory: Memory
    encoding: int
    """Bytes in use while a piece's frames are encoded; 0 where latents are read."""
    validation: int
    """Bytes in use during validation, at most."""

    @property
    def needed(self) -> int:
        return max(self.memory.total, self.encoding, self.validation)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What fits a GPU of this size: without and with gradient checkpointing, each with the fewest pieces."""

    gb: float
    fits: bool
    """As configured."""
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class Flop:
    """Of one clip: matrix products, convolutions and attention; a multiplication and an addition are two."""

    encoding: int
    """Of the VAE, where frames are encoded in every step."""
    forward: int
    backward: int
    """Gradients of inputs, and of weights that are trained."""
    recomputed: int

    @property
    def total(self) -> int:
        return self.encoding + self.forward + self.backward + self.recomputed


@dataclass(frozen=True, kw_only=True)
class Plan:
    kind: str
    parameters: int
    trained: int
    tokenizer_parameters: int
    clip: dict[str, tuple[int, ...]]
    """What the model reads of a clip."""
    batch_size: int
    steps: int
    """0 where the data decide."""
    autocast: bool
    setting: Setting
    """As configured."""
    otherwise: Setting | None
    """The same with gradient checkpointing on instead of off, or off instead of on; None where there is none."""
    flop: Flop
    cards: tuple[Card, ...]
    notes: tuple[str, ...]


def plan(
    config: TrainConfig, *, gpu_gb: float | None = None, gpus: int = 1, vae: WanVAEConfig | None = None
) -> Plan:
    """Count what a run needs on each of `gpus` GPUs, and find what fits cards of `gpu_gb`, or of the usual sizes.

    Args:
        vae: the VAE behind a world over latents, where neither `config.tokenizer` is there to say it nor the world's
            channels are those of Wan2.2's.

    Raises:
        UsageError: the batch does not divide among the GPUs or into pieces, or sizes are missing or do not fit.
    """
    counted = _Counted(config, vae)
    chosen = counted.setting(gpus, config.accumulate, counted.checkpointing)
    cards = (gpu_gb,) if gpu_gb else CARDS_GB
    pass_ = counted.train(1, counted.checkpointing)
    forward_again = pass_.backward_flop - counted.train(1, False).backward_flop
    return Plan(
        kind=config.model.kind,
        parameters=sum(p.numel() for p in counted.model.parameters()),
        trained=sum(p.numel() for p in counted.model.parameters() if p.requires_grad),
        tokenizer_parameters=sum(p.numel() for p in counted.vae.parameters()) if counted.vae else 0,
        clip={name: tuple(tensor.shape[1:]) for name, tensor in counted.batch(1).items()},
        batch_size=config.batch_size,
        steps=config.steps,
        autocast=counted.autocast,
        setting=chosen,
        otherwise=counted.setting(gpus, config.accumulate, not counted.checkpointing) if counted.optional else None,
        flop=Flop(
            encoding=counted.encode(1).forward_flop if counted.encodes else 0,
            forward=pass_.forward_flop,
            backward=pass_.backward_flop - forward_again,
            recomputed=forward_again,
        ),
        cards=tuple(counted.card(gb, chosen, gpus) for gb in cards),
        notes=_notes(counted),
    )
