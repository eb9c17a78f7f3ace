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

    tokenizer: Tokenizer
    world: TokenWorld
    grid: TokenGrid
    sampling: Sampling = field(default_factory=Sampling)
    num_samples: int = 1
    """Independent roll-outs per clip; more than one needs a temperature above 0."""

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
        """Encode the context, roll the world forward, decode. Raises `UsageError` for another number of frames."""
        if frames.shape[1] != self.context_frames:
            raise UsageError(f"the context is {self.context_frames} frames, but {frames.shape[1]} were given")
        return self.from_tokens(self.tokenizer.encode(frames), states, generator=generator)

    @torch.no_grad()
    def from_tokens(
        self,
        context: Int64[Tensor, "b l gh gw"],
        states: Float32[Tensor, "b t s"],
        *,
        generator: torch.Generator | None = None,
        watch: Callable[[int, GridStep], None] | None = None,
    ) -> Forecast:
        """Forecast from a tokenised context. `watch(i, step)` sees grid i of the first sample and its logits."""
        if self.num_samples > 1 and self.sampling.temperature == 0:
            raise UsageError("greedy samples are all alike; give a --temperature above 0 to draw several")
        samples, first = [], None
        for sample in range(self.num_samples):
            tokens = []
            rollout = self.world.forecast(context, states, sampling=self.sampling, generator=generator)
            for index, step in enumerate(rollout):
                tokens.append(step.tokens)
                if watch is not None and sample == 0:
                    watch(index, step)
            grids = torch.stack(tokens, dim=1)
            first = grids if first is None else first
            samples.append(self.tokenizer.decode(grids))
        return Forecast(frames=torch.stack(samples, dim=1), tokens=first)


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
    path: Path, *, tokenizer: Path | None = None, sampling: Sampling | None = None, num_samples: int = 1
) -> Loaded:
    """Load the world of a run and the tokenizer it was trained on.

    Args:
        path: run folder, or model folder inside one.
        tokenizer: overrides the copy in the run folder; its weights must be the same.

    Raises:
        UsageError: there is no tokenizer, or it is another one than the world was trained on.
        DataError: files are missing or damaged.
    """
    world, description = load_world(path)
    expected = description.get("tokenizer")
    place = tokenizer or _tokenizer_of(path, expected)
    if expected not in (None, _fingerprint(place)):
        raise UsageError(f"the world in {path} speaks the tokens of another tokenizer than {place}")
    contract = description["contract"]
    return Loaded(
        forecaster=TokenForecaster(
            tokenizer=load_tokenizer(place),
            world=world,
            grid=TokenGrid(**contract["token_grid"]),
            sampling=sampling or Sampling(),
            num_samples=num_samples,
        ),
        contract=contract,
        folder=path,
        tokenizer=expected,
    )


def _tokenizer_of(path: Path, expected: str | None) -> Path:
    for run in (path, path.parent.parent):  # a run folder, or run/checkpoints/step_N
        if RunDir(run).tokenizer.is_dir():
            return RunDir(run).tokenizer
    if builtin.TOKENIZER_TINY.is_dir() and expected == fingerprint(builtin.TOKENIZER_TINY):
        return builtin.TOKENIZER_TINY
    raise UsageError(f"{path} has no tokenizer beside it; give the one its tokens were made with (--tokenizer DIR)")


def _fingerprint(place: Path) -> str:
    if (place / "model.json").is_file():
        recorded = read_model(place)[0].get("fingerprint")
        if recorded:
            return str(recorded)
    return fingerprint(place)
