"""The demo: judge the built-in worlds of both tracks, train one from scratch for minutes, write a report.

What is trained is a world over latents: within these minutes it learns to follow the robot's states, which a world over
tokens does not (docs/log.md). The report shows it: with another clip's states its forecast is worse.

Only calls what the verbs call; needs no network, no GPU and no OpenGL.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from worldline import builtin
from worldline.checks import number, whole
from worldline.evaluation.compression import Protocol, TokenCounts, evaluate_compression
from worldline.evaluation.held_out import held_out, split_of
from worldline.evaluation.result import Evaluation, Split
from worldline.evaluation.sampling import SamplingProtocol, evaluate_sampling
from worldline.families.config import TrainConfig
from worldline.families.load import Loaded, load_forecaster
from worldline.families.sample import LoadOptions
from worldline.recipes.sampling import sampling_tiny
from worldline.report.write import write_report
from worldline.rundir import RunDir
from worldline.training.loop import train

Report = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """How long the demo takes."""

    steps: int = 1000
    """Training steps of the world that is trained before your eyes."""
    max_minutes: float = 5.0
    """Stop that training after this long, whatever step it is at."""
    num_clips: int = 48
    """Held-out clips the built-in world over tokens is judged on."""
    sampling_clips: int = 24
    """Held-out clips each world over latents is judged on."""
    num_samples: int = 5
    """Futures drawn for each of those."""

    def __post_init__(self) -> None:
        whole(self, "steps", "num_clips", "sampling_clips", "num_samples")
        number(self, "max_minutes", above=0)


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    report: Path
    builtin: Evaluation
    fresh: Evaluation
    sampling: Evaluation
    seconds: float


def run_demo(out: Path, config: DemoConfig, report: Report) -> DemoResult:
    """Run all of it below `out`; what an earlier demo left there is replaced.

    Raises:
        UsageError, DataError: the package was installed without its built-in data or checkpoints.
    """
    began = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    shipped, fresh, sampling = out / "builtin", out / "fresh", out / "sampling"
    tokens = _evaluate(builtin.COMPRESSION_TINY, _run_of(builtin.COMPRESSION_TINY, shipped), config, report)
    latents = _evaluate_sampling(builtin.SAMPLING_TINY, _run_of(builtin.SAMPLING_TINY, sampling), config, report)
    train(demo_recipe(config, cache=out / "cache"), fresh, report=report)
    taught = _evaluate_sampling(fresh, fresh, config, report)
    page = write_report([shipped, sampling, fresh], out)
    return DemoResult(report=page, builtin=tokens, fresh=taught, sampling=latents, seconds=time.monotonic() - began)


def demo_recipe(config: DemoConfig, *, cache: Path) -> TrainConfig:
    """sampling_tiny for minutes: a short warm-up, and a moving average with a short memory."""
    tiny = sampling_tiny()
    return replace(
        tiny,
        data=replace(tiny.data, cache=cache),
        optimizer=replace(tiny.optimizer, warmup_steps=50, ema_decay=0.99),
        steps=config.steps,
        max_minutes=config.max_minutes,
        evaluate_every=max(1, config.steps // 4),
        checkpoint_every=config.steps,
    )


def _run_of(shipped: Path, out: Path) -> Path:
    """A run folder for results about a built-in, which must not be written into."""
    out.mkdir(parents=True)
    for name in ("config.json", "environment.json", "metrics.jsonl"):
        shutil.copy(shipped / name, out / name)
    return out


def _evaluate(run: Path, out: Path, config: DemoConfig, report: Report) -> Evaluation:
    loaded = load_forecaster(run)
    forecaster = loaded.forecaster
    window = forecaster.context_frames + forecaster.horizon_frames
    return evaluate_compression(
        loaded,
        held_out(run, loaded.contract, window=window, data=builtin.TWIN_MINI_VAL),
        protocol=Protocol(num_clips=config.num_clips),
        out=RunDir(out).evaluation,
        split=_split(run, loaded),
        counts=TokenCounts.of(run),
        progress=lambda done, total: report(f"judging {out.name} world", done, total, {}),
    )


def _evaluate_sampling(run: Path, out: Path, config: DemoConfig, report: Report) -> Evaluation:
    options = LoadOptions(steps=10, num_samples=config.num_samples)
    loaded = load_forecaster(run, options)
    clips = held_out(run, loaded.contract, window=77, stride=20, data=builtin.TWIN_MINI_VAL)
    return evaluate_sampling(
        loaded.forecaster,
        clips,
        protocol=SamplingProtocol(num_clips=config.sampling_clips),
        run=run,
        out=RunDir(out).evaluation,
        settings=options.settings(loaded.forecaster),
        tokenizer=loaded.identity,
        split=_split(run, loaded),
        progress=lambda done, total: report("judging the world over latents", done, total, {}),
    )


def _split(run: Path, loaded: Loaded) -> Split:
    return split_of(run, loaded.contract, [run], data=builtin.TWIN_MINI_VAL)
