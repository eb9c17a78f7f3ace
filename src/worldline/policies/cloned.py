"""Cloned policies: small networks that imitate successful scripted episodes, in pixels and states.

The state at a moment is measured in the twin, but in a world it is what was commanded before: half of the examples have
the one, half the other. Frames are blurred at random, because a world's frames are. What a policy imitates is the
scripted command for the moment, also where a demonstration was pushed off its path (`demonstrations.py`): so it learns
to come back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

from worldline.checks import Checked, Positive, refuse
from worldline.judges.inverse_dynamics import blurred, scaled
from worldline.nn.fit import FitConfig, fitted
from worldline.policies.demonstrations import Demonstrations
from worldline.policies.networks import NetworkConfig, PolicyNetwork, seen_small
from worldline.policies.policy import BatchPolicy, checked_states
from worldline.schema import UsageError


@dataclass(frozen=True, kw_only=True)
class ClonedConfig(Checked):
    """A cloned policy: how it looks, what it learned from, and how it acts."""

    kind: Literal["cloned"] = "cloned"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    demonstrations: int = 160
    """Successful episodes that it learned from."""
    execute: int = 4
    """Commands of a chunk that are executed before it looks again."""
    state_noise: float = 0.1
    """Of the states in training, in standard deviations."""
    state_dropout: float = 0.3
    """Share of the training examples whose state is hidden (set to the mean): where to go is then read from the frame."""
    blur: float = 0.5
    """Share of the training frames that are blurred."""
    light: float = 0.1
    """Brightness and contrast of training frames vary by this share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.execute > self.network.chunk:
            refuse(self, "execute", f"at most the chunk, {self.network.chunk}")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a cloned policy was made for."""

    fps: Positive
    frames: int
    """Frames of an episode: what the time is measured by."""


class ClonedPolicy(BatchPolicy):
    """Plays by a network: looks, predicts a chunk of commands, executes its first few, looks again."""

    def __init__(self, config: ClonedConfig, network: PolicyNetwork, timing: Timing) -> None:
        self.config, self.network, self.timing, self.fps = config, network.eval(), timing, timing.fps
        self._rows: int | None = None

    def reset_batch(self, seeds: Sequence[int], starts: Sequence[Any] | None = None) -> None:
        """Begin n episodes. It draws nothing at random, so seeds change nothing, and no start is needed."""
        del starts
        self._rows, self._time = len(seeds), 0
        self._first: Tensor | None = None
        self._chunk: np.ndarray | None = None

    @torch.no_grad()
    def act_batch(self, observations: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "n s"]:
        states = checked_states(observations, self._rows, len(self.network.mean))
        place = self._time % self.config.execute
        if place == 0 or self._chunk is None:
            self._chunk = self._looked(observations, torch.from_numpy(states))
        self._time += 1
        return self._chunk[:, place].copy()

    def _looked(self, observations: Mapping[str, np.ndarray], states: Tensor) -> Float32[np.ndarray, "n chunk s"]:
        frames = None
        if self.network.eye is not None:
            frames = self._small(observations["frame"])
            self._first = frames if self._first is None else self._first
        times = torch.full((len(states),), self._time / self.timing.frames)
        return self.network.commands(self.network(frames, self._first, states, times)).numpy()

    def _small(self, frames: np.ndarray) -> Tensor:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) != self._rows:
            expected = f"uint8 ({self._rows}, h, w, 3)"
            raise UsageError(f"observation['frame'] is {expected}, not {frames.dtype} {frames.shape}")
        seen = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        return scaled(seen_small(seen, self.network.config.side))


def clone(config: ClonedConfig, shown: Demonstrations) -> ClonedPolicy:
    """Train a policy on the first `config.demonstrations` of the episodes shown. Deterministic in both.

    Raises `UsageError` where there are fewer, or their frames are of another size than it looks at.
    """
    if len(shown.frames) < config.demonstrations or shown.frames.shape[-1] != config.network.side:
        raise UsageError(
            f"{config.demonstrations} demonstrations of {config.network.side} px are needed; there are "
            f"{len(shown.frames)} of {shown.frames.shape[-1]} px"
        )
    few = shown.first(config.demonstrations)
    flat = {name: torch.from_numpy(getattr(few, name)).flatten(0, 1) for name in ("states", "commands")}

    def build() -> PolicyNetwork:
        network = PolicyNetwork(config.network, few.states.shape[-1])
        network.set_statistics(*_spread(flat["states"]))
        network.set_command_statistics(*_spread(flat["commands"]))
        return network

    examples = _Examples(few, config)
    network = fitted(build, lambda model, generator: examples.loss(model, generator), config.fit)
    assert isinstance(network, PolicyNetwork)
    return ClonedPolicy(config, network, Timing(fps=shown.fps, frames=shown.frames.shape[1]))


def _spread(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.double().mean(dim=0).float(), rows.double().std(dim=0).float()


class _Examples:
    """Training examples, drawn from demonstrations."""

    def __init__(self, shown: Demonstrations, config: ClonedConfig) -> None:
        self.config = config
        self.frames, self.states, self.commands = (
            torch.from_numpy(getattr(shown, name)) for name in ("frames", "states", "commands")
        )
        chunk = config.network.chunk
        last = self.commands[:, -1:].expand(-1, chunk - 1, -1)  # after the end it stays where it is
        self.future = torch.cat([self.commands, last], dim=1).unfold(1, chunk, 1).transpose(2, 3)
        self.before = torch.cat([self.states[:, :1], self.commands[:, :-1]], dim=1)

    def loss(self, model: PolicyNetwork, generator: torch.Generator) -> Tensor:
        """Huber loss in deviations of the commands, over moments of a random batch."""
        config, count = self.config, self.config.fit.batch_size
        episode = torch.randint(len(self.states), (count,), generator=generator)
        moment = torch.randint(self.states.shape[1], (count,), generator=generator)
        draw = torch.rand(3, count, 1, generator=generator)
        states = torch.where(draw[0] < 0.5, self.states[episode, moment], self.before[episode, moment])
        states = states + config.state_noise * model.scale * torch.randn(states.shape, generator=generator)
        states = torch.where(draw[1] < config.state_dropout, model.mean, states)
        frames, first = None, None
        if model.eye is not None:
            frames = self._varied(self.frames[episode, moment], generator)
            first = self._varied(self.frames[episode, 0], generator)
        given = model(frames, first, states, moment / self.states.shape[1])
        wanted = self.future[episode, moment]
        scale = torch.where(model.command_scale > 0, model.command_scale, torch.ones_like(model.command_scale))
        moves = (model.command_scale > 0).float()
        error = (given - (wanted - model.command_mean[None, None]) / scale) * moves
        return F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.5)

    def _varied(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        shape, light = (2, len(frames), 1, 1, 1), self.config.light
        gain, shift = light * (2 * torch.rand(shape, generator=generator) - 1)
        return blurred(scaled(frames) * (1 + gain) + shift, self.config.blur, generator)
