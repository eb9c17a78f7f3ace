"""A condition, a baseline and a metric are one entry each: rows, JSON, table and report follow, as the docs say."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from builders import small_tokenizer, small_world, write_squares
from commands import ROOT
from test_add_your_own import run

from worldline.contract import FramePattern
from worldline.data.clips import Clips, DataConfig, open_clips
from worldline.evaluation.engine import Amount, score
from worldline.evaluation.result import Evaluation, Row, label_of
from worldline.evaluation.rows import ROWS, Entry, Judged, Made, Scene, condition
from worldline.evaluation.study import STUDIES
from worldline.forecasting.tokens import TokenForecaster
from worldline.metrics.table import METRICS, Metric, NotComputed
from worldline.metrics.tokens import accuracy
from worldline.report.tables import text_table
from worldline.report.write import write_report


@dataclass(frozen=True)
class Scored:
    """An evaluation, and what it looks like as text and on a page, both made from its file."""

    clips: Clips
    evaluation: Evaluation
    table: str
    page: str

    @property
    def rows(self) -> dict[str, Row]:
        return {one.id: one for one in self.evaluation.rows}

    def shows(self, *labels: str) -> bool:
        return all(label in text for text in (self.table, self.page) for label in labels)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scored]:
    """With the entries of the docs, and some more, registered while these tests run."""
    rows, metrics, studies = dict(ROWS), dict(METRICS), dict(STUDIES)
    run("add_your_own.md", "A row of an evaluation: a condition, a baseline or a ceiling", "A metric", "A study")
    condition("own_states", "own states", shown=True)(lambda scene: scene.batch.states)
    Metric("hits", "Hits", "share", "token", bound="hits_bound")(accuracy)

    @Entry("oracle", "an oracle", "baseline")
    def _(scene: Scene) -> Made:
        """It knows."""
        raise NotComputed("no oracle was at hand")

    for id, missing in (("first_clips", 1), ("last_clip", 2)):

        @Entry(id, id, "baseline")
        def _(scene: Scene, missing: int = missing) -> Made:
            """As a row of saved physics, where the file of one episode is gone."""
            if len(scene.batch) == missing:
                raise NotComputed(f"nothing of the batch of {missing}")
            return Made(frames=scene.truth)

    place = tmp_path_factory.mktemp("scored")
    squares = write_squares(place / "squares", 3, length=34)
    clips = open_clips(DataConfig(path=squares, pattern=FramePattern(window=34)), "val")
    tokenizer = small_tokenizer()
    grid = tokenizer.grid(16, 16)
    forecaster = TokenForecaster(tokenizer=tokenizer, world=small_world(grid=grid), grid=grid)
    judged = Judged(forecaster=forecaster, protocol="compression", run="run")
    made = score(judged, clips, Amount(batch_size=2), out=place / "run/evaluation")
    found = Evaluation.load(place / "run/evaluation/metrics.json")
    assert found.rows == made.rows
    page = write_report([place / "run"], place).read_text(encoding="utf-8")
    yield Scored(clips, found, text_table(found), page)
    for table, before in ((ROWS, rows), (METRICS, metrics), (STUDIES, studies)):
        table.clear()
        table.update(before)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_condition_is_one_entry(scored: Scored) -> None:
    frozen, own = scored.rows["halved_states"], scored.rows["own_states"]
    assert frozen.role == "ablation"
    assert frozen.metrics.keys() >= {"psnr_db_last", "ssim_mean", "full_ce", "token_accuracy"}
    assert own.metrics["full_ce"] == scored.rows["forecast"].metrics["full_ce"] != frozen.metrics["full_ce"]
    compared = {(c.better, c.than, c.metric) for c in scored.evaluation.comparisons}
    assert ("forecast", "halved_states", "full_ce") in compared
    assert scored.shows("forecast vs halved states")
    assert "<figcaption>own states</figcaption>" in scored.page, "its frames are shown"


def test_a_baseline_is_one_entry(scored: Scored) -> None:
    grey = scored.rows["grey"]
    assert grey.role == "baseline"
    assert not grey.metrics.keys() & {"full_ce", "token_accuracy"}
    frames = torch.stack([clip.frames[17:] for clip in scored.clips if clip.frames is not None]).double()
    expected = 10 * (255**2 / (frames - 128).square().mean(dim=(2, 3, 4))).log10()
    assert grey.metrics["psnr_db_mean"].mean == pytest.approx(expected.mean().item(), abs=1e-3)
    assert len(scored.evaluation.curves["psnr_db"]["grey"]) == 17
    compared = {(c.better, c.than, c.metric) for c in scored.evaluation.comparisons}
    assert ("forecast", "grey", "psnr_db_last") in compared
    assert scored.evaluation.not_computed["oracle"] == "no oracle was at hand"
    assert scored.shows("grey frames", "an oracle", "no oracle was at hand")


def test_a_row_that_cannot_be_made_of_every_batch_is_left_out_and_it_is_said(scored: Scored) -> None:
    assert not {"first_clips", "last_clip"} & scored.rows.keys()
    reasons = scored.evaluation.not_computed
    assert reasons["first_clips"] == "nothing of the batch of 1"
    assert reasons["last_clip"] == "nothing of the batch of 2"


def test_a_metric_is_one_entry(scored: Scored) -> None:
    rows = {id: one.metrics for id, one in scored.rows.items()}
    ends = torch.stack([clip.frames[[16, 33]] for clip in scored.clips if clip.frames is not None])
    first, last = ends.float().mean(dim=(2, 3, 4)).unbind(dim=1)
    assert rows["copy_last"]["brightness_last"].mean == pytest.approx((last - first).abs().mean().item(), abs=1e-3)
    assert len(scored.evaluation.curves["brightness"]["forecast"]) == 17
    assert 0 < rows["keep_last_tokens"]["sureness"].mean < 1
    assert rows["forecast"]["hits"] == rows["forecast"]["token_accuracy"]
    assert rows["forecast"]["hits_bound"] == rows["forecast"]["teacher_forced_accuracy"]
    assert "hits_bound" not in rows["shuffled_states"], "a bound is of the true states alone"
    assert scored.shows("Brightness error, last frame", "Sureness", "Hits, teacher-forced")


def test_a_study_is_one_class(scored: Scored) -> None:
    [darkness] = [one for one in scored.evaluation.findings if one.id == "darkness"]
    assert darkness.verdict in ("yes", "no")
    [line] = darkness.tables[0].lines
    assert line.values[0] is not None
    assert scored.table.count("Does the forecast darken?") == 1


# --- ids and labels ---


MEANS = ("conditional_mean_1", "conditional_mean_4")


def test_the_docs_list_every_id_with_its_label() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    labels = {entry.id: entry.label for entry in ROWS.values()} | {id: label_of(id) for id in ("mean_20", *MEANS)}
    labels |= {metric.id: metric.label for metric in METRICS.values() if not metric.id.endswith(("_last", "_mean"))}
    mine = {
        "own_states",
        "halved_states",
        "grey",
        "oracle",
        "brightness",
        "sureness",
        "hits",
        "hits_bound",
        "first_clips",
        "last_clip",
    }
    assert [id for id, label in labels.items() if f"| `{id}` | {label} |" not in page and id not in mine] == []


def test_what_is_no_known_id_stands_for_itself() -> None:
    found = [label_of(id) for id in ("mean_7", *MEANS, "psnr_db_last", "mean_of", "zzz")]
    calls = ["conditional mean, 1 call", "conditional mean, 4 calls"]
    assert found == ["mean of 7", *calls, "PSNR, last frame", "mean_of", "zzz"]
