"""AdamW, its parameter groups, the learning-rate schedule and the moving average of weights. Pure functions of step."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from worldline.checks import Checked, Limit, Natural, Positive
from worldline.nn.weights import changing_state


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """AdamW and its schedule; the defaults are the report's (section 3.2)."""

    lr: Positive = 8e-4
    """Highest learning rate."""
    warmup_steps: Natural = 2000
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """From `lr` to zero at the last step; `constant` stays at `lr`."""
    beta1: Annotated[float, Limit(below=1)] = 0.9
    beta2: Annotated[float, Limit(below=1)] = 0.95
    weight_decay: float = 0.05
    """On weights of two or more axes but positions; not on biases and norms of one axis."""
    clip_norm: Positive | None = None
    """Scale gradients down to this global norm."""
    ema_decay: Annotated[float, Limit(above=0, below=1)] | None = None
    """Keep an exponential moving average of the weights with this decay, and evaluate it instead."""

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Learning rate of a step: linear warm-up, then the schedule."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        shares = {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0}
        return self.lr * shares[self.schedule]


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.AdamW:
    """AdamW over the trainable parameters: weights of two or more axes decay, but no positions; all else does not."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and "position" not in name else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


class MovingAverage:
    """Exponential moving average of what training changes (`changing_state`), in fp32, sharded where the model is."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().float().clone() for name, value in changing_state(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update towards the model. Early steps use a shorter memory, so initial weights soon have no influence."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in changing_state(model).items():
            self.weights[name].lerp_(value.float(), 1 - decay)
