"""A flat loop for small networks whose data are arrays in memory, such as policies and judges of seconds of training.

The one training loop (`training/loop.py`) is for runs: it reads clips, validates, keeps checkpoints to resume from, and
writes a folder of its own. Here all of that would take longer than the training, which starts anew when it was cut off.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldline.checks import Checked, Positive, Seed
from worldline.nn.optimizer import MovingAverage, OptimizerConfig, build_optimizer


@dataclass(frozen=True, kw_only=True)
class FitConfig(Checked):
    """How long and how fast a small network learns: AdamW, a cosine schedule, a moving average of its weights."""

    steps: int = 300
    batch_size: int = 64
    lr: Positive = 2e-3
    seed: Seed = 0
    """Of the first weights, the batches and what is varied in them."""


def fitted(
    build: Callable[[], nn.Module], loss: Callable[[Any, torch.Generator], Tensor], config: FitConfig
) -> nn.Module:
    """Build and train a network; the moving average of its weights, in evaluation mode.

    Deterministic in `config` on one machine, and torch's own random numbers stay as they were.

    Args:
        loss: of the network and a generator, from which the batch is drawn.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build().train()
        optimizing = OptimizerConfig(lr=config.lr, schedule="cosine", warmup_steps=min(20, config.steps // 4))
        optimizer, average = build_optimizer(optimizing, model), MovingAverage(model, 0.98)
        generator = torch.Generator().manual_seed(config.seed)
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = optimizing.learning_rate(step, config.steps)
            optimizer.zero_grad(set_to_none=True)
            loss(model, generator).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update(model, step)
        model.load_state_dict(average.weights)
    return model.eval()
