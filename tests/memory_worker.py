"""What a process really takes for test_plan.py: `python memory_worker.py`, bytes by name as JSON on stdout.

Peaks of resident memory as the kernel counts them, above what was there before, each after the peak was reset.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from builders import noise_frames

from worldline.contract import Contract
from worldline.families.config import TrainConfig
from worldline.families.family import kind_of
from worldline.nn.optimizer import build_optimizer
from worldline.planning.footprint import empty_batch, expected
from worldline.process.categorical import Sampling
from worldline.recipes import compression_tiny, tokenizer_tiny

CLIPS, ROWS, BLOCKS = 8, 32, 32
"""In a training step, in a forecast, through a tokenizer."""


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def grown(work: Callable[[], object]) -> int:
    """Bytes by which `work` raises the resident memory at most."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _kilobytes("VmRSS")
    kept = work()
    del kept
    return 1024 * (_kilobytes("VmHWM") - before)


def _world() -> tuple[TrainConfig, Any, Contract]:
    config = compression_tiny()
    kind = kind_of(config.model)
    contract = expected(config)
    return config, kind.build(config.model, contract), contract


def train() -> None:
    config, model, contract = _world()
    optimizer = build_optimizer(config.optimizer, model)
    batch = empty_batch("tokens", contract, CLIPS, device="cpu")
    model.loss(batch, torch.Generator().manual_seed(0))[0].backward()
    optimizer.step()


def forecast() -> None:
    _, world, contract = _world()
    world.eval()
    batch = empty_batch("tokens", contract, ROWS, device="cpu")
    for _ in world.forecast(batch.tokens[:, :3], batch.states, sampling=Sampling()):
        pass


def code() -> None:
    model = tokenizer_tiny().model.build().eval()
    model.decode(model.encode(noise_frames(BLOCKS, 17, 3, 64, 64)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({work.__name__: grown(work) for work in (code, forecast, train)}))
