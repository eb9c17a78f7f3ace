"""A third family is one file: here, a world over frames that is registered, trained, loaded, forecast and planned."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from builders import write_squares
from torch import Tensor, nn

from worldline.contract import Contract, FramePattern, ModelConfig
from worldline.data.clips import DataConfig, open_clips
from worldline.evaluation.evaluate import EvaluateOptions, evaluate
from worldline.families.card import ModelCard
from worldline.families.config import SampleOptions, TrainConfig, read_config
from worldline.families.family import (
    KINDS,
    Prepared,
    WorldKind,
    contract_with,
    register,
)
from worldline.families.load import load_forecaster
from worldline.forecasting.forecaster import Context, CopyLast, Forecaster, Step
from worldline.formats.source import Source
from worldline.nn.optimizer import OptimizerConfig
from worldline.planning.plan import plan
from worldline.ranks import Ranks
from worldline.rundir import RunDir
from worldline.schema import Batch, UsageError
from worldline.training.loop import train


@dataclass(frozen=True, kw_only=True)
class FadeConfig(ModelConfig):
    """The last frame of the context, plus a learned change of brightness for every frame after it."""

    kind: Literal["fade"] = "fade"
    context: int = 3
    horizon: int = 2


class Fade(nn.Module):
    def __init__(self, config: FadeConfig) -> None:
        super().__init__()
        self.config = config
        self.change = nn.Parameter(torch.zeros(config.horizon))

    def forecast(self, last: Tensor) -> Tensor:
        return last[:, None].float() + self.change[:, None, None, None]

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert batch.frames is not None
        context = self.config.context
        error = self.forecast(batch.frames[:, context - 1]) - batch.frames[:, context:].float()
        return error.square().mean(), {"bias": error.mean().item()}


@dataclass(frozen=True, kw_only=True)
class FadeForecaster(CopyLast):
    world: Fade

    def step(self, context: Context, states: Tensor, *, seeds: Sequence[int] | None) -> Step:
        with torch.no_grad():
            frames = self.world.forecast(context[0].to(self.device)).clamp(0, 255).byte().cpu()
        copied, last = super().step(context, states, seeds=seeds)
        return replace(copied, frames=frames[:, None].expand_as(copied.frames)), last


class FadeKind(WorldKind):
    config = FadeConfig

    def build(self, model: FadeConfig, contract: Contract | None) -> Fade:
        return Fade(model)

    def prepare(self, config: TrainConfig, model: FadeConfig, ranks: Ranks) -> Prepared:
        data = replace(config.data, pattern=self.pattern(config, model, None))
        clips = open_clips(data, "train", ranks=ranks), open_clips(data, "val", ranks=ranks)
        contract = contract_with(clips[0].source, data, None, data.pattern)
        return self.prepared(config, self.build(model, contract), clips, contract)

    def refuse_unfit(self, source: Source, card: ModelCard, *, tokenizer: bool, shown: bool) -> None:
        if source.image_size is None:
            raise UsageError(f"{source.path} holds no frames")

    def forecaster(
        self, world: Fade, card: ModelCard, tokenizer: Any, options: SampleOptions, device: torch.device
    ) -> Forecaster:
        context, length = world.config.context, card.promise.pattern.window
        times = tuple(range(context, length))
        return FadeForecaster(
            context_frames=context,
            times=times,
            chunk_frames=len(times),
            num_samples=options.num_samples,
            world=world,
        )

    def roll_out(self, world: Fade, batch: Batch) -> Tensor:
        assert batch.frames is not None
        return world.forecast(batch.frames[:, world.config.context - 1])

    def pattern(self, config: TrainConfig, model: FadeConfig, grid: Any) -> FramePattern:
        return FramePattern(window=model.context + model.horizon)


@pytest.fixture
def fade() -> Iterator[None]:
    register(FadeKind())
    yield
    del KINDS["fade"]


def _run(root: Path) -> TrainConfig:
    write_squares(root / "train", 2, length=20)
    write_squares(root / "val", 1, length=20, first=9)
    return TrainConfig(
        model=FadeConfig(),
        data=DataConfig(path=root / "train", val_path=root / "val", window_stride=5),
        optimizer=OptimizerConfig(lr=1.0, warmup_steps=0, schedule="constant"),
        batch_size=2,
        steps=3,
        device="cpu",
        validation_clips=2,
    )


@pytest.mark.usefixtures("fade")
def test_a_third_family_trains_loads_and_forecasts_like_the_others(tmp_path: Path) -> None:
    config = _run(tmp_path)
    result = train(config, tmp_path / "run")
    assert (result.step, result.figures.keys() >= {"train/bias", "val/loss"}) == (3, True)
    assert read_config(RunDir(tmp_path / "run")).model == FadeConfig()
    again = train(replace(config, steps=4), tmp_path / "run", resume=True)
    assert again.step == 4

    loaded = load_forecaster(tmp_path / "run")
    assert loaded.contract.pattern.window == 5
    frames = torch.full((1, 3, 3, 16, 16), 100, dtype=torch.uint8)
    forecast = loaded.forecast(frames, torch.zeros(1, 5, 2))
    change = loaded.forecaster.world.change.detach()  # pyright: ignore[reportAttributeAccessIssue]
    assert change.abs().min() > 0
    assert forecast.frames is not None
    expected = (100 + change).clamp(0, 255).byte()
    assert torch.equal(forecast.frames[0, 0, :, 0, 0, 0], expected)
    judged = evaluate(tmp_path / "run", EvaluateOptions(num_clips=2, device="cpu"))
    assert {"sample", "copy_last", "shuffled_states"} <= {row.id for row in judged.rows}


@pytest.mark.usefixtures("fade")
def test_a_third_family_is_planned(tmp_path: Path) -> None:
    config = _run(tmp_path)
    found = plan(replace(config, batch_size=4, data=replace(config.data, image_size=16)))
    assert (found.kind, found.parameters) == ("fade", 2)
    assert found.clip == {"frames": (5, 3, 16, 16), "states": (5, 25)}


@pytest.mark.usefixtures("fade")
def test_what_a_third_family_has_no_use_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tokenizer would change nothing"):
        train(replace(_run(tmp_path), tokenizer=Path("x")), tmp_path / "run")
