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
from worldline.evaluation.evaluate import EvaluateOptions, evaluate
from worldline.evaluation.result import Evaluation
from worldline.families.config import TrainConfig
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
    tokens = _evaluate(builtin.COMPRESSION_TINY, shipped, EvaluateOptions(num_clips=config.num_clips))
    samples = EvaluateOptions(
        data=builtin.TWIN_MINI_VAL,
        num_clips=config.sampling_clips,
        num_samples=config.num_samples,
        steps=10,
        window_stride=20,
        batch_size=4,
    )
    latents = _evaluate(builtin.SAMPLING_TINY, sampling, samples)
    train(demo_recipe(config, cache=out / "cache"), fresh, report=report)
    taught = evaluate(fresh, samples)
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


def _evaluate(shipped: Path, out: Path, options: EvaluateOptions) -> Evaluation:
    """Judge a built-in, which must not be written into, in a run folder of its own."""
    out.mkdir(parents=True)
    for name in ("config.json", "environment.json", "metrics.jsonl"):
        shutil.copy(shipped / name, out / name)
    return evaluate(shipped, replace(options, out=RunDir(out).evaluation))
