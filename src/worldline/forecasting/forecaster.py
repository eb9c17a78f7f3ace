"""`Forecaster` = tokenizer + world + sampling choice: pixels and states in, pixels out.

Everything after it (evaluation, report, environments) knows only forecasters, so tracks and baselines share it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline import builtin
from worldline.process.categorical import Sampling
from worldline.rundir import RunDir, read_model
from worldline.schema import Forecast, TokenGrid, UsageError
from worldline.tokenizers.load import fingerprint, load_tokenizer
from worldline.tokenizers.tokenizer import Tokenizer
from worldline.worlds.load import load_world
from worldline.worlds.world import GridStep, TokenWorld


@runtime_checkable
class Forecaster(Protocol):
    """Forecast what will be seen from what was seen and the states that were and will be."""

    @property
    def context_frames(self) -> int: ...

    @property
    def horizon_frames(self) -> int: ...

    def forecast(
        self,
        frames: UInt8[Tensor, "b c 3 h w"],
        states: Float32[Tensor, "b t s"],
        *,
        generator: torch.Generator | None = None,
    ) -> Forecast:
        """Predict the `horizon_frames` after `frames`, which are the context and nothing else.

        Args:
            frames: exactly `context_frames` of them, uint8 RGB.
            states: one row per frame of context and horizon, raw units.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CopyLast:
    """The baseline every forecast must beat: nothing moves after the last context frame."""

    context_frames: int
    horizon_frames: int

    def forecast(
        self,
        frames: UInt8[Tensor, "b c 3 h w"],
        states: Float32[Tensor, "b t s"],
        *,
        generator: torch.Generator | None = None,
    ) -> Forecast:
        del states, generator
        still = frames[:, -1:].expand(-1, self.horizon_frames, -1, -1, -1)
        return Forecast(frames=still.unsqueeze(1))


@dataclass(frozen=True, kw_only=True)
class TokenForecaster:
    """A discrete world between a tokenizer's encoder and decoder."""

    world: TokenWorld
    grid: TokenGrid
    tokenizer: Tokenizer | None
    """None where a world was trained on tokens as they came: it can be scored on tokens, but shows no picture."""
    sampling: Sampling = field(default_factory=Sampling)
    num_samples: int = 1
    """Independent roll-outs per clip; more than one needs a temperature above 0."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where world and tokenizer are; inputs are moved there, forecasts come back to the CPU."""

    @property
    def context_frames(self) -> int:
        return self.grid.frames_of(self.world.context_grids)

    @property
    def horizon_frames(self) -> int:
        return self.grid.frames_of(self.world.horizon_grids)

    @torch.no_grad()
    def forecast(
        self,
        frames: UInt8[Tensor, "b c 3 h w"],
        states: Float32[Tensor, "b t s"],
        *,
        generator: torch.Generator | None = None,
    ) -> Forecast:
        """Encode the context, roll the world forward, decode.

        Raises:
            UsageError: another number of frames than the context, no tokenizer, or several greedy samples.
        """
        if frames.shape[1] != self.context_frames:
            raise UsageError(f"the context is {self.context_frames} frames, but {frames.shape[1]} were given")
        if self.num_samples > 1 and self.sampling.temperature == 0:
            raise UsageError("greedy samples are all alike; give a --temperature above 0 to draw several")
        context = self.encode(frames)
        rollouts = [self.rollout(context, states, generator=generator) for _ in range(self.num_samples)]
        return Forecast(frames=torch.stack([self.decode(grids) for grids in rollouts], dim=1), tokens=rollouts[0])

    def rollout(
        self,
        context: Int64[Tensor, "b c gh gw"],
        states: Float32[Tensor, "b t s"],
        *,
        generator: torch.Generator | None = None,
        watch: Callable[[int, GridStep], None] | None = None,
    ) -> Int64[Tensor, "b l gh gw"]:
        """Token grids of the horizon, from a tokenised context. `watch(i, step)` sees grid i and its logits."""
        steps = self.world.forecast(
            context.to(self.device), states.to(self.device), sampling=self.sampling, generator=generator
        )
        grids = []
        for index, step in enumerate(steps):
            grids.append(step.tokens.cpu())
            if watch is not None:
                watch(index, step)
        return torch.stack(grids, dim=1)

    def encode(self, frames: UInt8[Tensor, "b t 3 h w"]) -> Int64[Tensor, "b l gh gw"]:
        """Tokens of whole blocks of frames. Raises `UsageError` without a tokenizer."""
        return self._tokenizer().encode(frames.to(self.device)).cpu()

    def decode(self, tokens: Int64[Tensor, "b l gh gw"]) -> UInt8[Tensor, "b t 3 h w"]:
        """Frames of whole blocks of grids. Raises `UsageError` without a tokenizer."""
        return self._tokenizer().decode(tokens.to(self.device)).cpu()

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UsageError(
                "this world was trained on tokens alone; give the tokenizer they came from (--tokenizer DIR)"
            )
        return self.tokenizer


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A forecaster from disk, with what its checkpoint says about the data it was trained on."""

    forecaster: TokenForecaster
    contract: dict[str, object]
    folder: Path
    """The model folder of the world."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer behind the world's tokens; None where it was trained on tokens as they came."""


def load_forecaster(
    path: Path,
    *,
    tokenizer: Path | None = None,
    sampling: Sampling | None = None,
    num_samples: int = 1,
    device: torch.device | None = None,
) -> Loaded:
    """Load the world of a run and, where there is one, the tokenizer it was trained on.

    Args:
        path: run folder, or model folder inside one.
        tokenizer: where it lies, if not in the run folder; must be the one the world was trained on.

    Raises:
        UsageError: the tokenizer is missing though the world was trained with one, or is another one.
        DataError: files are missing or damaged.
    """
    device = device or torch.device("cpu")
    world, description = load_world(path)
    expected = description.get("tokenizer")
    place = tokenizer or _tokenizer_of(path, expected)
    if place is not None and expected not in (None, _fingerprint(place)):
        raise UsageError(f"the world in {path} speaks the tokens of another tokenizer than {place}")
    contract = description["contract"]
    return Loaded(
        forecaster=TokenForecaster(
            tokenizer=load_tokenizer(place).to(device) if place else None,
            world=world.to(device),
            grid=TokenGrid(**contract["token_grid"]),
            sampling=sampling or Sampling(),
            num_samples=num_samples,
            device=device,
        ),
        contract=contract,
        folder=path,
        tokenizer=expected,
    )


def _tokenizer_of(path: Path, expected: str | None) -> Path | None:
    for run in (path, path.parent.parent):  # a run folder, or run/checkpoints/step_N
        if RunDir(run).tokenizer.is_dir():
            return RunDir(run).tokenizer
    if expected is None:
        return None
    if builtin.TOKENIZER_TINY.is_dir() and expected == fingerprint(builtin.TOKENIZER_TINY):
        return builtin.TOKENIZER_TINY
    raise UsageError(f"{path} has no tokenizer beside it; give the one its tokens were made with (--tokenizer DIR)")


def _fingerprint(place: Path) -> str:
    if (place / "model.json").is_file():
        recorded = read_model(place)[0].get("fingerprint")
        if recorded:
            return str(recorded)
    return fingerprint(place)
