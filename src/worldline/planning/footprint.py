"""What a run holds: bytes and FLOP of its passes on a GPU, main memory, and memory of the other verbs at its sizes.

The model of its configuration runs whole on the `meta` device (`meter.py`); picture size, frames of a window, kinds of
states, token grids and vocabulary are those of the configuration. A training step and the VAE run with a few clips,
because every further one adds the same; other numbers are extrapolated linearly.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from worldline.contract import Contract, ModelConfig
from worldline.data.loader import PREFETCH, clip_bytes, clips_in_part
from worldline.encoding.encode import blocks_at_once
from worldline.families.card import ModelCard
from worldline.families.config import SampleOptions, TrainConfig
from worldline.families.family import WorldKind, kind_of
from worldline.formats.encoded import CLAIM
from worldline.formats.states import ONEX_LAYOUT
from worldline.nn.kinematics import Skeleton, skeleton_drawn_by
from worldline.planning.meter import Pass, follow
from worldline.schema import Batch, LatentGrid, Origin, StateKind, UsageError

PROCESS, WORKER = 500_000_000, 300_000_000
"""Bytes of Python and its libraries, in a process and in a loading worker: measured with PyTorch's CPU build."""
WINDOWS = 8
"""Windows that `worldline data encode` encodes, and clips that `worldline evaluate` scores, at once by default."""
CHUNK = 64
"""Frames of a video that are decoded at once."""
Work = Callable[[Any, Any], Any]
"""What a pass does with a model and a batch; its result is the loss if a backward pass follows."""
WORK: dict[str, Work] = {
    "loss": lambda model, batch: model.loss(batch, torch.Generator().manual_seed(0))[0],
    "encode": lambda vae, batch: vae.encode(batch.frames),
    "decode": lambda vae, batch: vae.decode(batch.latents),
    "code": lambda tokenizer, batch: tokenizer.decode(tokenizer.encode(batch.frames.clone())),
}


@runtime_checkable
class Recomputing(Protocol):
    """The configuration of a model that may compute again in the backward pass what it did not keep."""

    @property
    def gradient_checkpointing(self) -> bool: ...


class Footprint:
    """The model of a run and its passes; each pass is run when it is first needed.

    Raises:
        UsageError: a size is in neither configuration nor files, or sizes do not fit each other.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.kind = config, kind_of(config.model)
        self.autocast = config.autocast and config.device != "cpu"
        self.contract = expected(config)
        self.checkpoints = config.model.gradient_checkpointing if isinstance(config.model, Recomputing) else None
        """Whether gradient checkpointing is on; None where the model has none to switch on."""
        self._models: dict[ModelConfig, nn.Module] = {}
        self._passes: dict[tuple[Any, ...], Pass] = {}
        self.model = self.build(config.model)
        self.vae: Any = None
        if isinstance(self.kind, WorldKind) and self.kind.over == "latents":  # it stays in memory beside the model
            self.vae = self.build(self.kind.encoder(config, config.model)).eval().requires_grad_(False)
        self.weights, self.vae_weights = bytes_of(tensors_of(self.model)), bytes_of(tensors_of(self.vae))
        self.frame = 3 * (self.contract.image_size or 0) ** 2
        """Bytes of one."""

    @property
    def encodes(self) -> bool:
        """Whether every step encodes its frames: a world over latents, on video, without a cache."""
        data, path = self.config.data, self.config.data.path
        has_latents = isinstance(path, Path) and (path / CLAIM).exists()
        return self.vae is not None and data.cache is None and not has_latents

    @property
    def loaded(self) -> int:
        """Bytes of a clip as it is loaded."""
        return len(self.config.data.pattern.frames) * self.frame if self.encodes else clip_bytes(self.batch(1))

    def build(self, model: ModelConfig) -> nn.Module:
        """A model for the data of the run, without memory; it is built once."""
        if model not in self._models:
            with torch.device("meta"):
                self._models[model] = kind_of(model).build(model, self.contract).to("meta")
        return self._models[model]

    def batch(self, clips: int, over: str | None = None) -> Batch:
        """What the model's loss reads of so many clips, or what lies before it, without values."""
        return empty_batch(over or self.kind.over, self.contract, clips)

    def train(self, clips: int, *, checkpointing: bool | None) -> Pass:
        """Forward and backward pass of one piece of a batch. It may run under autocast, as encoding its frames may."""
        config: Any = self.config.model
        if self.checkpoints is not None:
            config = replace(config, gradient_checkpointing=checkpointing)
        model, sampled = self.build(config), self.kind.clips_followed(config, self.contract)
        return self._on_line(model, clips, WORK["loss"], sampled, autocast=self.autocast, backward=True)

    def encode(self, clips: int, *, autocast: bool) -> Pass:
        """The VAE's encoding of frames."""
        return self._on_line(self.vae, clips, WORK["encode"], over="frames", autocast=autocast)

    def decode(self, clips: int) -> Pass:
        """The VAE's decoding of whole clips."""
        return self._on_line(self.vae, clips, WORK["decode"])

    def validate(self) -> Pass:
        """The largest of validation's passes: the loss, its figures, frames encoded, a preview made."""
        wanted = self.config.validation_clips
        clips = max(1, -(-wanted // max(1, wanted // 8)))  # as `validate` cuts them
        passes = [self._followed(self.model, clips, work) for work in (WORK["loss"], self.kind.figures)]
        if self.vae is not None:
            passes += [self.forecast(self.kind.psnr_clips), self.decode(self.kind.psnr_clips)]
        if self.encodes:
            passes.append(self.encode(clips, autocast=False))
        return max(passes, key=lambda found: found.peak)

    def forecast(self, rows: int) -> Pass:
        """A world's generation of so many futures at once, without decoding."""
        assert isinstance(self.kind, WorldKind), "asked of a world only"
        return self._followed(self.model, rows, self.kind.roll_out)

    def code(self, clips: int) -> Pass:
        """Encoding and decoding by a tokenizer whose recipe this is: blocks of frames or whole clips."""
        return self._followed(self.model, clips, WORK["code"])

    def _on_line(self, model: nn.Module, clips: int, work: Work, sampled: tuple[int, ...] = (1, 2), **how: Any) -> Pass:
        """A pass over so many clips, on the straight line through those with the sampled numbers around it."""
        if clips in sampled:
            return self._followed(model, clips, work, **how)
        few, more = next((pair for pair in pairwise(sampled) if clips < pair[1]), sampled[-2:])
        ends = (self._followed(model, n, work, **how) for n in (few, more))
        return Pass(*(max(0, a + (b - a) * (clips - few) // (more - few)) for a, b in zip(*ends, strict=True)))

    def _followed(self, model: nn.Module, clips: int, work: Work, *, over: str | None = None, **how: Any) -> Pass:
        """A pass over so many clips; it is run once. `how` is `autocast` and `backward` of `follow`."""
        key = (model, clips, work, *how.items())
        if key not in self._passes:
            batch, how = self.batch(clips, over), {"autocast": False, "backward": False} | how
            give_gradients(model.train(how["backward"]))
            with torch.set_grad_enabled(how["backward"]):
                self._passes[key] = follow(lambda: work(model, batch), tensors_of(model), **how)
        return self._passes[key]


def expected(config: TrainConfig) -> Contract:
    """The contract a run would have, with the states of the 1X robot, or of its skeleton's. Data are not opened.

    Raises:
        UsageError: the size of pictures is not configured, though it decides what is needed.
    """
    kind, model, size = kind_of(config.model), config.model, config.data.image_size
    if size is None and kind.over == "tokens" and config.tokenizer is None:
        size = 256  # a token source, as in the challenge
    if size is None:
        raise UsageError("the pictures' size decides what is needed, and data are not opened: give --data.image-size")
    encoder = kind.encoder(config, model)
    grid = encoder.grid(size, size) if encoder else None
    states = _states(skeleton_drawn_by(model))
    return Contract(
        fps=30.0,
        image_size=size,
        state_names=tuple(states),
        state_kinds=tuple(states.values()),
        source_kind="1x-raw",
        pattern=kind.pattern(config, model, grid),
        grid=grid,
    )


def _states(skeleton: Skeleton | None) -> dict[str, StateKind]:
    """Names and kinds of the 1X robot's states; of another robot's skeleton its joints', and as many in all."""
    onex = dict(zip(ONEX_LAYOUT.names, ONEX_LAYOUT.kinds, strict=True))
    turning = {hinge.state for link in skeleton.links for hinge in link.hinges} if skeleton else set[str]()
    if turning <= onex.keys():
        return onex
    own: dict[str, StateKind] = dict.fromkeys(sorted(turning), "angle")
    return own | dict([*onex.items()][len(turning) :])


def empty_batch(over: str, contract: Contract, clips: int, device: str = "meta") -> Batch:
    """Clips of the shape that a model reads; zeros on devices with memory."""
    pattern, size, dtype = contract.pattern, contract.image_size or 0, torch.uint8
    shape: tuple[int, ...] = (len(pattern.frames), 3, size, size)
    if over == "tokens":
        grid, dtype = contract.tokens, torch.int64
        shape = (grid.grids_of(pattern.window), grid.height, grid.width)
    elif over == "latents":
        grid, dtype = contract.latents, torch.float32
        shape = (grid.latents_of(len(pattern.frames)), grid.channels, grid.height, grid.width)
    states = torch.zeros(clips, pattern.window, len(contract.state_names), device=device)
    origins = (Origin(source="none", episode=0, start=0),) * clips
    content = {over: torch.zeros(clips, *shape, dtype=dtype, device=device)}
    return Batch(states=states, fps=1.0, origins=origins, **content)


def give_gradients(model: nn.Module) -> None:
    """Gradients of all trained parameters, as they exist from the second piece of a step on."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)


def tensors_of(model: nn.Module | None) -> list[Tensor]:
    return [] if model is None else [*model.parameters(), *model.buffers()]


def numbers_of(tensors: Iterable[Tensor], gpus: int = 1) -> int:
    """Entries of the largest share: FSDP deals out whole rows."""
    return sum(-(-len(x) // gpus) * (x.numel() // len(x)) if x.ndim and len(x) else x.numel() for x in tensors)


def bytes_of(tensors: Iterable[Tensor], gpus: int = 1) -> int:
    return sum(numbers_of([x], gpus) * x.element_size() for x in tensors)


# --- main memory, and the other verbs ---


@dataclass(frozen=True, kw_only=True)
class Verb:
    """Memory of another verb in one process."""

    name: str
    what: str
    """Amount that is processed at once."""
    gpu: int
    host: int


def host(run: Footprint, *, gpus: int, clips: int) -> dict[str, int]:
    """Bytes of main memory of a training in pieces of so many clips, where all its GPUs are in one machine.

    Beside the `processes` lie, one after the other (`worst`), model and VAE on their way to the GPU, then a checkpoint
    that every process reads, then one that the first process saves while clips are loaded. No memory is pinned.
    """
    config, workers, size = run.config, run.config.workers, run.loaded
    checkpoint = (
        4 * numbers_of(x for x in run.model.parameters() if x.requires_grad) * (4 if config.optimizer.ema_decay else 3)
    )
    ahead = PREFETCH * workers * clips_in_part(size, clips, workers) * size if workers else 0
    decoded = 0 if run.batch(1).frames is None and not run.encodes else 2 * config.data.pattern.window * run.frame
    return {
        "processes": gpus * (PROCESS + workers * WORKER),  # Python and its libraries
        "building": gpus * (run.weights + run.vae_weights),
        "resuming": gpus * checkpoint,
        "saving": checkpoint,
        "loading": gpus * (2 * clips * size + ahead + max(1, workers) * decoded),  # the current piece, those read ahead
    }


def worst(held: dict[str, int]) -> int:
    """Bytes of main memory at the worst moment, of what `host` counts."""
    return held["processes"] + max(held["building"], held["resuming"], held["saving"] + held["loading"])


def verbs(run: Footprint) -> tuple[Verb, ...]:
    """Memory of the verbs that use the model of a run, in one process."""
    model, kind, pattern, size = run.weights, run.kind, run.contract.pattern, run.contract.image_size or 0
    if not isinstance(kind, WorldKind):
        if run.contract.grid is None:  # it reads frames and makes neither tokens nor latents
            took, held = run.validate().peak, PROCESS + model + 2 * WINDOWS * run.loaded
            return (Verb(name="evaluate", what=f"{WINDOWS} clips at once", gpu=model + took, host=held),)
        if isinstance(run.contract.grid, LatentGrid):
            return (_encoding(run, "encode, evaluate", model, run.code(WINDOWS)),)
        blocks = blocks_at_once(size, size)
        took = model + run.code(max(blocks, WINDOWS)).peak
        held = PROCESS + model + 2 * run.frame * (pattern.window * (blocks + 1) + CHUNK)
        return (Verb(name="tokenize, evaluate", what=f"{blocks} blocks at once", gpu=took, host=held),)
    card = ModelCard(config=run.config.model, contract=run.contract)
    rows = kind.forecaster(run.model, card, run.vae, SampleOptions(), torch.device("meta")).rows_at_once
    took, held = run.forecast(rows).peak, PROCESS + model + 2 * WINDOWS * run.loaded
    encoding = []
    if run.vae is not None:
        vae, encode = run.vae_weights, run.encode(WINDOWS, autocast=False)
        took = vae + max(took, run.decode(rows).peak, encode.peak)
        held = PROCESS + model + vae + WINDOWS * (pattern.window + 3 * len(pattern.frames)) * run.frame
        encoding = [_encoding(run, "encode", vae, encode)]
    shown = Verb(name="forecast, evaluate", what=f"up to {rows} futures at once", gpu=model + took, host=held)
    return (*encoding, shown)


def _encoding(run: Footprint, name: str, weights: int, work: Pass) -> Verb:
    frames = run.config.data.pattern.window + (WINDOWS - 1) * run.config.data.window_stride + CHUNK
    held = PROCESS + weights + 2 * frames * run.frame
    return Verb(name=name, what=f"{WINDOWS} windows at once", gpu=weights + work.peak, host=held)
