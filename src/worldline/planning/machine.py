"""Main memory of a run, and memory of the other verbs at the sizes of that run."""

from dataclasses import dataclass

import torch

from worldline.data.loader import PREFETCH, clip_bytes, clips_in_part
from worldline.encoding.encode import blocks_at_once
from worldline.families.card import ModelCard
from worldline.families.family import WorldKind
from worldline.families.sample import SampleOptions
from worldline.planning.footprint import Footprint, tensors_of
from worldline.schema import LatentGrid

PROCESS, WORKER = 500_000_000, 300_000_000
"""Bytes of Python and its libraries, in a process and in a loading worker: measured with PyTorch's CPU build."""
WINDOWS = 8
"""Windows that `worldline data encode` encodes, and clips that `worldline evaluate` scores, at once by default."""
CHUNK = 64
"""Frames of a video that are decoded at once."""


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
    config, workers, size = run.config, run.config.workers, _loaded(run)
    trained = sum(x.numel() for x in run.model.parameters() if x.requires_grad)
    checkpoint = 4 * trained * (4 if config.optimizer.ema_decay else 3)
    ahead = PREFETCH * workers * clips_in_part(size, clips, workers) * size if workers else 0
    decoded = 0 if run.batch(1).frames is None and not run.encodes else 2 * config.data.pattern.window * _frame(run)
    return {
        "processes": gpus * (PROCESS + workers * WORKER),  # Python and its libraries
        "building": gpus * (_weights(run.model) + _weights(run.vae)),
        "resuming": gpus * checkpoint,
        "saving": checkpoint,
        "loading": gpus * (2 * clips * size + ahead + max(1, workers) * decoded),  # the current piece, those read ahead
    }


def worst(held: dict[str, int]) -> int:
    """Bytes of main memory at the worst moment, of what `host` counts."""
    return held["processes"] + max(held["building"], held["resuming"], held["saving"] + held["loading"])


def verbs(run: Footprint) -> tuple[Verb, ...]:
    """Memory of the verbs that use the model of a run, in one process."""
    model, kind, pattern, size = _weights(run.model), run.kind, run.contract.pattern, run.contract.image_size or 0
    if isinstance(run.contract.grid, LatentGrid) and not isinstance(kind, WorldKind):
        return (_encoding(run, model, model + run.code(WINDOWS).peak, "encode, evaluate"),)
    if not isinstance(kind, WorldKind):
        blocks = blocks_at_once(size, size)
        took = model + run.code(max(blocks, WINDOWS)).peak
        held = PROCESS + model + 2 * _frame(run) * (pattern.window * (blocks + 1) + CHUNK)
        return (Verb(name="tokenize, evaluate", what=f"{blocks} blocks at once", gpu=took, host=held),)
    card = ModelCard(config=run.config.model, contract=run.contract)
    rows = kind.forecaster(run.model, card, run.vae, SampleOptions(), torch.device("meta")).rows_at_once
    took, held = run.forecast(rows).peak, PROCESS + model + 2 * WINDOWS * _loaded(run)
    encoding = []
    if run.vae is not None:
        vae, encode = _weights(run.vae), run.encode(WINDOWS, autocast=False).peak
        took = vae + max(took, run.decode(rows).peak, encode)
        held = PROCESS + model + vae + WINDOWS * (pattern.window + 3 * len(pattern.frames)) * _frame(run)
        encoding = [_encoding(run, vae, vae + encode, "encode")]
    shown = Verb(name="forecast, evaluate", what=f"up to {rows} futures at once", gpu=model + took, host=held)
    return (*encoding, shown)


def _encoding(run: Footprint, weights: int, gpu: int, name: str) -> Verb:
    frames = run.config.data.pattern.window + (WINDOWS - 1) * run.config.data.window_stride + CHUNK
    held = PROCESS + weights + 2 * frames * _frame(run)
    return Verb(name=name, what=f"{WINDOWS} windows at once", gpu=gpu, host=held)


def _weights(model: torch.nn.Module | None) -> int:
    return sum(x.nbytes for x in tensors_of(model)) if model is not None else 0


def _loaded(run: Footprint) -> int:
    """Bytes of a clip as it is loaded."""
    return len(run.config.data.pattern.frames) * _frame(run) if run.encodes else clip_bytes(run.batch(1))


def _frame(run: Footprint) -> int:
    return 3 * (run.contract.image_size or 0) ** 2
