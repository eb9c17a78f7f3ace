"""The demo: evaluate the built-in worlds of both tracks, train a new one for minutes, write a report.

What is trained is a world over latents: within these minutes it learns to follow the robot's states, which a world over
tokens does not (docs/log.md). The report shows it: with another clip's states its forecast is worse.

Only calls what a notebook calls; needs no network, no GPU and no OpenGL.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldline import builtin
from worldline.api import evaluate, train
from worldline.checks import number, whole
from worldline.evaluation.result import Evaluation
from worldline.report.write import write_report
from worldline.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How long the demo takes."""

    steps: int = 1000
    """Training steps of the new world."""
    max_minutes: float = 5.0
    """Stop that training after this long, whatever step it is at."""
    num_clips: int = 48
    """Held-out clips for the built-in world over tokens."""
    sampling_clips: int = 24
    """Held-out clips for each world over latents."""
    num_samples: int = 5
    """Futures drawn for each of those."""

    def __post_init__(self) -> None:
        whole(self, "steps", "num_clips", "sampling_clips", "num_samples")
        number(self, "max_minutes", above=0)


def run_demo(out: Path, options: DemoOptions) -> tuple[Path, dict[str, Evaluation]]:
    """Run all of it below `out`; what an earlier demo left there is replaced. Gives the report, and what was found.

    Raises:
        UsageError, DataError: the package was installed without its built-in data or checkpoints.
    """
    shutil.rmtree(out, ignore_errors=True)
    shipped, sampling, fresh = out / "builtin", out / "sampling", out / "fresh"
    few: dict[str, Any] = {"num_clips": options.sampling_clips, "num_samples": options.num_samples, "steps": 10}
    few |= {"window_stride": 20, "batch_size": 4, "data": builtin.TWIN_MINI_VAL}
    found = {
        "The built-in world over tokens (compression track)": _builtin(
            builtin.COMPRESSION_TINY, shipped, num_clips=options.num_clips
        ),
        "The built-in world over latents (sampling track), two seconds ahead": _builtin(
            builtin.SAMPLING_TINY, sampling, **few
        ),
    }
    train(
        "sampling_tiny",
        out=fresh,
        steps=options.steps,
        max_minutes=options.max_minutes,
        optimizer={"warmup_steps": 50, "ema_decay": 0.99},  # a short run: a moving average with a short memory
        data={"cache": out / "cache"},
        evaluate_every=max(1, options.steps // 4),
        checkpoint_every=options.steps,
    )
    found["The same world, trained just now for minutes"] = evaluate(fresh, **few)
    return write_report([shipped, sampling, fresh], out), found


def _builtin(shipped: Path, run: Path, **options: Any) -> Evaluation:
    """Judge a built-in, which must not be written into, in a run folder of its own."""
    run.mkdir(parents=True)
    for name in ("config.json", "environment.json", "metrics.jsonl"):
        shutil.copy(shipped / name, run / name)
    return evaluate(shipped, out=RunDir(run).evaluation, **options)
