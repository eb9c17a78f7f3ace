"""Checkpoints: a model folder that anyone can load, plus what this trainer needs to go on as if never stopped."""

import shutil
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldline.files import read_json, write_json
from worldline.rundir import RunDir, load_tensors, new_folder, save_tensors, write_model
from worldline.schema import UsageError
from worldline.training.optimizer import MovingAverage


@dataclass
class TrainState:
    """All that changes while training. Random numbers are a function of (seed, step), so they need no saving."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    step: int = 0
    seconds: float = 0.0


def save_checkpoint(run: RunDir, state: TrainState, description: dict[str, Any], *, keep: int) -> None:
    """Write checkpoint `state.step` atomically, then drop all but the newest `keep`.

    `model.safetensors` holds the weights to use: the moving average where there is one. The raw weights then lie in
    `trainer.safetensors` beside the optimizer's moments.
    """
    raw = state.model.state_dict()
    weights = state.average.weights if state.average else raw
    optimizer, hyper = _flatten(state.optimizer.state_dict())
    if state.average:
        optimizer |= {f"raw.{name}": value for name, value in raw.items()}
    for stale in (run.path / "checkpoints").glob(".step_*"):
        shutil.rmtree(stale)  # what a run that was killed while writing left behind
    with new_folder(run.checkpoint(state.step)) as folder:
        write_model(folder, {**description, "step": state.step}, weights)
        save_tensors(folder / "trainer.safetensors", optimizer)
        write_json(folder / "trainer.json", {"step": state.step, "seconds": state.seconds, "groups": hyper})
    for old in sorted((run.path / "checkpoints").glob("step_*"))[:-keep]:
        shutil.rmtree(old)


def restore(run: RunDir, state: TrainState) -> None:
    """Put the run's latest checkpoint into `state`, bit for bit.

    Raises:
        UsageError: there is no checkpoint.
        DataError: its files are damaged.
    """
    folder = run.latest()
    if folder is None:
        raise UsageError(f"{run.path} has no checkpoint to resume from; start it without --resume")
    trainer = read_json(folder / "trainer.json")
    tensors = load_tensors(folder / "trainer.safetensors")
    weights = load_tensors(folder / "model.safetensors")
    if state.average:
        device = next(iter(state.average.weights.values())).device
        state.average.weights = {name: value.to(device) for name, value in weights.items()}
        weights = {name.removeprefix("raw."): value for name, value in tensors.items() if name.startswith("raw.")}
    state.model.load_state_dict(weights)
    state.optimizer.load_state_dict(_unflatten(tensors, trainer["groups"]))
    state.step, state.seconds = int(trainer["step"]), float(trainer["seconds"])


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    tensors = {f"{i}.{name}": value for i, entry in state["state"].items() for name, value in entry.items()}
    return tensors, state["param_groups"]


def _unflatten(tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if index != "raw":
            entries.setdefault(int(index), {})[name] = value
    return {"state": entries, "param_groups": groups}
