"""The evaluation file and the page made of synthetic run folders: what is absent is said, never guessed."""

import base64
import hashlib
import importlib.util
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_builders import evaluation_of, interval_of, page_of, run_of, text_of

from worldline.evaluation.result import Evaluation, Row, best_rows, label_of
from worldline.evaluation.rows import Setting, mean_id
from worldline.families.tokenizers import TokenizerIdentity
from worldline.metrics.bootstrap import Interval
from worldline.report.drawings import over_time
from worldline.report.gather import gather
from worldline.report.tables import duration, tables, text_table
from worldline.report.write import write_report
from worldline.schema import DataError, UsageError


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(run_of(tmp_path_factory.mktemp("runs") / "tiny"))


# --- the evaluation file ---


def test_an_evaluation_survives_its_file(tmp_path: Path) -> None:
    evaluation = evaluation_of()
    evaluation.save(tmp_path / "evaluation" / "metrics.json")
    assert Evaluation.load(tmp_path / "evaluation" / "metrics.json") == evaluation
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["metrics.json"]


def test_nan_is_null_on_disk_and_nan_again(tmp_path: Path) -> None:
    alone = Interval(mean=2.0, low=math.nan, high=math.nan, num_clips=3, num_episodes=1)
    row = Row(id="forecast", role="model", metrics={"ssim_last": alone})
    evaluation = replace(evaluation_of(), rows=(row,), curves={}, comparisons=())
    evaluation.save(tmp_path / "metrics.json")
    on_disk = json.loads((tmp_path / "metrics.json").read_text())["rows"][0]["metrics"]["ssim_last"]
    assert on_disk == {"mean": 2.0, "low": None, "high": None, "num_clips": 3, "num_episodes": 1}
    assert math.isnan(Evaluation.load(tmp_path / "metrics.json").rows[0].metrics["ssim_last"].low)
    assert "2.000 [one episode]" in text_table(evaluation)


def test_a_broken_evaluation_names_the_file_and_the_place(tmp_path: Path) -> None:
    path = run_of(tmp_path / "run") / "evaluation" / "metrics.json"
    whole = path.read_text()
    for broken, words in {
        whole[: len(whole) // 2]: "expected JSON",
        whole.replace('"num_clips"', '"clips"', 1): r"data\.num_clips",
        whole.replace('"ssim_last"', '"sim_last"'): "unknown metrics sim_last",
        whole.replace('"better": "forecast"', '"better": "forecasts"'): "not there: forecasts",
    }.items():
        path.write_text(broken)
        with pytest.raises(DataError, match=words) as error:
            write_report([tmp_path / "run"], tmp_path)
        assert error.value.path == path
    with pytest.raises(DataError, match="Evaluate the run first"):
        Evaluation.load(tmp_path / "nothing.json")


def test_an_inconsistent_evaluation_is_not_written(tmp_path: Path) -> None:
    evaluation = evaluation_of()
    with pytest.raises(ValueError, match="copy_last"):
        replace(evaluation, rows=evaluation.rows[1:]).save(tmp_path / "metrics.json")
    with pytest.raises(ValueError, match="same id"):
        replace(evaluation, rows=evaluation.rows + evaluation.rows[:1]).save(tmp_path / "metrics.json")
    assert not (tmp_path / "metrics.json").exists()


def test_verdicts_know_which_way_is_better() -> None:
    verdicts = [comparison.verdict() for comparison in evaluation_of().comparisons]
    assert verdicts == ["yes", "yes", "undecided"]
    claim = evaluation_of().comparisons[1]
    assert replace(claim, difference=interval_of(0.6875, 0.125)).verdict() == "no"
    unknown = Interval(mean=3.0, low=math.nan, high=math.nan, num_clips=2, num_episodes=1)
    assert replace(claim, difference=unknown).verdict() == "undecided"


def test_the_best_row_is_the_highest_or_the_lowest_and_never_a_ceiling() -> None:
    rows = evaluation_of().rows
    assert [row.id for row in best_rows(rows, "psnr_db_last")] == ["forecast"]
    assert [row.id for row in best_rows(rows, "full_ce")] == ["forecast"]
    assert best_rows(rows, "psnr_db_mean") == []
    ceiling = Row(id="ceiling", role="ceiling", metrics={"psnr_db_last": interval_of(40.0)})
    assert [row.id for row in best_rows((*rows, ceiling), "psnr_db_last")] == ["forecast"]
    twin = replace(rows[1], id="twin")
    assert [row.id for row in best_rows((*rows, twin), "full_ce")] == ["forecast", "twin"]


def test_the_text_table_fits_its_width_and_holds_every_number() -> None:
    for width in (60, 110, 400):
        lines = text_table(evaluation_of(), width=width).splitlines()
        numbers = [line for line in lines[2:] if "[" in line and ":" not in line]
        assert max(map(len, numbers)) <= width
        text = "\n".join(lines)
        assert "24.32 [23.82, 24.82]*" in text
        assert "33.50 [33.00, 34.00]" in text
        assert "forecast vs copy-last: yes" in text
        assert "not computed: LPIPS: weights missing" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.21, "4.2 s"), (200.0, "3 min 20 s"), (4320.4, "1 h 12 min"), (59.99, "1 min 0 s")],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# --- the page ---


def test_the_page_shows_the_numbers_of_the_json(page: str) -> None:
    results = text_of(page, "results")
    for row in evaluation_of().rows:
        for metric, value in row.metrics.items():
            digits = 2 if "db" in metric else 3
            shown = f"{value.mean:.{digits}f} {value.low:.{digits}f} to {value.high:.{digits}f}"
            assert (shown in results) != (metric in ("top500_coverage", "full_ce"))
            assert (shown in text_of(page, "tokens")) == (
                metric in ("top500_ce_residual", "top500_coverage", "full_ce")
            )
    assert "48 clips of 12 episodes" in results
    assert "◆ 24.32" in results
    assert results.count("◆") == 3
    assert "Undecided forecast vs shuffled states" in text_of(page, "comparisons")
    assert "\N{MINUS SIGN}0.688 nats (\N{MINUS SIGN}0.812 to \N{MINUS SIGN}0.562)" in text_of(page, "comparisons")
    assert "weights missing" in text_of(page, "not-computed")
    assert "worldline train sampling_tiny" in text_of(page, "provenance")
    assert "so nobody can check what decided these numbers" in text_of(page, "receipts")
    assert 'id="further"' not in page
    assert "Also logged: train/lr. Took 49.5 s" in text_of(page, "training")


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    assert "http:" not in page
    assert "https:" not in page
    sources = re.findall(r'(?:src|href|srcset|poster|data)="([^"#][^"]*)"', page)
    assert len(sources) == 1 + 5 * 3, "an icon; of 5 clips the truth, the forecast and the copy"
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"@import|url\((?!#)|fetch\(|<link (?!rel=\"icon\")", page)
    assert "&lt;b&gt;not html&lt;/b&gt;" in page


def test_the_page_forbids_every_request_and_every_script_but_its_own(page: str) -> None:
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0]
    assert policy.startswith("default-src 'none'; img-src data:;")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"<[^>]* on[a-z]+=", page), "a handler in an attribute would not run"


def test_curves_are_inline_and_take_the_colours_of_the_page(page: str) -> None:
    assert page.count('<svg viewBox="0 0 3') == 2
    assert "var(--s0)" in page
    assert "#0101" not in page
    assert "#0102" not in page
    assert "8 future frames are 0.80 s" in text_of(page, "curves")


def test_of_many_rows_the_main_ones_are_drawn() -> None:
    curve = evaluation_of().curves["psnr_db"]["forecast"]
    ids = ("mean_5", "sample", "conditional_mean_1", "conditional_mean_4", "medoid", "shuffled_states", "copy_last")
    rows = tuple(Row(id=id, role="model", metrics={}) for id in ids)
    many = replace(evaluation_of(), rows=rows, curves={"psnr_db": dict.fromkeys(ids, curve)}, comparisons=())
    drawn = [line.label for line in over_time(many, "psnr_db").lines]
    assert drawn == ["mean of 5", "one sample", "shuffled states", "copy-last"]
    few = replace(many, rows=rows[:6], curves={"psnr_db": dict.fromkeys(ids[:6], curve)})
    assert len(over_time(few, "psnr_db").lines) == 6


def test_the_player_offers_best_median_worst_and_every_other_clip(page: str) -> None:
    pictures = text_of(page, "pictures")
    offered = ("Best 31.50", "Median 26.50", "Worst 22.25", "Most surprising 27.75", "Clip 1 24.00")
    order = [pictures.index(f"{words} dB") for words in offered]
    assert order == sorted(order)
    assert re.findall(r"<option[^>]*>([^<]*)</option>", page)[:2] == ["forecast", "copy-last"]
    assert '<option value="2" selected>1/2</option>' in page
    assert "Every pixel is as it was scored." in pictures
    assert "No panel of how sure it was: this evaluation kept no map of it." in pictures


@pytest.mark.parametrize(("num_clips", "titles"), [(1, ["The only clip"]), (2, ["Best", "Worst and most surprising"])])
def test_few_clips_are_offered_once_each(tmp_path: Path, num_clips: int, titles: list[str]) -> None:
    page = page_of(run_of(tmp_path / "tiny", num_clips=num_clips))
    assert re.findall(r'value="\d+"(?: checked)?><span>([A-Z][a-z ]+?) <small>', page) == titles


@pytest.mark.parametrize(
    ("part", "sections"),
    [
        ("config.json", ["provenance"]),
        ("environment.json", ["provenance"]),
        ("metrics.jsonl", ["training"]),
        (
            "evaluation/metrics.json",
            ["summary", "curves", "audit", "uncertainty", "results", "comparisons", "tokens", "not-computed"],
        ),
        ("evaluation/forecasts.npz", ["pictures"]),
    ],
)
def test_what_is_absent_is_said(tmp_path: Path, part: str, sections: list[str]) -> None:
    run = run_of(tmp_path / "tiny", num_clips=1)
    (run / part).unlink()
    page = page_of(run)
    for section in re.findall(r'<section id="([^"]*)">', page):
        said = f"Not available: {part} is not in the run folder." in text_of(page, section)
        assert said == (section in sections)
    if "results" in sections:
        assert "at 10 frames per second; the recorded rate is not known" in text_of(page, "pictures")


def test_an_evaluation_with_little_in_it_makes_a_page(tmp_path: Path) -> None:
    run = run_of(tmp_path / "tiny")
    alone = Interval(mean=0.5, low=math.nan, high=math.nan, num_clips=2, num_episodes=1)
    row = Row(id="forecast", role="model", metrics={"ssim_mean": alone})
    curves = {"ssim": {"forecast": [alone, alone]}}
    little = replace(evaluation_of(), rows=(row,), curves=curves, comparisons=(), not_computed={})
    little.save(run / "evaluation" / "metrics.json")
    (run / "environment.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")
    page = page_of(run)
    assert "0.500 one episode" in text_of(page, "results")
    assert "◆ 0.500" not in page
    assert "Not available: the evaluation made no comparison." in text_of(page, "comparisons")
    assert "No band: one episode" in text_of(page, "curves")
    assert "Not available: the evaluation scored no tokens." in text_of(page, "tokens")
    assert "Not available: metrics.jsonl logs no loss." in text_of(page, "training")
    assert "Nothing was left out." in text_of(page, "not-computed")
    assert "Not available: environment.json is empty." in text_of(page, "provenance")


def test_a_run_without_an_evaluation_is_named_beside_one_that_has_it(tmp_path: Path) -> None:
    first, second = run_of(tmp_path / "first"), run_of(tmp_path / "second")
    (second / "evaluation" / "metrics.json").unlink()
    results = text_of(page_of(first, second), "results")
    assert "24.32" in results
    assert "second Not available: evaluation/metrics.json is not in the run folder." in results
    assert "first Not available" not in results


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        write_report([tmp_path / "nowhere"], tmp_path)
    with pytest.raises(UsageError, match="has none of"):
        write_report([tmp_path], tmp_path)
    with pytest.raises(UsageError, match="at least one"):
        write_report([], tmp_path)


def test_several_runs_share_a_table_only_where_they_compare(tmp_path: Path) -> None:
    first, second, other = (
        run_of(tmp_path / name, psnr=psnr) for name, psnr in (("a", 24.0), ("b", 25.0), ("c", 26.0))
    )
    path = other / "evaluation" / "metrics.json"
    replace(Evaluation.load(path), protocol="compression").save(path)
    results = text_of(page_of(first, second, other), "results")
    assert results.count("Forecaster") == 2
    assert "forecast model · a 24.00" in results
    assert "forecast model · b ◆ 25.00" in results
    assert results.count("copy-last") == 2
    assert "copy-last baseline · a, b 21.12" in results
    assert "do not compare" in results


def _by(evaluation: Evaluation, *, fingerprint: str = "0123456789ab", hysteresis: float = 0.75) -> Evaluation:
    return replace(evaluation, tokenizer=TokenizerIdentity(fingerprint=fingerprint, hysteresis=hysteresis))


@pytest.mark.parametrize("other", [{"fingerprint": "ba9876543210"}, None])
def test_token_costs_of_different_tokenizers_are_never_in_one_table(
    tmp_path: Path, other: dict[str, Any] | None
) -> None:
    one, two = _by(evaluation_of("one")), evaluation_of("two", psnr=25.0)
    two = two if other is None else _by(two, **other)
    (headline,) = tables({"one": one, "two": two}, "headline")
    assert {column.group for column in headline.columns} == {"image"}, "pictures compare all the same"
    assert {run for run, _ in headline.lines} >= {"one", "two"}
    assert "Costs of tokens do not compare" in headline.note
    assert "one: tokenizer 0123456789ab, hysteresis 0.75; two: " in headline.tokenizers
    apart = tables({"one": one, "two": two}, "token")
    assert [{run for run, _ in table.lines} for table in apart] == [{"one"}, {"two"}]
    (together,) = tables({"one": one, "two": _by(two)}, "token")
    assert {run for run, _ in together.lines} == {"one", "two", "one, two"}


def test_every_table_names_the_tokenizer_and_training_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = _by(evaluation_of())
    seen = replace(plain, data=replace(plain.data, split="training data"))
    words = ("tokenizer 0123456789ab, hysteresis 0.75", "TRAINING DATA")
    for evaluation, said in ((seen, True), (replace(plain, data=replace(plain.data, split="held out")), False)):
        folder = run_of(tmp_path / str(said))
        evaluation.save(folder / "evaluation/metrics.json")
        _script_of("tables").main([folder / "evaluation/metrics.json"])
        for shown in (text_table(evaluation), page_of(folder), capsys.readouterr().out):
            if shown:
                assert words[0] in shown
                assert (words[1] in shown) == said


def test_printed_tables_of_different_tokenizers_say_that_they_do_not_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path, fingerprint in zip(paths, ("0123456789ab", "ba9876543210"), strict=True):
        _by(evaluation_of(), fingerprint=fingerprint).save(path)
    _script_of("tables").main(paths)
    assert "Costs of tokens do not compare" in capsys.readouterr().out
    _script_of("tables").main([paths[0], paths[0]])
    assert "do not compare" not in capsys.readouterr().out


def test_the_reports_table_2_has_a_line_for_each_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluation_of()
    copied, forecast, _, reconstruction = found.rows
    for steps, samples, psnr, lpips in ((100, 20, 25.5, 0.158), (20, 1, 22.5, 0.137)):
        numbers = {"psnr_db_last": interval_of(psnr), "lpips_last": interval_of(lpips, 0.01)}
        row = replace(forecast, id=mean_id(samples), metrics=numbers)
        made: dict[str, Setting] = {"steps": steps, "num_samples": samples, "guidance": 1.0, "fd_alex_floor": 3.5}
        rows = (row, copied, reconstruction)
        whole = replace(found, rows=rows, settings=made, curves={}, comparisons=(), not_computed={"fid": "no weights"})
        whole.save(tmp_path / f"n{samples}/metrics.json")
    _script_of("table2").main(tmp_path)
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("| ")]
    starts = [
        "| steps",
        "| 20 | 1.0 | 1 | 22.50 [",
        "| 100 | 1.0 | 20 | 25.50 [",
        "| copy-last | - | - | 21.12 [",
        "| recon",
    ]
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 5
    assert "| 0.137 [0.127, 0.147] | - | - |" in lines[1]
    assert "FD-AlexNet between two halves of the true frames: 3.5" in said
    assert "not computed: FID: no weights" in said
    with pytest.raises(SystemExit, match="no evaluations"):
        _script_of("table2").main(tmp_path / "n1")


def _script_of(name: str) -> Any:
    path = Path(__file__).parents[1] / f"scripts/{name}.py"
    spec = importlib.util.spec_from_file_location("tables_script", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_an_evaluation_from_before_tokenizers_were_recorded_is_read_and_says_so(tmp_path: Path) -> None:
    _by(evaluation_of()).save(tmp_path / "metrics.json")
    content = json.loads((tmp_path / "metrics.json").read_text())
    del content["tokenizer"], content["data"]["split"]
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    old = Evaluation.load(tmp_path / "metrics.json")
    assert (old.tokenizer, old.data.split) == (None, "not checked")
    shown = text_table(old)
    assert "tokenizer not recorded" in shown
    assert "not checked to be held out" in shown


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    page = page_of(run_of(tmp_path / "x" / "run", psnr=24.0), run_of(tmp_path / "y" / "run", psnr=25.0))
    assert "model · x/run" in page
    assert "model · y/run" in page
    twice = page_of(tmp_path / "x" / "run", tmp_path / "x" / "run")
    assert "x/run (2)" in twice
    assert twice.count('<div class="player"') == 2


def test_a_log_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    run = run_of(tmp_path / "tiny")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "train/lo')
    assert len(gather(run).training) == 100
    assert "last line was unfinished" in text_of(page_of(run), "training")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl.*line 101"):
        gather(run)


def test_values_that_are_not_finite_leave_a_counted_gap(tmp_path: Path) -> None:
    run = run_of(tmp_path / "tiny")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "train/loss": NaN}\n{"step": 101, "train/loss": Infinity}\n')
    assert "2 values of train/loss are not finite and left out" in text_of(page_of(run), "training")


def test_damaged_forecasts_name_the_file(tmp_path: Path) -> None:
    run = run_of(tmp_path / "tiny")
    path = run / "evaluation" / "forecasts.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "forecast_0": arrays["forecast_0"][:, :-1]})
    with pytest.raises(DataError, match=r"forecasts\.npz: .*'forecast': 'uint8 \(5, 12, 32, 32, 3\)'"):
        gather(run)
    np.savez(path, **{name: array for name, array in arrays.items() if name != "psnr"})
    with pytest.raises(DataError, match="no psnr"):
        gather(run)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"forecasts\.npz: expected a NumPy archive"):
        gather(run)


def test_plots_of_an_evaluation_show_its_rows(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "scripts/plots.py"
    spec = importlib.util.spec_from_file_location("plots", path)
    assert spec is not None
    assert spec.loader is not None
    plots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plots)
    evaluation_of().save(tmp_path / "metrics.json")
    for out in ("one.svg", "two.svg"):
        plots.main(tmp_path / out, [tmp_path / "metrics.json", tmp_path / "metrics.json"])
    drawn = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "two.svg").read_text(encoding="utf-8")
    shown = [label_of(row.id) for row in evaluation_of().rows if "psnr_db_last" in row.metrics]
    assert len(shown) > 1
    assert [name for name in shown if drawn.count(f">{name}<") < 2] == []


def test_frames_that_skip_some_of_the_video_are_shown_at_their_own_pace(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    evaluation = Evaluation.load(run / "evaluation/metrics.json")
    data = replace(evaluation.data, horizon_frames=4 * evaluation.data.horizon_frames)  # every fourth is predicted
    replace(evaluation, data=data).save(run / "evaluation/metrics.json")
    page = write_report([run], tmp_path).read_text(encoding="utf-8")
    assert "8 future frames are 3.20 s" in text_of(page, "curves")
    assert '<option value="1" selected>real time</option>' in page
