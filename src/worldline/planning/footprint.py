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
    def can_checkpoint(self) -> bool:
        """Whether the model has gradient checkpointing to switch on and off."""
        return hasattr(self.config.model, "gradient_checkpointing")

    @property
    def checkpoints(self) -> bool:
        return getattr(self.config.model, "gradient_checkpointing", False)

    @property
    def image_size(self) -> int:
        return self.contract.image_size or 0

    def build(self, model: ModelConfig) -> nn.Module:
        """A model of the run's kind and data, without memory."""
        return self.kind.skeleton(model, self.contract)

    def batch(self, clips: int, over: str | None = None) -> Batch:
        """What the model's loss reads of so many clips, or what lies before it, without values."""
        return empty_batch(over or self.kind.over, self.contract, clips)

    # --- passes ---

    def train(self, clips: int, *, checkpointing: bool) -> Pass:
        """Forward and backward pass of one piece of a batch."""
        sampled = self.kind.clips_followed(self.config.model, self.contract)
        around = next((pair for pair in pairwise(sampled) if clips < pair[1]), sampled[-2:])
        ends = (clips, clips) if clips in sampled else around
        return on_line(clips, *((n, self._train(n, checkpointing)) for n in ends))

    def encode(self, clips: int, *, autocast: bool) -> Pass:
        """The VAE's encoding of frames."""
        return self._vae_pass("encode", lambda n: self.batch(n, "frames").frames, clips, autocast=autocast)

    def decode(self, clips: int) -> Pass:
        """The VAE's decoding of whole clips. No autocast."""
        return self._vae_pass("decode", lambda n: self.batch(n).latents, clips, autocast=False)

    def validate(self) -> Pass:
        """The largest of validation's passes: the loss, a roll-out, frames encoded, a preview made. No autocast."""
        wanted = self.config.validation_clips
        clips = max(1, -(-wanted // max(1, wanted // 8)))  # as `validate` cuts them
        passes = [self._loss(clips)]
        passes.append(self._once(("figures", clips), lambda c: self._figures(c, clips), self.config.model))
        if self.vae is not None:
            passes += [self.forecast(self.kind.psnr_clips), self.decode(self.kind.psnr_clips)]
            if self.encodes:
                passes.append(self.encode(clips, autocast=False))
        return max(passes, key=lambda found: found.peak)

    def forecast(self, rows: int) -> Pass:
        """A world's generation of so many futures at once, without decoding. No autocast."""
        return self._once(("forecast", rows), lambda config: self._generate(config, rows), self.config.model)

    def _figures(self, config: ModelConfig, clips: int) -> Pass:
        world, batch = self.build(config).eval(), self.batch(clips)
        work = lambda: sum(self.kind.figures(world, batch).values(), torch.zeros((), device="meta"))  # noqa: E731
        return follow(work, tensors_of(world), autocast=False, backward=False)

    def _generate(self, config: ModelConfig, rows: int) -> Pass:
        assert isinstance(self.kind, WorldKind), "asked of a world only"
        kind, world, batch = self.kind, self.build(config).eval(), self.batch(rows)
        with torch.no_grad():
            return follow(lambda: kind.roll_out(world, batch), tensors_of(world), autocast=False, backward=False)

    def code(self, clips: int) -> Pass:
        """Encoding and decoding by a tokenizer whose recipe this is: blocks of frames or whole clips. No autocast."""
        with torch.no_grad():
            model: Any = self.model.eval()
            frames = self.batch(clips).frames
            assert frames is not None, "a tokenizer reads frames"
            there_and_back = lambda: model.decode(model.encode(frames.clone()))  # noqa: E731
            return follow(there_and_back, tensors_of(model), autocast=False, backward=False)

    def _train(self, clips: int, checkpointing: bool) -> Pass:
        config: Any = self.config.model
        if self.can_checkpoint:
            config = replace(config, gradient_checkpointing=checkpointing)
        return self._once(("train", clips, checkpointing), lambda c: self._step(c, clips, backward=True), config)

    def _loss(self, clips: int) -> Pass:
        return self._once(("loss", clips), lambda c: self._step(c, clips, backward=False), self.config.model)

    def _once(self, key: tuple[Any, ...], run: Any, config: ModelConfig) -> Pass:
        if key not in self._passes:
            depth = self.kind.depth(config)
            if depth is None or depth <= DEPTHS[-1]:
                self._passes[key] = run(config)
            else:
                self._passes[key] = on_line(depth, *((d, run(self.kind.with_depth(config, d))) for d in DEPTHS))
        return self._passes[key]

    def _step(self, config: ModelConfig, clips: int, *, backward: bool) -> Pass:
        model, batch = self.build(config).train(backward), self.batch(clips)
        generator = torch.Generator().manual_seed(0)
        give_gradients(model)
        with torch.set_grad_enabled(backward):
            return follow(
                lambda: model.loss(batch, generator)[0],  # pyright: ignore[reportCallIssue]
                tensors_of(model),
                autocast=self.autocast and backward,
                backward=backward,
            )

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
