"""A condition, a baseline and a metric are one entry each: rows, JSON, table and report follow, as the docs say."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from builders import small_tokenizer, small_world, write_squares
from commands import ROOT
from test_add_your_own import run

from worldline.contract import FramePattern
from worldline.data.clips import Clips, DataConfig, open_clips
from worldline.evaluation.engine import Amount, score
from worldline.evaluation.result import Evaluation, label_of
from worldline.evaluation.rows import ROWS, Entry, Judged, Made, NotComputed, Scene, condition
from worldline.forecasting.tokens import TokenForecaster
from worldline.metrics.table import METRICS, Metric
from worldline.metrics.tokens import accuracy
from worldline.report.text import text_table
from worldline.report.write import write_report


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """What a test registers is there for that test alone."""
    rows, metrics = dict(ROWS), dict(METRICS)
    yield
    for table, before in ((ROWS, rows), (METRICS, metrics)):
        table.clear()
        table.update(before)  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    place = write_squares(tmp_path_factory.mktemp("squares"), 3, length=34)
    return open_clips(DataConfig(path=place, pattern=FramePattern(window=34)), "val")


def _scored(clips: Clips, out: Path) -> tuple[Evaluation, str, str]:
    """An evaluation, and what it looks like as text and on a page, both made from its file."""
    tokenizer = small_tokenizer()
    grid = tokenizer.grid(16, 16)
    forecaster = TokenForecaster(tokenizer=tokenizer, world=small_world(grid=grid), grid=grid)
    judged = Judged(forecaster=forecaster, protocol="compression", run="run")
    made = score(judged, clips, Amount(batch_size=2), out=out / "run/evaluation")
    found = Evaluation.load(out / "run/evaluation/metrics.json")
    assert found.rows == made.rows
    return found, text_table(found), write_report([out / "run"], out).read_text(encoding="utf-8")


def test_a_condition_and_a_baseline_are_one_entry_each(clips: Clips, tmp_path: Path) -> None:
    run("add_your_own.md", "A row of an evaluation: a condition, a baseline or a ceiling")

    @Entry("oracle", "an oracle", "baseline")
    def _(scene: Scene) -> Made:
        """It knows."""
        raise NotComputed("no oracle was at hand")

    evaluation, table, page = _scored(clips, tmp_path)
    rows = {one.id: one for one in evaluation.rows}
    assert (rows["frozen_states"].role, rows["grey"].role) == ("ablation", "baseline")
    assert rows["frozen_states"].metrics.keys() >= {"psnr_db_last", "ssim_mean", "full_ce", "token_accuracy"}
    assert rows["grey"].metrics.keys() == {"psnr_db_last", "psnr_db_mean", "ssim_last", "ssim_mean"}
    frames = torch.stack([clip.frames[17:] for clip in clips if clip.frames is not None]).double()
    expected = 10 * (255**2 / (frames - 128).square().mean(dim=(2, 3, 4))).log10()
    assert rows["grey"].metrics["psnr_db_mean"].mean == pytest.approx(expected.mean().item(), abs=1e-3)
    assert len(evaluation.curves["psnr_db"]["grey"]) == 17
    compared = {(c.better, c.than, c.metric) for c in evaluation.comparisons}
    assert compared >= {("forecast", "frozen_states", "full_ce"), ("forecast", "grey", "psnr_db_last")}
    assert evaluation.not_computed["oracle"] == "no oracle was at hand"
    for text in (table, page):
        for label in ("forecast vs frozen states", "grey frames", "an oracle", "no oracle was at hand"):
            assert label in text


def test_other_states_reach_the_world(clips: Clips, tmp_path: Path) -> None:
    """A condition that gives the true states scores as the forecast; frozen ones do not."""
    run("add_your_own.md", "A row of an evaluation: a condition, a baseline or a ceiling")
    condition("own_states", "own states", shown=True)(lambda scene: scene.batch.states)
    evaluation, _, page = _scored(clips, tmp_path)
    costs = {one.id: one.metrics["full_ce"].mean for one in evaluation.rows if "full_ce" in one.metrics}
    assert costs["own_states"] == costs["forecast"] != costs["frozen_states"]
    assert "<span>own states</span>" in page, "its frames are shown"


def test_a_metric_is_one_entry(clips: Clips, tmp_path: Path) -> None:
    run("add_your_own.md", "A metric")

    Metric("hits", "Hits", "share", "token", bound="hits_bound")(accuracy)
    evaluation, table, page = _scored(clips, tmp_path)
    rows = {one.id: one.metrics for one in evaluation.rows}
    ends = torch.stack([clip.frames[[16, 33]] for clip in clips if clip.frames is not None])
    first, last = ends.float().mean(dim=(2, 3, 4)).unbind(dim=1)
    assert rows["copy_last"]["brightness_last"].mean == pytest.approx((last - first).abs().mean().item(), abs=1e-3)
    assert len(evaluation.curves["brightness"]["forecast"]) == 17
    assert 0 < rows["keep_last_tokens"]["sureness"].mean < 1
    assert rows["forecast"]["hits"] == rows["forecast"]["token_accuracy"]
    assert rows["forecast"]["hits_bound"] == rows["forecast"]["teacher_forced_accuracy"]
    assert "hits_bound" not in rows["shuffled_states"], "a bound is of the true states alone"
    for text in (table, page):
        for label in ("Brightness error, last frame", "Sureness", "Hits, teacher-forced"):
            assert label in text


# --- ids and labels ---


def test_the_docs_list_every_id_with_its_label() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    labels = {entry.id: entry.label for entry in ROWS.values()} | {"mean_20": label_of("mean_20")}
    labels |= {metric.id: metric.label for metric in METRICS.values() if not metric.id.endswith(("_last", "_mean"))}
    assert [id for id, label in labels.items() if f"| `{id}` | {label} |" not in page] == []


def test_what_is_no_known_id_stands_for_itself() -> None:
    found = [label_of(id) for id in ("mean_7", "psnr_db_last", "mean_of", "zzz")]
    assert found == ["mean of 7", "PSNR, last frame", "mean_of", "zzz"]
