"""Main memory of a run, and memory of the other verbs at the sizes of that run."""

from dataclasses import dataclass

import torch

from worldline.data.loader import PREFETCH, clip_bytes, clips_in_part
from worldline.encoding.tokens import blocks_at_once
from worldline.families.card import ModelCard
from worldline.families.family import WorldKind
from worldline.families.sample import SampleOptions
from worldline.planning.footprint import Footprint, tensors_of
from worldline.schema import LatentGrid

PROCESS, WORKER = 500_000_000, 300_000_000
"""Bytes of Python and its libraries, in a process and in a loading worker: measured with PyTorch's CPU build."""
WINDOWS = 8
"""Windows that `worldline data encode` encodes, and clips that `worldline evaluate` judges, at once by default."""
CHUNK = 64
"""Frames of a video that are decoded at once."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """Bytes of main memory of one machine, with one process for each of its GPUs. No memory is pinned."""

    processes: int
    """Python and its libraries, loading workers included."""
    building: int
    """Model and VAE, which every process builds completely before they go to its GPU."""
    resuming: int
    """A checkpoint, which every process reads completely."""
    saving: int
    """A checkpoint that the first process gathers and writes."""
    loading: int
    """The current piece, and the clips that workers decode and read ahead."""

    @property
    def total(self) -> int:
        return self.processes + max(self.building, self.resuming, self.saving + self.loading)


@dataclass(frozen=True, kw_only=True)
class Verb:
    """Memory of another verb in one process."""

    name: str
    what: str
    """How much of it is done at once."""
    gpu: int
    host: int


def host(run: Footprint, *, gpus: int, clips: int) -> Host:
    """Main memory of a training in pieces of so many clips, where all its GPUs are in one machine."""
    config, model = run.config, sum(x.nbytes for x in tensors_of(run.model))
    vae = sum(x.nbytes for x in tensors_of(run.vae)) if run.vae else 0
    trained = sum(x.numel() for x in run.model.parameters() if x.requires_grad)
    checkpoint = 4 * trained * (4 if config.optimizer.ema_decay else 3)
    size = _loaded(run)
    ahead = PREFETCH * config.workers * clips_in_part(size, clips, config.workers) * size if config.workers else 0
    decoded = 0 if run.batch(1).frames is None and not run.encodes else 2 * config.data.pattern.window * _frame(run)
    return Host(
        processes=gpus * (PROCESS + config.workers * WORKER),
        building=gpus * (model + vae),
        resuming=gpus * checkpoint,
        saving=checkpoint,
        loading=gpus * (2 * clips * size + ahead + max(1, config.workers) * decoded),
    )


def verbs(run: Footprint) -> tuple[Verb, ...]:
    """Memory of the verbs that use the model of a run, in one process."""
    model, kind = sum(x.nbytes for x in tensors_of(run.model)), run.kind
    if not isinstance(kind, WorldKind):
        if isinstance(run.contract.grid, LatentGrid):
            return (_encoding(run, model, model + run.code(WINDOWS).peak, "encode, evaluate"),)
        blocks = blocks_at_once(run.image_size, run.image_size)
        took = model + run.code(max(blocks, WINDOWS)).peak
        held = PROCESS + model + 2 * _frame(run) * (run.contract.pattern.window * (blocks + 1) + CHUNK)
        return (Verb(name="tokenize, evaluate", what=f"{blocks} blocks at once", gpu=took, host=held),)
    card = ModelCard(config=run.config.model, contract=run.contract)
    rows = kind.forecaster(run.model, card, run.vae, SampleOptions(), torch.device("meta")).rows_at_once
    took, held = run.forecast(rows).peak, PROCESS + model + 2 * WINDOWS * _loaded(run)
    encoding: tuple[Verb, ...] = ()
    if run.vae is not None:
        vae, pattern = sum(x.nbytes for x in tensors_of(run.vae)), run.contract.pattern
        encode = run.encode(WINDOWS, autocast=False).peak
        took = vae + max(took, run.decode(rows).peak, encode)
        held = PROCESS + model + vae + WINDOWS * (pattern.window + 3 * len(pattern.frames)) * _frame(run)
        encoding = (_encoding(run, vae, vae + encode, "encode"),)
    shown = Verb(name="forecast, evaluate", what=f"up to {rows} futures at once", gpu=model + took, host=held)
    return (*encoding, shown)


def _encoding(run: Footprint, weights: int, gpu: int, name: str) -> Verb:
    data = run.config.data
    frames = data.pattern.window + (WINDOWS - 1) * data.window_stride + CHUNK
    held = PROCESS + weights + 2 * frames * _frame(run)
    return Verb(name=name, what=f"{WINDOWS} windows at once", gpu=gpu, host=held)


def _loaded(run: Footprint) -> int:
    """Bytes of a clip as it is loaded."""
    return len(run.config.data.pattern.frames) * _frame(run) if run.encodes else clip_bytes(run.batch(1))


def _frame(run: Footprint) -> int:
    return 3 * run.image_size**2
