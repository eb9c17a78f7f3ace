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

from worldline.checks import Checked, Natural, Positive, Share, refuse
from worldline.nn.fit import FitConfig, fitted
from worldline.nn.pictures import blurred, scaled, seen_small
from worldline.policies.demonstrations import Demonstrations
from worldline.policies.mirror import mirrored
from worldline.policies.networks import NetworkConfig, PolicyNetwork
from worldline.policies.policy import BatchPolicy, checked_states
from worldline.schema import UsageError


@dataclass(frozen=True, kw_only=True)
class ClonedConfig(Checked):
    """A cloned policy: how it looks, what it learned from, and how it acts."""

    kind: Literal["cloned"] = "cloned"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    demonstrations: int = 160
    """Successful episodes that it learned from: so many after the `first` ones that were shown."""
    first: Natural = 0
    execute: int = 4
    """Commands of a chunk that are executed before it looks again."""
    state_noise: float = 0.1
    """Of the states in training, in standard deviations."""
    state_dropout: Share = 0.3
    """Share of the training examples whose state is hidden: where to go must then be read from the frame."""
    blur: Share = 0.5
    """Share of the training frames that are blurred."""
    light: Share = 0.1
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
        self._time = 0

    def reset_batch(self, seeds: Sequence[int], starts: Sequence[Any] | None = None) -> None:
        """Begin n episodes. It draws nothing at random, so seeds change nothing, and no start is needed."""
        del starts
        self._rows, self._time = len(seeds), 0
        self._first: Tensor | None = None
        self._chunk: np.ndarray | None = None

    @property
    def looks_now(self) -> bool:
        """Whether it is at the end of what it executes of a chunk."""
        return self.network.eye is not None and self._time % self.config.execute == 0

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
    """Train a policy on its part of the episodes shown. Deterministic in both.

    Raises `UsageError` where there are fewer, or their frames are of another size than it looks at.
    """
    most = config.first + config.demonstrations
    if len(shown) < most or shown.frames.shape[-1] != config.network.side:
        raise UsageError(
            f"{most} demonstrations of {config.network.side} px are needed; there are "
            f"{len(shown)} of {shown.frames.shape[-1]} px"
        )
    few = shown.part(slice(config.first, most))
    flat = {name: _both_ways(getattr(few, name)) for name in ("states", "commands")}

    def build() -> PolicyNetwork:
        network = PolicyNetwork(config.network, few.states.shape[-1])
        network.set_statistics(*_spread(flat["states"]))
        network.set_command_statistics(*_spread(flat["commands"]))
        return network

    examples = _Examples(few, config)
    network = fitted(build, lambda model, generator: examples.loss(model, generator), config.fit)
    assert isinstance(network, PolicyNetwork)
    return ClonedPolicy(config, network, Timing(fps=shown.fps, frames=shown.states.shape[1]))


def _both_ways(rows: np.ndarray) -> Tensor:
    """As they were and in the mirror, one below the other."""
    flat = rows.reshape(-1, rows.shape[-1])
    return torch.from_numpy(np.concatenate([flat, mirrored(flat).astype(np.float32)]))


def _spread(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.double().mean(dim=0).float(), rows.double().std(dim=0).float()


class _Examples:
    """Training examples, drawn from demonstrations."""

    def __init__(self, shown: Demonstrations, config: ClonedConfig) -> None:
        self.config, self.every = config, shown.every
        self.frames, chunk = torch.from_numpy(shown.frames), config.network.chunk
        last = np.repeat(shown.commands[:, -1:], chunk - 1, axis=1)  # after the end it stays where it is
        before = np.concatenate([shown.states[:, :1], shown.commands[:, :-1]], axis=1)
        rows = {"states": shown.states, "before": before, "future": np.concatenate([shown.commands, last], axis=1)}
        # Each as it was, and in the mirror.
        self.rows = {
            name: torch.from_numpy(np.stack([one, mirrored(one).astype(np.float32)])) for name, one in rows.items()
        }
        self.length = shown.states.shape[1]

    def loss(self, model: PolicyNetwork, generator: torch.Generator) -> Tensor:
        """Huber loss in deviations of the commands, over moments of a random batch."""
        config, count = self.config, self.config.fit.batch_size
        episode, look, side = (
            torch.randint(most, (count,), generator=generator) for most in (*self.frames.shape[:2], 2)
        )
        moment, draw = look * self.every, torch.rand(2, count, 1, generator=generator)
        measured, commanded = (self.rows[name][side, episode, moment] for name in ("states", "before"))
        states = torch.where(draw[0] < 0.5, measured, commanded)
        states = states + config.state_noise * model.scale * torch.randn(states.shape, generator=generator)
        states = torch.where(draw[1] < config.state_dropout, model.mean, states)
        frames, first = None, None
        if model.eye is not None:
            light = config.light * (2 * torch.rand(2, count, 1, 1, 1, generator=generator) - 1)
            frames, first = (self._seen(episode, at, side, light, generator) for at in (look, torch.zeros_like(look)))
        given = model(frames, first, states, moment / self.length)
        wanted = torch.stack([self.rows["future"][side, episode, moment + i] for i in range(given.shape[1])], dim=1)
        error = given - model.standardised(wanted)
        return F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.5)

    def _seen(self, episode: Tensor, look: Tensor, side: Tensor, light: Tensor, generator: torch.Generator) -> Tensor:
        """Frames as they were or in the mirror, in another light, some blurred."""
        frames = scaled(self.frames[episode, look])
        frames = torch.where(side.view(-1, 1, 1, 1) == 1, frames.flip(-1), frames)
        return blurred(frames * (1 + light[0]) + light[1], self.config.blur, generator)
