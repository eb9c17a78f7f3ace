"""Bytes and FLOP of the passes of a run, from its configuration, on the `meta` device (`meter.py`).

Sizes that depend on data or other files are taken from the configuration: picture size, frames of a window, kinds of
states, token grids and vocabulary. A deep model is run with three and with four blocks and with a few clips, because
every further block or clip adds the same; other numbers are extrapolated linearly.
"""

from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldline.families.config import TrainConfig
from worldline.families.validate import PREVIEW_CLIPS, autoregressive_loss
from worldline.files import read_json
from worldline.formats.encoded import looks_like_latents
from worldline.planning.meter import Pass, follow
from worldline.process.categorical import Sampling
from worldline.process.flow import FlowSampling
from worldline.rundir import from_json, model_folder
from worldline.schema import Batch, LatentGrid, Origin, UsageError
from worldline.tokenizers.fsq_video import FSQVideoConfig, FSQVideoTokenizer
from worldline.tokenizers.wan_vae import WanVAEConfig, WanVAETokenizer
from worldline.tokenizers.wan_vae_keys import read_config, vae_files
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig
from worldline.worlds.wan import WanConfig, WanWorld

DEPTHS = (3, 4)
"""Blocks with which a deep model is run. With two, a backward pass does not yet reach its full memory."""
STATE_DIM = 25
"""Where the configuration does not say it; tokenizers ignore states."""

AnyConfig = FSQVideoConfig | WanVAEConfig | STTransformerConfig | WanConfig


class SizeUnknownError(UsageError):
    """The result depends on a size that only the data have."""


class Footprint:
    """The model of a run and its passes; each pass is run when it is first needed.

    Raises:
        UsageError: a size is in neither configuration nor files, or sizes do not fit each other.
    """

    def __init__(self, config: TrainConfig, vae: WanVAEConfig | None = None) -> None:
        self.config = config
        self.autocast = config.autocast and config.device != "cpu"
        self.model_config = _fitted(config)
        self.model = build(self.model_config)
        self.vae: WanVAETokenizer | None = None
        if isinstance(self.model_config, WanConfig):
            built = build(_vae_config(config, self.model_config, vae))
            assert isinstance(built, WanVAETokenizer), "built from its configuration"
            self.vae = built.eval().requires_grad_(False)
            _check_latents(self.model_config, self.latent_grid, len(config.data.pattern.frames))
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
        return isinstance(self.model_config, WanConfig)

    @property
    def checkpoints(self) -> bool:
        return isinstance(self.model_config, WanConfig) and self.model_config.gradient_checkpointing

    @property
    def image_size(self) -> int:
        return _image_size(self.config)

    @property
    def latent_grid(self) -> LatentGrid:
        assert self.vae is not None, "asked of a world over latents only"
        return self.vae.grid(self.image_size, self.image_size)

    def batch(self, clips: int) -> Batch:
        """What the model's loss reads of so many clips, without values."""
        return empty_batch(self.model_config, self.config, clips, self.latent_grid if self.vae else None)

    # --- passes ---

    def train(self, clips: int, *, checkpointing: bool) -> Pass:
        """Forward and backward pass of one piece of a batch."""
        sampled = _sampled(self.model_config)
        around = next((pair for pair in pairwise(sampled) if clips < pair[1]), sampled[-2:])
        ends = (clips, clips) if clips in sampled else around
        return on_line(clips, *((n, self._train(n, checkpointing)) for n in ends))

    def encode(self, clips: int, *, autocast: bool) -> Pass:
        """The VAE's encoding of frames."""
        data, size = self.config.data, _image_size(self.config)
        shape = (len(data.pattern.frames), 3, size, size)
        return self._vae_pass("encode", shape, torch.uint8, clips, autocast=autocast)

    def decode(self, clips: int) -> Pass:
        """The VAE's decoding of whole clips. No autocast."""
        assert isinstance(self.model_config, WanConfig), "only such worlds have a VAE beside them"
        grid, length = self.latent_grid, self.model_config.context_latents + self.model_config.horizon_latents
        shape = (length, grid.channels, grid.height, grid.width)
        return self._vae_pass("decode", shape, torch.float32, clips, autocast=False)

    def validate(self) -> Pass:
        """The largest of validation's passes: the loss, a roll-out, frames encoded, a preview made. No autocast."""
        wanted = self.config.validation_clips
        clips = max(1, -(-wanted // max(1, wanted // 8)))  # as `validate` cuts them
        passes = [self._loss(clips)]
        if isinstance(self.model_config, STTransformerConfig):
            passes.append(self._once(("roll out", clips), lambda c: self._roll_out(c, clips), self.model_config))
        if self.vae is not None:
            passes += [self.forecast(PREVIEW_CLIPS), self.decode(PREVIEW_CLIPS)]
            if self.encodes:
                passes.append(self.encode(clips, autocast=False))
        return max(passes, key=lambda found: found.peak)

    def forecast(self, rows: int) -> Pass:
        """A world's generation of so many futures at once, without decoding. No autocast."""
        return self._once(("forecast", rows), lambda config: self._generate(config, rows), self.model_config)

    def _roll_out(self, config: AnyConfig, clips: int) -> Pass:
        world, batch = build(config).eval(), self.batch(clips)
        assert isinstance(world, STTransformer), "asked of a world over tokens only"
        return follow(lambda: autoregressive_loss(world, batch), tensors_of(world), autocast=False, backward=False)

    def _generate(self, config: AnyConfig, rows: int) -> Pass:
        world, batch = build(config).eval(), self.batch(rows)

        def work() -> Tensor:
            if isinstance(world, WanWorld):
                assert batch.latents is not None, "made for a world over latents"
                context, future = batch.latents[:, : world.context_latents], batch.latents[:, world.context_latents :]
                return world.forecast(context, batch.states, torch.empty_like(future), sampling=FlowSampling(steps=2))
            assert isinstance(world, STTransformer), "asked of a world only"
            assert batch.tokens is not None, "made for a world over tokens"
            steps = world.forecast(batch.tokens[:, : world.context_grids], batch.states, sampling=Sampling())
            return torch.stack([step.tokens for step in steps])

        with torch.no_grad():
            return follow(work, tensors_of(world), autocast=False, backward=False)

    def code(self, clips: int) -> Pass:
        """Encoding and decoding by a tokenizer whose recipe this is: blocks of frames or whole clips. No autocast."""
        with torch.no_grad():
            model, frames = self.model.eval(), self.batch(clips).frames
            assert isinstance(model, FSQVideoTokenizer | WanVAETokenizer), "asked of a tokenizer only"
            assert frames is not None, "a tokenizer reads frames"
            there_and_back = lambda: model.decode(model.encode(frames.clone()))  # noqa: E731
            return follow(there_and_back, tensors_of(model), autocast=False, backward=False)

    def _train(self, clips: int, checkpointing: bool) -> Pass:
        config = self.model_config
        if isinstance(config, WanConfig):
            config = replace(config, gradient_checkpointing=checkpointing)
        return self._once(("train", clips, checkpointing), lambda c: self._step(c, clips, backward=True), config)

    def _loss(self, clips: int) -> Pass:
        return self._once(("loss", clips), lambda c: self._step(c, clips, backward=False), self.model_config)

    def _once(self, key: tuple[Any, ...], run: Any, config: AnyConfig) -> Pass:
        if key not in self._passes:
            depth = _depth(config)
            if depth is None or depth <= DEPTHS[-1]:
                self._passes[key] = run(config)
            else:
                self._passes[key] = on_line(depth, *((d, run(_with_depth(config, d))) for d in DEPTHS))
        return self._passes[key]

    def _step(self, config: AnyConfig, clips: int, *, backward: bool) -> Pass:
        model, batch, generator = build(config).train(backward), self.batch(clips), torch.Generator().manual_seed(0)
        give_gradients(model)
        with torch.set_grad_enabled(backward):
            return follow(
                lambda: model.loss(batch, generator)[0],  # pyright: ignore[reportCallIssue]
                tensors_of(model),
                autocast=self.autocast and backward,
                backward=backward,
            )

    def _vae_pass(self, method: str, shape: tuple[int, ...], dtype: torch.dtype, clips: int, *, autocast: bool) -> Pass:
        assert self.vae is not None, "asked of a world over latents only"
        run = getattr(self.vae, method)
        ends = []
        for n in (clips, clips) if clips <= 2 else (1, 2):
            key = (method, n, autocast)
            if key not in self._passes:
                x = torch.empty(n, *shape, dtype=dtype, device="meta")
                self._passes[key] = follow(lambda x=x: run(x), tensors_of(self.vae), autocast=autocast, backward=False)
            ends.append((n, self._passes[key]))
        return on_line(clips, *ends)


def on_line(x: int, first: tuple[int, Pass], second: tuple[int, Pass]) -> Pass:
    """The pass at `x`, on the straight line through those at two other numbers."""
    (x0, low), (x1, high) = first, second
    ends = {field.name: (getattr(low, field.name), getattr(high, field.name)) for field in fields(Pass)}
    return Pass(**{name: max(0, a + (b - a) * (x - x0) // max(1, x1 - x0)) for name, (a, b) in ends.items()})


def build(config: AnyConfig) -> nn.Module:
    """A model without memory. A frozen backbone is bfloat16, but for what diffusers keeps in fp32."""
    with torch.device("meta"):
        if isinstance(config, WanConfig) and config.lora is not None:
            return config.build(config.backbone.build(torch.bfloat16)).to("meta")
        return config.build().to("meta")


def give_gradients(model: nn.Module) -> None:
    """Gradients of all trained parameters, as they exist from the second piece of a step on."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)


def tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def empty_batch(
    model: AnyConfig, config: TrainConfig, clips: int, grid: LatentGrid | None, device: str = "meta"
) -> Batch:
    """A batch of the shape that a model reads; zeros on devices with memory."""
    frames = tokens = latents = None
    rows, dims = config.data.pattern.window, STATE_DIM
    match model:
        case FSQVideoConfig():
            size, rows = _image_size(config), model.block_frames
            frames = torch.zeros(clips, rows, 3, size, size, dtype=torch.uint8, device=device)
        case WanVAEConfig():
            size, count = _image_size(config), len(config.data.pattern.frames)
            frames = torch.zeros(clips, count, 3, size, size, dtype=torch.uint8, device=device)
        case STTransformerConfig():
            length, dims = model.context_grids + model.horizon_grids, model.state_dim
            rows = length // (1 + (model.block - 1) // model.temporal_stride) * model.block
            shape = (clips, length, model.grid_height, model.grid_width)
            tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        case WanConfig():
            assert grid is not None, "a world over latents comes with its VAE"
            length, dims = model.context_latents + model.horizon_latents, len(model.states.kinds)
            latents = torch.zeros(clips, length, grid.channels, grid.height, grid.width, device=device)
    origin = Origin(source="none", episode=0, start=0)
    states = torch.zeros(clips, rows, dims, device=device)
    return Batch(states=states, fps=1.0, origins=(origin,) * clips, frames=frames, tokens=tokens, latents=latents)


def _fitted(config: TrainConfig) -> AnyConfig:
    """The model's configuration with the sizes that a run takes from its data, if the configuration gives them."""
    model, pattern = config.model, config.data.pattern
    if isinstance(model, WanConfig):
        return replace(model, states=replace(model.states, taken=pattern.frames, window=pattern.window))
    return model


def _sampled(config: AnyConfig) -> tuple[int, ...]:
    """Clips with which a pass is run. The logits of a loss grow with them up to one chunk."""
    if not isinstance(config, STTransformerConfig):
        return (1, 2)
    whole = config.loss_chunk // (config.horizon_grids * config.grid_height * config.grid_width)
    return tuple(sorted({1, max(1, whole), whole + 1, 2 * whole + 2}))


def _depth(config: AnyConfig) -> int | None:
    match config:
        case STTransformerConfig():
            return config.layers
        case WanConfig():
            return config.backbone.num_layers
        case _:
            return None


def _with_depth(config: AnyConfig, depth: int) -> AnyConfig:
    match config:
        case STTransformerConfig():
            return replace(config, layers=depth)
        case WanConfig():
            return replace(config, backbone=replace(config.backbone, num_layers=depth))
        case _:
            return config


def _image_size(config: TrainConfig) -> int:
    if config.data.image_size is None:
        raise SizeUnknownError(
            "the pictures' size decides what is needed, and data are not opened: give --data.image-size"
        )
    return config.data.image_size


def _vae_config(config: TrainConfig, world: WanConfig, given: WanVAEConfig | None) -> WanVAEConfig:
    """Of the VAE named by the run if it is there, else the one given, else Wan2.2's if the channels are its."""
    place, channels = config.tokenizer or config.weights, world.backbone.in_channels
    if place is not None and (files := vae_files(place)):
        found = read_config(files)
    elif place is not None and place.exists():
        described = model_folder(place) / "model.json"
        found = from_json(WanVAEConfig, read_json(described).get("config"), described)
    else:
        found = given or WanVAEConfig()
    if found.sizes.z_dim != channels:
        raise UsageError(
            f"the world reads {channels} channels, but the VAE makes {found.sizes.z_dim}; give the VAE that makes them "
            "(--tokenizer RUN) or another --model.backbone"
        )
    return found


def _check_latents(world: WanConfig, grid: LatentGrid, frames: int) -> None:
    length = world.context_latents + world.horizon_latents
    if grid.latents_of(frames) != length:
        raise UsageError(f"{frames} frames make {grid.latents_of(frames)} latents, but the world reads {length}")
    _, patch_h, patch_w = world.backbone.patch_size
    if grid.height % patch_h or grid.width % patch_w:
        raise UsageError(f"latents of {grid.height}x{grid.width} do not divide into patches of {patch_h}x{patch_w}")
