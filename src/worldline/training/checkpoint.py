"""Checkpoints: a model folder that anyone can load, plus what this trainer needs to go on as if never stopped.

The files are the same for any number of ranks: a run that was trained on eight GPUs goes on with one, or the other way
round.
"""

import math
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from worldline.families.card import ModelCard
from worldline.files import read_json, write_json
from worldline.nn.optimizer import MovingAverage
from worldline.nn.weights import changing_state, check_tensors
from worldline.ranks import laid, whole
from worldline.rundir import MODEL_FILES, Best, RunDir, load_tensors, new_folder, save_tensors, write_model

_FILES = ("trainer.json", "trainer.safetensors")
_HIGHER_IS_BETTER = ("psnr", "ssim", "accuracy", "tokens_used")


@dataclass
class TrainState:
    """All that changes while training. Random numbers are a function of (seed, step), so they need no saving."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    step: int = 0
    seconds: float = 0.0


@contextmanager
def evaluated(state: TrainState) -> Iterator[None]:
    """Inside, the model is in evaluation mode and holds its moving average, if there is one."""
    model, averages = state.model, state.average.weights if state.average else {}
    raw = {name: value.clone() for name, value in changing_state(model).items() if name in averages}
    model.load_state_dict(averages, strict=False)
    model.eval()
    try:
        yield
    finally:
        model.load_state_dict(raw, strict=False)
        model.train()


def save_checkpoint(
    run: RunDir, state: TrainState, card: ModelCard, *, keep: int, best: Best | None = None, writes: bool = True
) -> None:
    """Write checkpoint `state.step` atomically, note which is the best, and drop all but it and the newest `keep`.

    Every rank must call it, since each holds a part; only the one that `writes` does. `model.safetensors` holds the
    weights to use, without frozen parameters: the moving average where there is one. The raw weights then lie in
    `trainer.safetensors` beside the optimizer's moments.
    """
    weights, entries = changing_state(state.model), state.optimizer.state_dict()["state"]
    moments = {f"{i}.{name}": value for i, entry in entries.items() for name, value in entry.items()}
    if state.average:
        moments |= {f"raw.{name}": value for name, value in weights.items()}
        weights = state.average.weights
    weights, moments = whole(weights, keep=writes), whole(moments, keep=writes)
    if not writes:
        return
    for stale in (run.path / "checkpoints").glob(".step_*"):
        shutil.rmtree(stale)  # what a run that was killed while writing left behind
    with new_folder(run.checkpoint(state.step)) as folder:
        write_model(folder, replace(card, step=state.step).to_json(), weights)
        save_tensors(folder / "trainer.safetensors", moments)
        write_json(folder / "trainer.json", {"step": state.step, "seconds": state.seconds})
    if best is not None:  # before the one that was best is dropped
        write_json(run.path / "best.json", asdict(best))
    for old in run.checkpoints()[:-keep]:
        if best is None or old != run.checkpoint(best.step):
            shutil.rmtree(old)


def best_so_far(run: RunDir, metric: str) -> Best | None:
    """The best among the steps that are logged and have a checkpoint, None where there is none."""
    found = [Best(metric=metric, step=int(line["step"]), value=line[metric]) for line in run.logged() if metric in line]
    return reduce(better, (one for one in found if run.checkpoint(one.step).is_dir()), None)


def better(best: Best | None, found: Best) -> Best | None:
    """The better of two, by their metric; of equals the first."""
    sign = 1 if any(part in found.metric for part in _HIGHER_IS_BETTER) else -1
    wins = best is None or sign * (found.value - best.value) > 0
    return found if wins and math.isfinite(found.value) else best


def restore(run: RunDir, state: TrainState) -> None:
    """Put the run's latest checkpoint that is whole into `state`, bit for bit; every rank takes its part of it.

    A run without any begins again. Raises `DataError` where all are damaged, or of another model.
    """
    if (folder := run.latest(files=(*MODEL_FILES, *_FILES))) is None:
        return
    trainer, tensors = read_json(folder / "trainer.json"), load_tensors(folder / "trainer.safetensors")
    weights = load_tensors(folder / "model.safetensors")
    if state.average:
        state.average.weights = _parts(weights, state.average.weights, folder)
        weights = {key.removeprefix("raw."): value for key, value in tensors.items() if key.startswith("raw.")}
    state.model.load_state_dict(_parts(weights, changing_state(state.model), folder), strict=False)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    moments = defaultdict[int, dict[str, Tensor]](dict)
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        if number != "raw":
            of = parameters[int(number)]
            # Moments lie over the ranks as their parameter does; a count of steps does not.
            moments[int(number)][name] = laid(value, of) if value.shape == of.shape else value
    # Groups and their settings are those of the configuration.
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": moments})
    state.step, state.seconds = int(trainer["step"]), float(trainer["seconds"])


def _parts(tensors: Mapping[str, Tensor], now: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Whole tensors of a checkpoint, laid over the ranks as those of `now` are."""
    check_tensors(tensors, now, folder)
    return {name: laid(value, now[name]) for name, value in tensors.items()}
