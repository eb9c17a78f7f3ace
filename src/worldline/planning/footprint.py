"""Bytes and FLOP of the passes of a run, from its configuration, on the `meta` device (`meter.py`).

Picture size, frames of a window, kinds of states, token grids and vocabulary are those of the configuration. A deep
model is run with three and with four blocks and with a few clips, because every further block or clip adds the same;
other numbers are extrapolated linearly.
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
Work = Callable[[Any, Batch], Any]
"""What a pass does with a model and a batch; its result is the loss if a backward pass follows."""


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
        data, path = config.data, config.data.path
        has_latents = isinstance(path, Path) and looks_like_latents(path)
        self.encodes: bool = self.vae is not None and data.cache is None and not has_latents
        """Whether every step encodes its frames: a world over latents, on video, without a cache."""
        self.checkpoints: bool | None = getattr(config.model, "gradient_checkpointing", None)
        """Whether gradient checkpointing is on; None where the model has none to switch on."""
        self._passes: dict[tuple[Any, ...], Pass] = {}

    def build(self, model: ModelConfig) -> nn.Module:
        """A model of the run's kind and data, without memory."""
        return self.kind.skeleton(model, self.contract)

    def batch(self, clips: int, over: str | None = None) -> Batch:
        """What the model's loss reads of so many clips, or what lies before it, without values."""
        return empty_batch(over or self.kind.over, self.contract, clips)

    def train(self, clips: int, *, checkpointing: bool | None) -> Pass:
        """Forward and backward pass of one piece of a batch. It may run under autocast, as encoding its frames may."""
        sampled = self.kind.clips_followed(self.config.model, self.contract)
        around = next((pair for pair in pairwise(sampled) if clips < pair[1]), (sampled[-2], sampled[-1]))
        ends = (clips, clips) if clips in sampled else around
        return on_line(clips, ends, lambda n: self._followed("train", n, _loss, backward=bool(checkpointing)))

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
        passes = [self._followed("loss", clips, _loss), self._followed("figures", clips, self.kind.figures)]
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

        def there_and_back(model: Any, batch: Any) -> Tensor:
            return model.decode(model.encode(batch.frames.clone()))

        return self._followed("code", clips, there_and_back)

    def _followed(self, name: str, clips: int, work: Work, *, backward: bool | None = None) -> Pass:
        """A pass over so many clips; `backward` is None without a backward pass, else whether it is checkpointed."""
        config: Any = self.config.model
        if backward is not None and self.checkpoints is not None:
            config = replace(config, gradient_checkpointing=backward)
        autocast, depth = self.autocast and backward is not None, self.kind.depth(config) or 0

        def at(blocks: int) -> Pass:
            changed = config if blocks == depth else self.kind.with_depth(config, blocks)
            model, batch = self.build(changed).train(backward is not None), self.batch(clips)
            give_gradients(model)
            with torch.set_grad_enabled(backward is not None):
                given = tensors_of(model)
                return follow(lambda: work(model, batch), given, autocast=autocast, backward=backward is not None)

        ends = DEPTHS if depth > DEPTHS[-1] else (depth, depth)
        return self._once((name, clips, backward), lambda: on_line(depth, ends, at))

    def _vae_pass(self, method: str, given: Callable[[int], Any], clips: int, *, autocast: bool) -> Pass:
        assert self.vae is not None, "asked of a world over latents only"

        def at(n: int) -> Pass:
            x, run = given(n), getattr(self.vae, method)
            return follow(lambda: run(x), tensors_of(self.vae), autocast=autocast, backward=False)

        ends = (clips, clips) if clips <= 2 else (1, 2)
        return on_line(clips, ends, lambda n: self._once((method, n, autocast), lambda: at(n)))

    def _once(self, key: tuple[Any, ...], run: Callable[[], Pass]) -> Pass:
        if key not in self._passes:
            self._passes[key] = run()
        return self._passes[key]


def _loss(model: Any, batch: Batch) -> Tensor:
    return model.loss(batch, torch.Generator().manual_seed(0))[0]


def on_line(x: int, ends: tuple[int, int], found: Callable[[int], Pass]) -> Pass:
    """The pass at `x`, on the straight line through those found at two numbers, or the one found at both."""
    x0, x1 = ends
    low = found(x0)
    if x0 == x1:
        return low
    pairs = {field.name: (getattr(low, field.name), getattr(found(x1), field.name)) for field in fields(Pass)}
    return Pass(**{name: max(0, a + (b - a) * (x - x0) // (x1 - x0)) for name, (a, b) in pairs.items()})


def give_gradients(model: nn.Module) -> None:
    """Gradients of all trained parameters, as they exist from the second piece of a step on."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)


def tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
