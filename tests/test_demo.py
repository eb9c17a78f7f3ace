"""The built-in data and checkpoints, and the demo that shows them. Slow: real models on real clips."""

from pathlib import Path

import pytest

from worldline import builtin
from worldline.cli.verbs import Demo
from worldline.evaluation.evaluate import EvaluateOptions, evaluate
from worldline.evaluation.result import Evaluation
from worldline.schema import UsageError


def _mean(evaluation: Evaluation, row: str, metric: str) -> float:
    return next(r for r in evaluation.rows if r.id == row).metrics[metric].mean


def test_builtins_stay_small() -> None:
    size = sum(path.stat().st_size for path in builtin.ASSETS.rglob("*") if path.is_file())
    assert size < 30e6


@pytest.mark.slow
def test_builtin_tokenizer_keeps_held_out_frames(tmp_path: Path) -> None:
    evaluation = evaluate(builtin.TOKENIZER_TINY, EvaluateOptions(num_clips=20, out=tmp_path))
    assert evaluation.rows[0].metrics["psnr_db_mean"].mean >= 28


def test_a_folder_that_holds_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    kept = tmp_path / "thesis" / "results.csv"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(UsageError, match="is not empty and was not begun by this command"):
        Demo(out=tmp_path).run()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


@pytest.mark.slow
@pytest.mark.usefixtures("unlisted")
def test_demo_trains_a_world_that_follows_the_robot_and_reports(tmp_path: Path) -> None:
    """A sixth of the lesson, a fifth of the clips: the demo's own are longer. By the clock it must not end here."""
    options = Demo(out=tmp_path / "demo", steps=100, max_minutes=60.0, num_clips=2)
    report, found = options.run()
    (tokens, latents, taught, driven), page = found.values(), report.read_text(encoding="utf-8")
    assert page.count("<canvas") >= 4 * 2, "each of four runs has moving pictures"
    assert report.stat().st_size < 8e6
    assert "parameters</dt><dd>2,399,541" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert _mean(tokens, "forecast", "full_ce") < _mean(tokens, "unigram", "full_ce")
    assert _mean(driven, "forecast", "psnr_db_last") > _mean(driven, "copy_last", "psnr_db_last")
    mean = "mean_5"
    for evaluation in (latents, taught):
        # One future is drawn under other states, and compared with one.
        differences = {(c.than, c.metric): c.difference for c in evaluation.comparisons if c.better in (mean, "sample")}
        assert differences["shuffled_states", "psnr_db_last"].low > 0, "it ignores the robot"
        assert differences["copy_last", "psnr_db_last"].low > 0
        assert differences["sample", "psnr_db_last"].low > 0
    assert _mean(latents, mean, "psnr_db_last") > _mean(taught, mean, "psnr_db_last")
