"""The built-in data and checkpoints, and the demo that shows them. Slow: real models on real clips."""

from dataclasses import replace
from pathlib import Path

import pytest

from worldline import builtin
from worldline.demo import DemoConfig, run_demo
from worldline.evaluation.compression import FORECAST, UNIGRAM
from worldline.evaluation.held_out import held_out
from worldline.evaluation.result import Evaluation
from worldline.evaluation.sampling import COPY, SHUFFLED, SINGLE, mean_of
from worldline.evaluation.tokenizer import evaluate_tokenizer
from worldline.families.card import describe_model
from worldline.tokenizers.load import load_tokenizer


def _mean(evaluation: Evaluation, row: str, metric: str) -> float:
    return next(r for r in evaluation.rows if r.id == row).metrics[metric].mean


def test_builtins_stay_small() -> None:
    size = sum(path.stat().st_size for path in builtin.ASSETS.rglob("*") if path.is_file())
    assert size < 20e6


@pytest.mark.slow
def test_builtin_tokenizer_keeps_held_out_frames(tmp_path: Path) -> None:
    contract = describe_model(builtin.TOKENIZER_TINY).promise
    clips = held_out(builtin.TOKENIZER_TINY, contract, window=17, data=builtin.TWIN_MINI_VAL)
    evaluation = evaluate_tokenizer(
        load_tokenizer(builtin.TOKENIZER_TINY),
        clips,
        run=builtin.TOKENIZER_TINY,
        num_clips=None,
        batch_size=8,
        out=tmp_path,
    )
    assert evaluation.rows[0].metrics["psnr_db_mean"].mean >= 28


@pytest.mark.slow
def test_demo_trains_a_world_that_follows_the_robot_and_reports(tmp_path: Path) -> None:
    """The demo's own settings for what it trains; a slow machine must not cut the lesson short here."""
    config = replace(DemoConfig(), max_minutes=60.0, num_clips=6)
    done = run_demo(tmp_path / "demo", config, lambda *_: None)
    page = done.report.read_text(encoding="utf-8")
    assert "<video" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert _mean(done.builtin, FORECAST, "full_ce") < _mean(done.builtin, UNIGRAM, "full_ce")
    mean = mean_of(config.num_samples)
    for evaluation in (done.sampling, done.fresh):
        differences = {(c.than, c.metric): c.difference for c in evaluation.comparisons if c.better == mean}
        assert differences[SHUFFLED, "psnr_db_last"].low > 0, "it ignores the robot"
        assert differences[COPY, "psnr_db_last"].low > 0
        assert differences[SINGLE, "psnr_db_last"].low > 0
    assert _mean(done.sampling, mean, "psnr_db_last") > _mean(done.fresh, mean, "psnr_db_last")
