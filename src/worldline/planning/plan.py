"""Needs of a run before it starts: parameters, memory of each GPU, FLOP, and settings that fit a card.

It needs no weights, no data and no GPU (`footprint.py`). `Plan.notes` says which figures are counted and which are
estimated. GB are 10^9 bytes, also for cards.
"""

import os
import warnings
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from worldline.families.config import TrainConfig
from worldline.nn.weights import changing_state
from worldline.planning.footprint import Footprint, Verb, bytes_of, host, numbers_of, verbs, worst
from worldline.ranks import Ranks, shards_of
from worldline.schema import UsageError, contents_of

CARDS_GB = (24.0, 40.0, 80.0, 141.0)
RESERVE = 0.1
"""Share of a card left free for memory that is not counted: inside kernels, fragments, the CUDA context."""
MAX_GPUS = 1024
"""Up to which a card that is too small is tried in doubled numbers."""
CERTAIN = ("weights", "tokenizer", "moments", "average")
"""Memory that only more GPUs can reduce."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a training, and its memory on one GPU in bytes."""

    gpus: int
    accumulate: int
    gradient_checkpointing: bool | None
    """None where the model has none to switch on."""
    clips: int
    """In the largest piece."""
    memory: dict[str, int]
    """At the peak of a training step, by its use (the function `memory`)."""
    phases: dict[str, int]
    """Of each phase of a run: `training`, `encoding` of frames in every step (or 0), `validation`."""

    @property
    def needed(self) -> int:
        return max(self.phases.values())

    @property
    def greediest(self) -> str:
        return max(self.phases, key=self.phases.__getitem__)

    @property
    def words(self) -> str:
        """How it is asked for, and the clips that are then in memory at once."""
        switch = self.gradient_checkpointing
        option = "" if switch is None else f" --model.gradient-checkpointing {switch}"
        gpus, clips = ("" if count == 1 else "s" for count in (self.gpus, self.clips))
        return f"--accumulate {self.accumulate}{option} on {self.gpus} GPU{gpus}, {self.clips} clip{clips} at once"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Settings that fit GPUs of one size."""

    gb: float
    fits: bool
    """As configured."""
    settings: tuple[Setting, ...]
    """Without and with gradient checkpointing, each in the fewest pieces; on more GPUs only where those asked for are
    too few. Empty where nothing fits."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    kind: str
    parameters: int
    trained: int
    tokenizer_parameters: int
    clip: dict[str, tuple[int, ...]]
    """Shapes of what the model reads of one clip."""
    batch_size: int
    steps: int
    """0 where the number of clips decides."""
    flop: dict[str, int]
    """Of one clip: matrix products, convolutions and attention. A multiplication and its addition are two."""
    setting: Setting
    """As configured."""
    otherwise: Setting | None
    """The same with gradient checkpointing switched over; None where there is none to switch."""
    least: Setting
    """The least memory on as many GPUs."""
    cards: tuple[Card, ...]
    host: dict[str, int]
    """Bytes of main memory (`footprint.host`)."""
    verbs: tuple[Verb, ...]
    notes: tuple[str, ...]


def plan(config: TrainConfig, *, gpu_gb: float | None = None, gpus: int = 1) -> Plan:
    """Count the memory of a run on each of `gpus` GPUs; find settings that fit cards of `gpu_gb`, or of usual sizes.

    Raises:
        UsageError: the batch does not divide among the GPUs or into pieces, a size is missing, or sizes do not fit.
    """
    run = Footprint(config)
    chosen = setting(run, gpus=gpus, accumulate=config.accumulate)
    switch, clips = chosen.gradient_checkpointing, chosen.clips
    cut = partial(setting, run, gpus=gpus, accumulate=config.accumulate)
    step, plain = (run.train(clips, checkpointing=checkpointing) for checkpointing in (switch, False))
    parameters = list(run.model.parameters())
    return Plan(
        kind=config.model.kind,
        parameters=numbers_of(parameters),
        trained=numbers_of(p for p in parameters if p.requires_grad),
        tokenizer_parameters=numbers_of(run.vae.parameters()) if run.vae else 0,
        clip={name: tuple(tensor.shape[1:]) for name, tensor in contents_of(run.batch(1)).items()},
        batch_size=config.batch_size,
        steps=config.steps,
        flop={
            "encoding": run.encode(1, autocast=run.autocast).forward_flop if run.encodes else 0,
            "forward": step.forward_flop // clips,
            "backward": plain.backward_flop // clips,
            "recomputed": (step.backward_flop - plain.backward_flop) // clips,
        },
        setting=chosen,
        otherwise=None if switch is None else cut(checkpointing=not switch),
        least=cut(accumulate=Ranks(world_size=gpus).share(config.batch_size), checkpointing=True),
        cards=tuple(card(run, gb, chosen) for gb in ((gpu_gb,) if gpu_gb else CARDS_GB)),
        host=host(run, gpus=gpus, clips=chosen.clips),
        verbs=verbs(run),
        notes=_notes(run),
    )


def refuse_too_little(config: TrainConfig, *, free: int, gpus: int = 1) -> None:
    """Check that a run fits the memory that each GPU has free, in bytes; warn if it may not, or sizes are missing.

    Raises:
        UsageError: what stays on a GPU from step to step is certainly more than is free; names a setting that fits.
    """
    try:
        run = Footprint(config)
    except UsageError as reason:
        warnings.warn(f"whether the run fits the GPU was not checked: {reason}", stacklevel=2)
        return
    wanted = setting(run, gpus=gpus, accumulate=config.accumulate)
    main, here = _main_memory(), min(gpus, max(1, torch.cuda.device_count()))
    if main is not None and (held := worst(host(run, gpus=here, clips=wanted.clips))) > main:
        has = f"of main memory, but this machine has {main / 1e9:.0f} GB"
        remedy = "fewer --workers or processes take less (worldline plan says what holds it)"
        warnings.warn(f"{here} processes may take {held / 1e9:.0f} GB {has}; {remedy}", stacklevel=2)
    if wanted.needed <= free:
        return
    fitting = ", or ".join(found.words for found in card(run, free / 1e9, wanted).settings)
    has = f"but {free / 1e9:.1f} GB are free; " + (f"what fits: {fitting}" if fitting else "nothing fits this GPU")
    if (certain := sum(wanted.memory[name] for name in CERTAIN)) > free:
        took = f"weights, moments and averages alone take {certain / 1e9:.1f} GB of each GPU"
        raise UsageError(f"{took}, {has}; --check-memory False tries all the same")
    took = f"{wanted.greediest} may take {wanted.needed / 1e9:.1f} GB of GPU memory with {wanted.clips} clips at once"
    unsure = "This is an estimate (worldline plan), so the run goes on"
    warnings.warn(f"{took}, {has}. {unsure}", stacklevel=2)


def _main_memory() -> int | None:
    """Bytes of this machine's main memory; None where the system does not say it so (Windows)."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def setting(run: Footprint, *, gpus: int, accumulate: int, checkpointing: bool | None = None) -> Setting:
    """The memory of a run on one GPU. Raises `UsageError` if the batch does not divide so.

    Args:
        checkpointing: as configured if not given; without effect where the model has none.
    """
    checkpointing = run.checkpoints if checkpointing is None or run.checkpoints is None else checkpointing
    clips = -(-Ranks(world_size=gpus).share(run.config.batch_size, accumulate) // accumulate)
    kept = memory(run, gpus=gpus, accumulate=accumulate, clips=clips, checkpointing=checkpointing)
    resident = sum(kept[name] for name in (*CERTAIN, "gradients"))
    phases = {
        "training": sum(kept.values()),
        "encoding": resident + run.encode(clips, autocast=run.autocast).peak if run.encodes else 0,
        # Validation runs the moving average, with the trained weights laid aside.
        "validation": resident + kept["gathered"] + kept["average"] + run.validate().peak,
    }
    return Setting(
        gpus=gpus, accumulate=accumulate, gradient_checkpointing=checkpointing, clips=clips, memory=kept, phases=phases
    )


def memory(run: Footprint, *, gpus: int, accumulate: int, clips: int, checkpointing: bool | None) -> dict[str, int]:
    """Bytes that a training step with so many clips at once holds on one GPU, by their use."""
    model, step = run.model, run.train(clips, checkpointing=checkpointing)
    trained = [p for p in model.parameters() if p.requires_grad]
    blocks = shards_of(model) if gpus > 1 else []
    inside = {p for block in blocks for p in block.parameters()}
    outside = [p for p in model.parameters() if p not in inside] if gpus > 1 else []
    largest = max(blocks, key=lambda block: bytes_of(block.parameters()), default=nn.Module())
    gradients = bytes_of(trained)
    if gpus > 1 and accumulate == 1:  # else they are summed over the GPUs, and cut, with the last piece only
        whole = bytes_of(p for p in (*outside, *largest.parameters()) if p.requires_grad)
        gradients = min(gradients, whole + bytes_of(trained, gpus))
    sharded, averaged = dict(model.named_parameters()), changing_state(model) if run.config.optimizer.ema_decay else {}
    return {
        "weights": bytes_of(model.parameters(), gpus) + bytes_of(model.buffers()),  # this GPU's share
        "tokenizer": run.vae_weights,  # the VAE of a world over latents, whole
        "moments": 2 * bytes_of(trained, gpus) + 4 * len(trained),  # AdamW's two, and its counters
        "average": sum(4 * numbers_of([x], gpus if name in sharded else 1) for name, x in averaged.items()),
        "gradients": gradients,  # of the whole step, though they exist from the second piece on
        "gathered": bytes_of(outside) + 3 * bytes_of(largest.parameters()),  # blocks at work, on its way, its copy
        "activations": step.held,  # of one piece, kept for the backward pass
        "working": step.peak - step.held,  # peak of all other tensors
    }


def card(run: Footprint, gb: float, chosen: Setting) -> Card:
    """Find what fits GPUs of one size: as many as chosen, or else twice as many, and so on."""
    limit, batch, gpus = int(gb * 1e9 * (1 - RESERVE)), run.config.batch_size, chosen.gpus
    settings: list[Setting] = []
    while gpus <= min(batch, MAX_GPUS) and not settings:
        share = batch // gpus if batch % gpus == 0 else 0
        pieces = [-(-share // clips) for clips in range(1, share + 1)]
        for checkpointing in (False, True) if run.checkpoints is not None else (False,):
            cut = partial(setting, run, gpus=gpus, checkpointing=checkpointing)
            if fitting := bisect_right(pieces, limit, key=lambda n, cut=cut: cut(accumulate=n).needed):
                settings.append(cut(accumulate=pieces[fitting - 1]))
        gpus *= 2
    return Card(gb=gb, fits=chosen.needed <= limit, settings=tuple(settings))


def _notes(run: Footprint) -> tuple[str, ...]:
    """How the figures were found, for people."""
    precision = "bfloat16 autocast, as on CUDA" if run.autocast else "no autocast"
    notes = [
        "counted: parameters, gradients, moments, average; FLOP and tensors of a pass, which runs without values",
        "estimated: training steps and encoding of more than a few clips, linearly; what FSDP gathers; "
        f"{RESERVE:.0%} of a card stay free for memory inside kernels, fragments and the CUDA context",
        f"assumed: {precision}; flash attention; sizes of states, frames and tokens as configured",
        "measured on a GPU: steps of the report's two worlds on one H100, 0.97 to 1.01 of the memory that is counted; "
        "all else is an estimate (docs/memory.md)",
        "main memory: Python's part is that of PyTorch's CPU build; larger stored video needs more",
    ]
    if not all(parameter.requires_grad for parameter in run.model.parameters()):
        notes.append("assumed: frozen weights in bfloat16; norms, tables, time embedding, what is trained in fp32")
    if run.encodes:
        notes.append("every step encodes its frames; run `worldline data encode` once to save that time and memory")
    return tuple(notes)
