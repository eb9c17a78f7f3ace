"""The complete flow-matching process: corruption, target, loss weight and samplers of continuous latents.

Letters as in rectified flow (Liu et al. 2022; Lipman et al. 2022): data x0, noise e ~ N(0, I), noise level sigma
from 1 (pure noise) to 0 (data), x = (1 - sigma) x0 + sigma e, velocity v = dx/dsigma = e - x0. Schedules are those
of Wan2.2 as the report's team trained and sampled it. Knows no model; only generated latents come here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from worldline.checks import Checked, Limit, Positive, Share
from worldline.schema import UsageError

TIMESTEPS = 1000.0
"""The network is told `1000 sigma`, in float32: bfloat16 would round it by up to 2 near 1000."""
UNIPC_START = 0.999
"""Noise level, before the shift, where Wan's UniPC begins: at exactly 1 its log-SNR would be infinite."""
SHORTCUTS = (1, 2, 4, 8)
"""Numbers of calls for which a network with shortcuts learns its step. Each is two steps of the next; those of the last
are two of the plain flow."""
_Numbers = TypeVar("_Numbers", np.ndarray, Tensor)
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A network's velocity of `x` at noise levels `sigma`, told step sizes `size`; one of each per example."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Checked):
    """Which noise levels are trained, and how much each counts."""

    shift: Positive = 5.0
    """Above 1, more of the schedule is spent on noisy inputs: at 5 half of it lies above sigma = 0.833."""
    num_train_steps: Annotated[int, Limit(least=2, most=1_000_000)] = 1000  # every one is an entry of a table
    weighting: Literal["uniform", "bell"] = "uniform"
    """`bell` favours the middle of the schedule, as the team's training library did ("bsmntw")."""
    pure_noise: Share = 0.0
    """Share of the examples that stand at sigma = 1 with weight 1, whatever the schedule. There the best velocity is
    e - E[x0]: a plain regression, from which one call reads the conditional mean."""
    shortcut: Annotated[float, Limit(below=1)] = 0.0
    """Share of the examples that learn to step far (Frans et al. 2024, arXiv 2410.12557, who use 0.25): the network is
    told its step size, and one step is to end where two of its own half steps end. Then 1, 2, 4 or 8 calls draw a
    sample. 0: the network is told no step size."""

    @property
    def knows_mean(self) -> bool:
        """Whether pure noise has weight in training; `bell` gives it none."""
        return self.weighting == "uniform" or self.pure_noise > 0


@dataclass(frozen=True, kw_only=True)
class FlowSampling(Checked):
    """How noise becomes data."""

    sampler: Literal["euler", "unipc"] = "euler"
    """`euler` is what the report's team used; `unipc` (Zhao et al. 2023, order 2) is Wan's own, of diffusers."""
    steps: int = 20
    """Evaluations of the velocity; the report uses 20 and 100. One Euler step gives the conditional mean of x0."""
    guidance: float = 1.0
    """Classifier-free guidance on the states; 1, the report's best, needs no unconditional velocity."""
    shift: Positive = 5.0
    shortcuts: bool = True
    """Step far where the network has learnt to; without, its velocity is the flow's own, whose one step is the mean."""


def train_sigmas(config: FlowConfig) -> Float32[Tensor, " n"]:
    """Noise levels of training: shift s / (1 + (shift - 1) s), s = 1, (n-1)/n, ..., 1/n (Esser et al. 2024, eq. 23)."""
    return _shifted(np.linspace(1.0, 0.0, config.num_train_steps + 1)[:-1], config.shift)


def sample_sigmas(sampling: FlowSampling) -> Float32[Tensor, " n"]:
    """List the `steps + 1` noise levels a sampler visits, ending with exactly 0.

    The shift of `train_sigmas`, applied once to even steps from 1 (`euler`) or 0.999 (`unipc`) to 0: exactly the
    grids of the team's sampler and of Wan's. `set_timesteps(n)` of diffusers' schedulers gives others.
    """
    start = UNIPC_START if sampling.sampler == "unipc" else 1.0
    return _shifted(np.linspace(start, 0.0, sampling.steps + 1), sampling.shift)


def _shifted(even: np.ndarray, shift: float) -> Tensor:
    return torch.from_numpy(_level(even, shift).astype(np.float32))


def step_size(config: FlowConfig, sampling: FlowSampling) -> float:
    """What a network is told of every step of a sampler: its share of the way, `1 / steps`, so that they sum to 1.

    0, the plain flow, where it has learnt no such step: without shortcuts, or with another number of calls, shift or
    sampler.
    """
    learnt = config.shortcut > 0 and sampling.steps in SHORTCUTS and sampling.shift == config.shift
    return 1 / sampling.steps if learnt and sampling.shortcuts and sampling.sampler == "euler" else 0.0


def draw_sigma(config: FlowConfig, size: int, generator: torch.Generator) -> Float32[Tensor, " b"]:
    """Draw a noise level per example, uniformly among `train_sigmas`, or 1. On the CPU, like the generator."""
    sigma = train_sigmas(config)[torch.randint(config.num_train_steps, (size,), generator=generator)]
    if config.pure_noise == 0:  # nothing more is drawn, so that earlier runs repeat
        return sigma
    return torch.where(torch.rand(size, generator=generator) < config.pure_noise, 1.0, sigma)


@dataclass(frozen=True)
class Shortcuts:
    """The examples of a batch that may learn a shortcut: the first ones, as many on every rank.

    Sharded networks are run by all ranks or by none. So the number is a function of the batch's size, rounded up, and
    some of these examples learn the plain flow after all, by chance, such that the share is met on average.
    """

    size: Float32[Tensor, " n"]
    """Shares of the way, from noise to data, of a step."""
    learnt: Bool[Tensor, " n"]

    def told(self, batch: int) -> Float32[Tensor, " b"]:
        """Step size of each example; 0 for the plain flow."""
        return F.pad(torch.where(self.learnt, self.size, 0.0), (0, batch - len(self.size)))


def draw_shortcuts(
    config: FlowConfig, sigma: Float32[Tensor, " b"], generator: torch.Generator
) -> tuple[Float32[Tensor, " b"], Shortcuts]:
    """Draw step sizes, and the places where a sampler takes such steps; the noise levels of a batch with these.

    On the CPU, like the generator. The number of calls is even among `SHORTCUTS`, then which of these it is.
    """
    count = math.ceil(config.shortcut * len(sigma))
    learnt = torch.rand(count, generator=generator) < config.shortcut * len(sigma) / count
    calls = torch.tensor(SHORTCUTS)[torch.randint(len(SHORTCUTS), (count,), generator=generator)]
    done = (torch.rand(count, generator=generator) * calls).floor()
    begins = _level(1 - done / calls, config.shift)
    places = torch.cat([torch.where(learnt, begins, sigma[:count]), sigma[count:]])
    return places, Shortcuts(size=1 / calls, learnt=learnt)


@torch.no_grad()
def shortcut_target(
    velocity_of: Velocity,
    x: Float32[Tensor, "n *rest"],
    sigma: Float32[Tensor, " n"],
    size: Float32[Tensor, " n"],
    shift: float,
) -> Float32[Tensor, "n *rest"]:
    """Mean velocity of a step: that which ends where two half steps of the network itself end.

    Half of the smallest step is told as 0, so that it is the flow, learnt from data, on which all shortcuts rest.
    """
    even = sigma / (shift - (shift - 1) * sigma)
    middle, end = (_level((even - part * size).clamp_min(0), shift) for part in (0.5, 1.0))
    told = torch.where(size > 1 / SHORTCUTS[-1], size / 2, 0.0)
    first, second = (each.reshape(-1, *[1] * (x.ndim - 1)) for each in (middle - sigma, end - middle))
    v = velocity_of(x, sigma, told).float()
    w = velocity_of(x + first * v, middle, told).float()
    return (first * v + second * w) / (first + second)


def _level(even: _Numbers, shift: float) -> _Numbers:
    """Noise level by share of the way that is left."""
    return shift * even / (1 + (shift - 1) * even)


def corrupt(
    x0: Float[Tensor, "b *rest"], noise: Float[Tensor, "b *rest"], sigma: Float32[Tensor, " b"]
) -> tuple[Float32[Tensor, "b *rest"], Float32[Tensor, "b *rest"]]:
    """Mix data and noise, x = (1 - sigma) x0 + sigma e, one noise level per example; with the target, v = e - x0."""
    sigma, x0, noise = sigma.reshape(-1, *[1] * (x0.ndim - 1)), x0.float(), noise.float()
    return (1 - sigma) * x0 + sigma * noise, noise - x0


def loss_weight(config: FlowConfig, sigma: Float32[Tensor, " b"]) -> Float32[Tensor, " b"]:
    """Weigh each example's squared error. 1 throughout, or a bell with mean 1 over `train_sigmas`.

    bell(sigma) is proportional to exp(-2 (sigma - 1/2)^2) - exp(-1/2), the weight of the team's training library:
    2.08 at 1/2 for the default schedule, 0 at both ends. Pure noise then has no weight, unless `pure_noise` gives it.
    """

    def bell(sigma: Tensor) -> Tensor:
        return ((-2 * (sigma - 0.5).square()).exp() - math.exp(-0.5)).clamp_min(0)

    if config.weighting == "uniform":
        return torch.ones_like(sigma)
    weight = bell(sigma) / bell(train_sigmas(config)).mean().to(sigma.device)
    return torch.where(sigma == 1, 1.0, weight) if config.pure_noise > 0 else weight


def integrate(
    velocity_of: Callable[[Tensor, float], Tensor], noise: Float[Tensor, "b *rest"], sampling: FlowSampling
) -> Float32[Tensor, "b *rest"]:
    """Follow the velocity from standard normal noise to x0 (unclamped), in float32, each example by itself.

    `velocity_of` gives that of `x` at noise level `sigma`, guidance included, once per step. Its network must get
    `TIMESTEPS * sigma`, as in training (Wan's own UniPC loop truncates it). Raises `UsageError` for `unipc` without
    diffusers.
    """
    x, scheduler = noise.float(), _unipc(sampling) if sampling.sampler == "unipc" else None
    for step, (sigma, following) in enumerate(pairwise(sample_sigmas(sampling).tolist())):
        v = velocity_of(x, sigma).float()
        if scheduler is None:
            x = x + v * (following - sigma)
        else:
            x = scheduler.step(v, scheduler.timesteps[step], x, return_dict=False)[0]
    return x


def _unipc(sampling: FlowSampling) -> Any:
    """The scheduler of diffusers for one trajectory: it remembers earlier steps."""
    try:
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler as Scheduler
    except ImportError as error:
        raise UsageError("the UniPC sampler needs diffusers: pip install worldline[wan], or use euler") from error
    scheduler = Scheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=sampling.shift)
    unshifted: Any = np.linspace(UNIPC_START, 0.0, sampling.steps + 1)[:-1]  # an array; annotated there as a list
    scheduler.set_timesteps(sigmas=unshifted)
    # Its timesteps are whole numbers; from about 200 steps on the first two are equal, and looking its place up by
    # timestep it would start at the second.
    scheduler.set_begin_index(0)
    return scheduler
