"""Bytes and FLOP of the passes of a run, from its configuration, on the `meta` device (`meter.py`).

Sizes that depend on data or other files are taken from the configuration: picture size, frames of a window, kinds of
states, token grids and vocabulary. A deep model is run with three and with four blocks and with a few clips, because
every further block or clip adds the same; other numbers are extrapolated linearly.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldline.contract import ModelConfig
from worldline.families.config import TrainConfig
from worldline.families.family import WorldKind, empty_batch, kind_of
from worldline.formats.encoded import looks_like_latents
from worldline.planning.meter import Pass, follow
from worldline.schema import Batch

DEPTHS = (3, 4)
"""Blocks with which a deep model is run. With two, a backward pass does not yet reach its full memory."""
Work = Callable[[Any, Batch], Tensor]
"""What a pass does with a model and a batch."""


class Footprint:
    """The model of a run and its passes; each pass is run when it is first needed.

    Raises:
        UsageError: a size is in neither configuration nor files, or sizes do not fit each other.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.kind = config, kind_of(config.model)
        self.autocast = config.autocast and config.device != "cpu"
        self.contract = self.kind.expected(config, config.model)
        self.model = self.build(config.model)
        self.vae: Any = None
        if (encoder := self.kind.encoder(config, config.model)) is not None:
            self.vae = kind_of(encoder).skeleton(encoder, None).eval().requires_grad_(False)
        self._passes: dict[tuple[Any, ...], Pass] = {}

    @property
    def encodes(self) -> bool:
        """Whether every step encodes its frames: a world over latents, on video, without a cache."""
        path = self.config.data.path
        has_latents = isinstance(path, Path) and looks_like_latents(path)
        return self.vae is not None and self.config.data.cache is None and not has_latents

    @property
    def checkpoints(self) -> bool | None:
        """Whether gradient checkpointing is on; None where the model has none to switch on."""
        return getattr(self.config.model, "gradient_checkpointing", None)

    def build(self, model: ModelConfig) -> nn.Module:
        """A model of the run's kind and data, without memory."""
        return self.kind.skeleton(model, self.contract)

    def batch(self, clips: int, over: str | None = None) -> Batch:
        """What the model's loss reads of so many clips, or what lies before it, without values."""
        return empty_batch(over or self.kind.over, self.contract, clips)

    # --- passes; without autocast but for training and what it encodes ---

    def train(self, clips: int, *, checkpointing: bool | None) -> Pass:
        """Forward and backward pass of one piece of a batch."""
        sampled = self.kind.clips_followed(self.config.model, self.contract)
        around = next((pair for pair in pairwise(sampled) if clips < pair[1]), sampled[-2:])
        ends = (clips, clips) if clips in sampled else around
        return on_line(clips, *((n, self._followed("train", n, _loss, backward=bool(checkpointing))) for n in ends))

    def encode(self, clips: int, *, autocast: bool) -> Pass:
        """The VAE's encoding of frames."""
        return self._vae_pass("encode", lambda n: self.batch(n, "frames").frames, clips, autocast=autocast)

    def decode(self, clips: int) -> Pass:
        """The VAE's decoding of whole clips."""
        return self._vae_pass("decode", lambda n: self.batch(n).latents, clips, autocast=False)

    def validate(self) -> Pass:
        """The largest of validation's passes: the loss, its figures, frames encoded, a preview made."""
        wanted = self.config.validation_clips
        clips = max(1, -(-wanted // max(1, wanted // 8)))  # as `validate` cuts them
        passes = [self._followed("loss", clips, _loss), self._followed("figures", clips, self._figures)]
        if self.vae is not None:
            passes += [self.forecast(self.kind.psnr_clips), self.decode(self.kind.psnr_clips)]
            if self.encodes:
                passes.append(self.encode(clips, autocast=False))
        return max(passes, key=lambda found: found.peak)

    def forecast(self, rows: int) -> Pass:
        """A world's generation of so many futures at once, without decoding."""
        assert isinstance(self.kind, WorldKind), "asked of a world only"
        return self._followed("forecast", rows, self.kind.roll_out)

    def code(self, clips: int) -> Pass:
        """Encoding and decoding by a tokenizer whose recipe this is: blocks of frames or whole clips."""
        return self._followed("code", clips, _there_and_back)

    def _figures(self, model: nn.Module, batch: Batch) -> Tensor:
        return sum(self.kind.figures(model, batch).values(), torch.zeros((), device="meta"))

    def _followed(self, name: str, clips: int, work: Work, *, backward: bool | None = None) -> Pass:
        """A pass over so many clips, at the depth of the model.

        Args:
            backward: with a backward pass, and whether that is checkpointed; None for none.
        """
        key, config = (name, clips, backward), self.config.model
        if key not in self._passes:
            if backward is not None and self.checkpoints is not None:
                config: Any = replace(config, gradient_checkpointing=backward)  # pyright: ignore[reportCallIssue]
            depth = self.kind.depth(config) or 0
            deep = depth > DEPTHS[-1]
            configs = [self.kind.with_depth(config, d) for d in DEPTHS] if deep else [config]
            found = [self._run(one, clips, work, backward is not None) for one in configs]
            self._passes[key] = on_line(depth, *zip(DEPTHS, found, strict=True)) if deep else found[0]
        return self._passes[key]

    def _run(self, config: ModelConfig, clips: int, work: Work, backward: bool) -> Pass:
        model, batch = self.build(config).train(backward), self.batch(clips)
        give_gradients(model)
        with torch.set_grad_enabled(backward):
            autocast = self.autocast and backward
            return follow(lambda: work(model, batch), tensors_of(model), autocast=autocast, backward=backward)

    def _vae_pass(self, method: str, given: Callable[[int], Any], clips: int, *, autocast: bool) -> Pass:
        assert self.vae is not None, "asked of a world over latents only"
        run = getattr(self.vae, method)
        ends = []
        for n in (clips, clips) if clips <= 2 else (1, 2):
            key = (method, n, autocast)
            if key not in self._passes:
                x = given(n)
                self._passes[key] = follow(lambda x=x: run(x), tensors_of(self.vae), autocast=autocast, backward=False)
            ends.append((n, self._passes[key]))
        return on_line(clips, *ends)


def _loss(model: Any, batch: Batch) -> Tensor:
    return model.loss(batch, torch.Generator().manual_seed(0))[0]


def _there_and_back(model: Any, batch: Batch) -> Tensor:
    assert batch.frames is not None, "a tokenizer reads frames"
    return model.decode(model.encode(batch.frames.clone()))


def on_line(x: int, first: tuple[int, Pass], second: tuple[int, Pass]) -> Pass:
    """The pass at `x`, on the straight line through those at two other numbers."""
    (x0, low), (x1, high) = first, second
    ends = {field.name: (getattr(low, field.name), getattr(high, field.name)) for field in fields(Pass)}
    return Pass(**{name: max(0, a + (b - a) * (x - x0) // max(1, x1 - x0)) for name, (a, b) in ends.items()})


def give_gradients(model: nn.Module) -> None:
    """Gradients of all trained parameters, as they exist from the second piece of a step on."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)


def tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
