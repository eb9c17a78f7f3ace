"""Which inverse-dynamics model reads the states of an evaluation's frames, and whether it may.

It may where it was trained on clips of the same states, rate and size, and not on what it judges.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from worldline import builtin
from worldline.contract import Contract
from worldline.data.clips import Clips
from worldline.evaluation.held_out import On
from worldline.evaluation.reader import Reader
from worldline.evaluation.result import Split
from worldline.families.card import ModelCard, describe_model
from worldline.families.inverse_dynamics import load_inverse_dynamics
from worldline.judges.inverse_dynamics import InverseDynamicsConfig
from worldline.rundir import model_folder
from worldline.schema import UsageError
from worldline.twin.scene import RECORD

TRAIN = (
    "train one on clips of this robot (worldline train inverse_dynamics_tiny --data.path DATA --data.val-path None "
    "--data.train-episodes :-10 --data.val-episodes -10: --data.image-size {size} --out runs/inverse_dynamics), and "
    "give it (--inverse-dynamics runs/inverse_dynamics)"
)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The model folder of a reader, or why there is none."""

    folder: Path | None = None
    split: Split = "not checked"
    """Whether it was trained on what it is to judge."""
    why_not: str = ""


def choose_reader(given: Path | None, contract: Contract, clips: Clips, on: On) -> Chosen:
    """Choose the reader of an evaluation. Reads no weights.

    Args:
        given: a run or model folder; None takes the built-in where it fits.
        contract: of the world.

    Raises:
        UsageError: the given one is none, does not fit, or was trained on what is evaluated.
    """
    if clips.source.image_size is None:
        if given is not None:
            raise UsageError(f"{clips.source.path} holds no frames to read states from; leave out --inverse-dynamics")
        return Chosen(why_not="the data hold no frames to read states from")
    folder = model_folder(builtin.INVERSE_DYNAMICS_TINY if given is None else builtin.resolve(given))
    card, split = describe_model(folder), "not checked"
    why = misfit(card, contract, clips)
    if not why and given is None and not all((root / RECORD).is_file() for root in clips.source.roots):
        why = "was trained on the twin, and these are no clips of it"  # the 1X robot's states have the same names
    if not why and card.trained_on is not None:
        shared = card.trained_on.among(clips.source, sorted(set(clips.windows[:, 0].tolist())))
        split: Split = "training data" if shared else "held out"
        if shared and on == "held-out":
            why = f"was trained on {len(shared)} of the evaluated episodes (the first is {shared[0].name})"
    if not why:
        return Chosen(folder=folder, split=split)
    why = f"{why}; {TRAIN.format(size=contract.image_size or 64)}"
    if given is None:
        return Chosen(why_not=f"the built-in inverse-dynamics model {why}")
    raise UsageError(f"the inverse-dynamics model in {given} {why}")


def misfit(card: ModelCard, contract: Contract, clips: Clips) -> str:
    """Why a model cannot read the states of these clips, as the end of a sentence; empty where it can."""
    if not isinstance(card.config, InverseDynamicsConfig):
        return f"is none, but of the kind {card.config.kind}"
    theirs = card.promise
    if theirs.state_names != contract.state_names:
        its, ours = theirs.state_names, contract.state_names
        other = next((f"{a!r} where the world has {b!r}" for a, b in zip(its, ours, strict=False) if a != b), "")
        return f"reads other states: {other or f'{len(its)} of them, and the world has {len(ours)}'}"
    if abs(theirs.fps - contract.fps) > 1e-3:
        return f"reads clips of {theirs.fps:g} frames per second, and the world's have {contract.fps:g}"
    side = clips.image_size or clips.source.image_size
    if theirs.image_size is not None and side not in (theirs.image_size, (theirs.image_size, theirs.image_size)):
        found = f"{side}x{side}" if isinstance(side, int) else f"{side[0]}x{side[1]}" if side else "another size"
        return f"reads frames of {theirs.image_size}x{theirs.image_size}, and the world's are {found}"
    for name in ("camera", "conditioning"):
        its, ours = getattr(theirs, name), getattr(contract, name)
        if None not in (its, ours) and its != ours:
            return f"was trained on another {name}: {its}, and the world on {ours}"
    return ""


def load_reader(folder: Path, clips: Clips, device: torch.device) -> Reader:
    """Read the weights. Raises `DataError` where they are damaged."""
    kinds = describe_model(folder).promise.state_kinds
    return Reader(model=load_inverse_dynamics(folder).to(device), kinds=kinds, fps=clips.source.fps)
