"""Receipts: what decided the numbers is named, edits are noticed, and numbers come out again; runs are compared."""

import json
import math
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import arrays_in, write_squares
from commands import ROOT, do, parse
from run_builders import run_of
from test_site import script

from worldline import builtin
from worldline.cli import main as entry
from worldline.data.splits import content_of, recording_of
from worldline.evaluation.compare import CompareOptions, compare, load_scored
from worldline.evaluation.evaluate import EvaluateOptions, evaluate, identities
from worldline.evaluation.receipt import Receipt, Request, beside, places_of
from worldline.evaluation.study import STUDIES
from worldline.evaluation.verify import VerifyOptions, numbers_of, tolerance, verify
from worldline.families.tokenizers import fingerprint
from worldline.files import hash_of, hash_of_file, read_json, write_json
from worldline.formats.open import open_source
from worldline.metrics.bootstrap import Simultaneous, simultaneous
from worldline.metrics.perceptual import packaged_weights
from worldline.report.compared import paired_cells
from worldline.rundir import built, version_of
from worldline.schema import DataError, UsageError
from worldline.training.loop import train

Capture = pytest.CaptureFixture[str]
FEW = EvaluateOptions(num_clips=4, batch_size=2, condition_samples=0, lpips="off", device="cpu")


@dataclass(frozen=True)
class Lab:
    """A world over tokens of moving squares, evaluated once."""

    place: Path

    @property
    def run(self) -> Path:
        return self.place / "run"

    @property
    def raw(self) -> Path:
        return self.place / "data/raw"

    @property
    def receipt(self) -> Path:
        return self.run / "evaluation/receipt.json"

    def copy(self, place: Path) -> Path:
        """The evaluation, elsewhere."""
        return Path(shutil.copytree(self.run / "evaluation", place))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    write_squares(lab.raw, 5, length=68)
    config = run_of(lab.raw, "tokens", train_episodes=":3", val_episodes="3:", val_path=None, window_stride=17)
    train(replace(config, steps=2, checkpoint_every=1), lab.run)
    evaluate(lab.run, FEW)
    return lab


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def seal(told: Receipt, path: Path) -> None:
    """Write a receipt again, with checksums as its files are now: what who cheats on purpose would do."""
    files = {name: hash_of_file(file) for name, file in beside(path).items() if file.exists()}
    replace(told, files=files).write(path)


def _code(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["worldline", *map(str, words)])
    try:
        entry.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


# --- what a receipt says ---


def test_a_receipt_names_what_decided_the_numbers(lab: Lab) -> None:
    told, run = Receipt.load(lab.receipt), lab.run
    content = read_json(lab.receipt)
    assert told.command == f"worldline evaluate {run} --lpips off --num-clips 4 --batch-size 2 --condition-samples 0"
    job = parse(told.command.split()[1:])
    assert {one.name: getattr(job, one.name) for one in fields(EvaluateOptions)} == vars(replace(FEW, device="auto"))
    data, world = told.identities.data, told.identities.models["world"]
    source = open_source(lab.raw)
    assert data.content == content_of(source, (3, 4))
    assert data.recordings == {str(i): recording_of(source, i) for i in (3, 4)}
    assert (world.weights, world.step) == (fingerprint(run), 2)
    assert world.tokenizer == fingerprint(lab.place / "data/tokenizer")
    assert (told.identities.protocol, told.identities.split) == ("compression", "held out")
    assert told.identities.options.keys() | told.places.keys() == {one.name for one in fields(EvaluateOptions)} - {
        "out",
        "device",
        "allow_different",
    }, "complete"
    assert told.identities.libraries["torch"] == version_of("torch")
    assert told.identities.processor.instructions == torch.backends.cpu.get_cpu_capability()
    assert told.made.processes == 1
    assert "no signature" in content["about"]


def test_the_command_of_a_receipt_asks_for_the_same() -> None:
    options = EvaluateOptions(
        num_clips=None,
        means=(2, 3),
        num_samples=4,
        temperature=0.5,
        average_repeats=True,
        mean_draws=(8,),
        data=(Path("one"), Path("an other")),
        exclude_episodes=(1, 2),
        unconditional=Path("runs/without"),
        allow_different=("tokenizer", "validation"),
        checkpoint="best",
        out=Path("here"),
    )
    command = Request.of("runs/world", options).command(EvaluateOptions())
    job = parse(shlex.split(command)[1:])
    assert str(job.run) == "runs/world"
    assert {one.name: getattr(job, one.name) for one in fields(options)} == vars(replace(options, out=None))


def test_verify_can_be_told_the_place_of_everything() -> None:
    assert set(places_of(EvaluateOptions)) <= {one.name for one in fields(VerifyOptions)}


# --- edits ---


@pytest.mark.parametrize("name", ["receipt.json", "metrics.json", "scores.npz"])
def test_an_edit_by_hand_is_noticed(
    lab: Lab, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    place = lab.copy(tmp_path / "copy")
    if name == "scores.npz":
        arrays = arrays_in(place / name)
        arrays["forecast/psnr_db"] += 1
        np.savez(place / name, **arrays)
    elif name == "metrics.json":
        content = read_json(place / name)
        content["rows"][0]["metrics"]["psnr_db_last"]["mean"] += 1e-3
        write_json(place / name, content)
    else:
        _edit(place / name, '"num_clips": 4', '"num_clips": 5')
    before = (place / name).read_bytes()
    assert _code(monkeypatch, "verify", place) == 2
    said = capsys.readouterr().err
    assert name in said
    assert "edited" in said
    assert "valuate again" in said
    assert (place / name).read_bytes() == before


def test_what_is_no_receipt_is_refused(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no receipt in .*worldline evaluate"):
        verify(tmp_path)
    place = lab.copy(tmp_path / "copy")
    (place / "metrics.json").unlink()
    with pytest.raises(DataError, match=r"metrics\.json.*no file"):
        verify(place)
    (place / "receipt.json").write_text("{")
    with pytest.raises(DataError, match=r"receipt\.json"):
        verify(place)


# --- verified ---


def test_the_same_evaluation_is_equal_to_the_last_digit(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    before = {path: path.read_bytes() for path in lab.run.rglob("*") if path.is_file()}
    assert _code(monkeypatch, "verify", lab.run, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"]
    assert {one["verdict"] for one in found["numbers"]} == {"equal"}
    assert found["differences"] == []
    names = {one["name"] for one in found["numbers"]}
    assert {"forecast, psnr_db_last", "copy_last, psnr_db, frame 17", "forecast minus unigram, full_ce"} <= names
    after = {path: path.read_bytes() for path in lab.run.rglob("*") if path.is_file()}
    assert after == before, "nothing is written into the run"


@pytest.mark.slow
def test_a_changed_number_is_different_however_well_it_is_sealed(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    place = lab.copy(tmp_path / "copy")
    content = read_json(place / "metrics.json")
    row = next(row for row in content["rows"] if row["id"] == "copy_last")
    row["metrics"]["psnr_db_last"]["mean"] += 1e-3
    write_json(place / "metrics.json", content)
    seal(Receipt.load(place / "receipt.json"), place / "receipt.json")
    assert _code(monkeypatch, "verify", place) == 1
    said = capsys.readouterr().out
    assert "different: copy_last, psnr_db_last" in said
    assert "NOT VERIFIED" in said
    assert said.count("different: ") == 1


def test_elsewhere_a_small_difference_is_within_tolerance_and_a_large_one_is_not(
    lab: Lab, tmp_path: Path, capsys: Capture
) -> None:
    place = lab.copy(tmp_path / "copy")
    content = read_json(place / "metrics.json")
    for row, change in (("copy_last", 1e-3), ("forecast", 1.0)):
        next(one for one in content["rows"] if one["id"] == row)["metrics"]["psnr_db_last"]["mean"] += change
    write_json(place / "metrics.json", content)
    told = Receipt.load(place / "receipt.json")
    processor = replace(told.identities.processor, name="another processor")
    libraries = told.identities.libraries | {"torch": "1.0"}
    seal(
        replace(told, identities=replace(told.identities, processor=processor, libraries=libraries)),
        place / "receipt.json",
    )
    found = verify(place)
    assert [one.part for one in found.differences] == ["library torch", "processor"]
    verdicts = {one.name: one.verdict for one in found.numbers or ()}
    assert verdicts["copy_last, psnr_db_last"] == "within tolerance"
    assert verdicts["forecast, psnr_db_last"] == "different"
    assert not found.holds
    assert "not the same: library torch, processor" in found.summary


def test_other_data_and_another_world_are_named(lab: Lab, tmp_path: Path, capsys: Capture) -> None:
    other = write_squares(tmp_path / "other", 2, length=68, first=50)
    found = verify(lab.run, VerifyOptions(data=other, identities=True))
    assert [one.part for one in found.differences] == ["data", "clips", "recordings"]
    assert not found.holds
    assert "ANOTHER EVALUATION" in found.summary
    step = lab.run / "checkpoints/step_0000001"
    with_tokenizer = VerifyOptions(run_folder=step, tokenizer=lab.place / "data/tokenizer", identities=True)
    parts = {one.part for one in verify(lab.run, with_tokenizer).differences}
    assert {"weights of the world", "training step of the world"} <= parts
    assert verify(lab.run, VerifyOptions(identities=True)).holds


def test_a_run_that_has_moved_and_gone_on_is_found_and_one_that_is_gone_is_asked_for(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(lab.run, moved)
    told = Receipt.load(moved / "evaluation/receipt.json")
    seal(replace(told, run="runs/gone", folder="/nowhere"), moved / "evaluation/receipt.json")
    do("train", ["--resume", str(moved), "--steps", "3"])
    found = verify(moved, VerifyOptions(identities=True))
    assert (found.holds, found.differences) == (True, ()), "the checkpoint that was evaluated is still there"
    alone = shutil.copytree(moved / "evaluation", tmp_path / "alone")
    with pytest.raises(UsageError, match=r"the run runs/gone is not here; give its place \(--run-folder RUN\)"):
        verify(alone)
    assert verify(alone, VerifyOptions(run_folder=moved, identities=True)).holds
    seal(replace(told, places=told.places | {"data": "gone"}), alone / "receipt.json")
    assert _code(monkeypatch, "verify", alone) == 2
    assert "give its place (--data PLACE)" in capsys.readouterr().err


def test_data_that_are_gone_and_options_of_another_version_are_told(lab: Lab, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lab.run, tmp_path / "run"))
    told = replace(Receipt.load(run / "evaluation/receipt.json"), run=str(run))
    told.write(run / "evaluation/receipt.json")
    _edit(run / "config.json", str(lab.raw), str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"gone, which are not there now; give their new place \(--data DIR\)"):
        verify(run)
    other = replace(told.identities, options=told.identities.options | {"fancy": 3})
    replace(told, identities=other).write(run / "evaluation/receipt.json")
    with pytest.raises(UsageError, match=r"another version of worldline \(commit .*fancy"):
        verify(run)
    _edit(run / "evaluation/receipt.json", '"format": 1', '"format": 2')
    content = read_json(run / "evaluation/receipt.json")
    del content["checksum"]
    write_json(run / "evaluation/receipt.json", content | {"checksum": hash_of(content)})
    with pytest.raises(DataError, match=r"a receipt of this version.*Use the version of worldline that wrote it"):
        verify(run)


def test_the_key_of_an_evaluation_is_that_of_its_identities(lab: Lab) -> None:
    told = Receipt.load(lab.receipt)
    assert identities(lab.run, FEW) == told.identities
    assert identities(lab.run, FEW).key == told.identities.key != identities(lab.run, replace(FEW, num_clips=3)).key


def test_numbers_and_verdicts_of_findings_are_compared() -> None:
    mean = {"mean": 1.0, "low": 0.5, "high": 1.5, "num_clips": 4, "num_episodes": 2}
    line, column = {"label": "shuffled", "values": [mean, None]}, {"label": "PSNR", "unit": "dB"}
    chart = {"title": "doses", "x_label": "", "y_label": "", "curves": [{"label": "noise", "x": [0.5], "y": [mean]}]}
    finding = {"id": "audit", "verdict": "follows", "charts": [chart]}
    finding["tables"] = [{"title": "costs", "columns": [column, column], "lines": [line]}]
    found = numbers_of({"rows": [], "curves": {}, "comparisons": [], "settings": {"seed": 0}, "findings": [finding]})
    ends = (1.0, 0.5, 1.5, 4, 2)
    assert found == {
        "setting seed": ("", 0),
        "audit, verdict": ("", "follows"),
        "audit, costs, shuffled, PSNR": ("dB", ends),
        "audit, doses, noise at 0.5": ("", ends),
    }


@pytest.mark.parametrize(("unit", "value", "expected"), [("dB", 2.0, 0.05), ("dB", -30.0, 0.06), ("", 0.5, 0.003)])
def test_tolerances(unit: str, value: float, expected: float) -> None:
    assert tolerance(unit, value) == pytest.approx(expected)


# --- compare ---


@pytest.fixture(scope="module")
def halfway(lab: Lab) -> Path:
    """The evaluation of the run's first checkpoint, in a folder of its own."""
    out = lab.place / "halfway"
    evaluate(lab.run, replace(FEW, checkpoint="1", out=out))
    return out


def _per_episode(place: Path, row: str) -> np.ndarray:
    """PSNR of the last frame, a mean for each episode."""
    arrays = arrays_in(place / "scores.npz")
    values = arrays[f"{row}/psnr_db"][:, -1].astype(np.float64)
    return np.array([values[arrays["episode"] == episode].mean() for episode in np.unique(arrays["episode"])])


def test_differences_are_paired_by_clip_and_bounded_by_episode(lab: Lab, halfway: Path, tmp_path: Path) -> None:
    found = compare([lab.run, halfway], CompareOptions(metric=("psnr_db_last",)))
    (paired,), (scatter,) = found.differences, found.scatters
    one, other = (_per_episode(place, "forecast") for place in (lab.run / "evaluation", halfway))
    assert (paired.one, paired.other) == ("run", "halfway")
    # Two episodes of two clips each: a quarter of the resamples holds one of them only, a quarter the other.
    expected = sorted(one - other)
    assert paired.difference.mean == pytest.approx((one - other).mean())
    assert (paired.difference.low, paired.difference.high) == pytest.approx(tuple(expected))
    # Their mean is the mean of all, and deviates by the half of what they differ by, or not at all: 2^-1/2 of it is the
    # standard error, so all resamples lie within 2^1/2 standard errors.
    assert (paired.together.low, paired.together.high) == pytest.approx(tuple(expected), rel=0.01)
    assert (scatter.x, scatter.y) == (pytest.approx(tuple(one)), pytest.approx(tuple(other)))
    assert set(scatter.recordings) == set(Receipt.load(lab.receipt).identities.data.recordings.values())
    rows = [(runs, row.id) for runs, row in found.rows]
    assert rows[:2] == [("run", "forecast"), ("halfway", "forecast")]
    assert rows.count(("all", "copy_last")) == 1
    assert any("option --checkpoint (latest | 1)" in note for note in found.notes)


def test_over_seeds_the_difference_is_the_mean_of_those_of_each_seed(lab: Lab, halfway: Path) -> None:
    over_seeds, (one, other) = script("over_seeds"), (load_scored(path) for path in (lab.run, halfway))
    alone = compare([lab.run, halfway], CompareOptions(metric=("psnr_db_last",))).differences[0].difference
    pair = [over_seeds.each_seed(one, runs, "psnr_db_last") for runs in ([one, one], [other, one])]
    halved = over_seeds.over_episodes(one, 2 * (pair[0] - pair[1]).mean(dim=0))  # one of both seeds differs
    assert (halved.mean, halved.low, halved.high) == pytest.approx((alone.mean, alone.low, alone.high))
    rows = over_seeds.table([one, one], [other, other], ["psnr_db_last", "full_ce"]).splitlines()
    assert [row.count("|") for row in rows] == [4] * 5
    assert rows[-1].startswith(f"| difference | {over_seeds.said(alone)} ({alone.mean:.3f}, {alone.mean:.3f}) |")
    still = over_seeds.table([one, one], [other, other], ["psnr_db_last"], rows=(None, "copy_last")).splitlines()
    copies = over_seeds.each_seed(one, [other, other], "psnr_db_last", "copy_last")
    assert still[-2] == f"| {other.name}, copy-last | {over_seeds.with_seeds(one, copies)} |"
    assert still[-1] == f"| difference | {over_seeds.with_seeds(one, pair[0] - copies)} |"


def test_clips_are_paired_by_their_recording_whatever_their_order(lab: Lab, halfway: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(halfway, tmp_path / "turned"))
    arrays = {name: values[::-1] for name, values in arrays_in(place / "scores.npz").items()}
    np.savez(place / "scores.npz", **arrays)
    told = Receipt.load(place / "receipt.json")
    seal(told, place / "receipt.json")
    asked = CompareOptions(metric=("psnr_db_mean", "full_ce"))
    first, turned = (compare([lab.run, other], asked).differences for other in (halfway, place))
    assert [one.difference for one in first] == [one.difference for one in turned]


def test_what_does_not_compare_is_refused_by_name(
    lab: Lab, halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    fewer = Path(shutil.copytree(halfway, tmp_path / "fewer"))
    np.savez(fewer / "scores.npz", **{name: values[1:3] for name, values in arrays_in(fewer / "scores.npz").items()})
    seal(Receipt.load(fewer / "receipt.json"), fewer / "receipt.json")
    with pytest.raises(UsageError, match=r"run and fewer cannot be compared: not the same clips \(4 \| 2 of the same"):
        compare([lab.run, fewer])
    other = Path(shutil.copytree(halfway, tmp_path / "other"))
    told = Receipt.load(other / "receipt.json")
    data = replace(told.identities.data, recordings={"3": "another", "4": told.identities.data.recordings["4"]})
    seal(replace(told, identities=replace(told.identities, data=data)), other / "receipt.json")
    with pytest.raises(UsageError, match=r"not the same data \(2 \| 2 recordings, 1 of them the same\)"):
        compare([lab.run, other])
    longer = Path(shutil.copytree(halfway, tmp_path / "longer"))
    content = read_json(longer / "metrics.json")
    content["data"]["horizon_frames"] = 34
    write_json(longer / "metrics.json", content)
    seal(Receipt.load(longer / "receipt.json"), longer / "receipt.json")
    with pytest.raises(UsageError, match=r"horizon \(17 frames at 30 per second \| 34 frames"):
        compare([lab.run, longer])
    with pytest.raises(UsageError, match="at least two"):
        compare([lab.run])
    with pytest.raises(UsageError, match="did you mean 'psnr_db'"):
        compare([lab.run, halfway], CompareOptions(metric=("psnr_d",)))
    with pytest.raises(UsageError, match="there is no row in run 'forecst'; did you mean 'forecast'"):
        compare([lab.run, halfway], CompareOptions(row="forecst"))
    (longer / "scores.npz").unlink()
    assert _code(monkeypatch, "compare", lab.run, longer) == 2
    assert f"Evaluate it again: `worldline evaluate {lab.run}" in capsys.readouterr().err
    (longer / "receipt.json").unlink()
    assert _code(monkeypatch, "compare", lab.run, longer) == 2
    assert "there is no receipt in" in capsys.readouterr().err


def test_costs_of_other_tokens_are_left_out(lab: Lab, halfway: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(halfway, tmp_path / "other"))
    content = read_json(other / "metrics.json")
    content["tokenizer"]["fingerprint"] = "another"
    write_json(other / "metrics.json", content)
    seal(Receipt.load(other / "receipt.json"), other / "receipt.json")
    found = compare([lab.run, other])
    assert found.metrics == ("psnr_db_last", "psnr_db_mean")
    assert any("Cross-entropy is left out: the tokens are of other tokenizers" in note for note in found.notes)
    with pytest.raises(UsageError, match="other tokenizers"):
        compare([lab.run, other], CompareOptions(metric=("full_ce",)))


def test_a_comparison_is_one_page_with_a_point_for_each_episode(
    lab: Lab, halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    do("compare", [str(lab.run), str(halfway), "--out", str(tmp_path / "new/page.html"), "--json"])
    assert json.loads(capsys.readouterr().out)["page"] == str(tmp_path / "new/page.html")
    page = (tmp_path / "new/page.html").read_text(encoding="utf-8")
    assert "run minus halfway" in page
    assert "below it, run is better" in page
    assert page.count("<use ") >= 2, "two episodes"
    assert not re.search(r"(src|href)=.?https?:", page)
    assert _code(monkeypatch, "compare", lab.run, halfway, "--out", tmp_path / "page.pdf") == 2
    assert "ends with .html" in capsys.readouterr().err
    do("compare", [str(lab.run), str(halfway), "--over", "steps", "--out", str(tmp_path)])
    assert "Learning curves" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_a_learning_curve_over_steps_and_episodes(lab: Lab, halfway: Path, tmp_path: Path, capsys: Capture) -> None:
    do("compare", [str(lab.run), str(halfway), "--over", "steps", "--metric", "psnr_db_last", "--json"])
    (chart,) = json.loads(capsys.readouterr().out)["curves"]
    (curve,) = chart["curves"]
    places = (halfway / "metrics.json", lab.run / "evaluation/metrics.json")
    expected = [read_json(place)["rows"][0]["metrics"]["psnr_db_last"] for place in places]
    assert (curve["label"], curve["x"], curve["y"]) == ("run", [1.0, 2.0], expected)
    elsewhere = shutil.copytree(halfway, tmp_path / "elsewhere")  # the same run, by a relative place
    told = replace(Receipt.load(elsewhere / "receipt.json"), folder=str(lab.place), run="run")
    told.write(elsewhere / "receipt.json")
    (chart,) = compare([lab.run, elsewhere], CompareOptions(metric=("psnr_db_last",), over="steps")).curves
    assert [one.label for one in chart.curves] == ["run"]
    do("compare", [str(lab.run), str(halfway), "--over", "episodes"])
    said = capsys.readouterr().out
    assert "training episodes" in said
    assert said.count("\n3  ") >= 2, "both were trained on three episodes"


def test_more_motion_is_not_better(lab: Lab, halfway: Path) -> None:
    found = compare([lab.run, halfway], CompareOptions(metric=("motion", "psnr_db_last")))
    apart = Simultaneous(low=0.5, high=0.7, p=0.001)
    moved, seen = (replace(one, together=apart) for one in found.differences)
    assert (moved.better, paired_cells(moved)[-1]) == (None, "-")
    assert (seen.better, paired_cells(seen)[-1]) == ("run", "run")


def test_intervals_of_many_differences_hold_together() -> None:
    draws = torch.randn(400, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    episodes = torch.arange(400)
    for values, expected in ((draws[:, :1], 1.96), (draws, 2.80), (draws[:, :1].expand(-1, 10), 1.96)):
        found = simultaneous(values, episodes)  # Sidak's widths; of what is the same ten times, that of one
        for one, error in zip(found, (values.std(dim=0) / 20).tolist(), strict=True):
            assert (one.high - one.low) / 2 / error == pytest.approx(expected, rel=0.06)
    shifted = simultaneous(draws + torch.tensor([1.0] + [0.0] * 9), episodes)
    assert shifted[0].p == pytest.approx(1 / 2001)
    assert shifted[0].low > 0.5
    assert all(one.low < 0 < one.high and one.p > 0.05 for one in shifted[1:])
    same = simultaneous(torch.zeros(4, 2), torch.arange(4))
    assert [(one.low, one.high, one.p) for one in same] == [(0, 0, 1)] * 2
    assert math.isnan(simultaneous(draws[:4], torch.zeros(4, dtype=torch.int64))[0].low), "one episode"
    sparse = torch.tensor([[0.5, 1.0], [0.7, 3.0], [math.nan, 1.0], [math.nan, 2.0]])
    found = simultaneous(sparse, torch.tensor([0, 0, 1, 2]))
    assert math.isnan(found[0].low), "only one of three episodes has something to measure"
    assert math.isnan(found[0].p)
    assert found[1].low < found[1].high


# --- what is published ---


def test_a_published_evaluation_names_no_place_of_this_machine_and_is_verified(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    publish = script("publish")
    written = publish.main(lab.run, "squares", tmp_path / "results")
    assert [path.name for path in written] == ["squares.json", "squares.receipt.json"]
    assert not any(str(lab.place) in path.read_text() for path in written)
    told = Receipt.load(written[1])
    assert told.command == "worldline evaluate RUN --lpips off --num-clips 4 --batch-size 2 --condition-samples 0"
    assert told.folder is None
    assert _code(monkeypatch, "verify", written[1]) == 2
    assert "the run RUN is not here; give its place (--run-folder RUN)" in capsys.readouterr().err
    found = verify(written[1], VerifyOptions(run_folder=lab.run, identities=True))
    assert (found.holds, found.differences) == (True, ())
    assert publish.public(["twin-mini-val", str(builtin.TWIN_MINI_VAL), "runs/a", "/data/b"], "data") == [
        *("twin-mini-val", "twin-mini-val", "runs/a", "DATA")
    ]


def test_every_published_receipt_is_whole_and_of_its_table() -> None:
    for path in (ROOT / "docs/results").glob("*.receipt.json"):
        told = Receipt.load(path)
        told.refuse_other_files(path)
        assert {1, 4} <= {*built(EvaluateOptions, told.identities.options).mean_draws}, "the rows it has"


@pytest.mark.slow
@pytest.mark.skipif(not builtin.COMPRESSION_TINY.is_dir(), reason="this checkout has no built-in checkpoints")
def test_a_published_table_comes_out_again(
    unlisted: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """All that tables of rows list, and all findings but one. The rest would take as long again, and is compared with
    what it was, of few clips, in test_figures.py: conditions that the audit alone shows, and counterfactuals."""
    receipt = ROOT / "docs/results/compression_tiny.receipt.json"
    if not receipt.exists():
        pytest.skip(f"{receipt.name} is not published")
    monkeypatch.delitem(STUDIES, "counterfactuals")
    code = _code(monkeypatch, "verify", receipt, "--json")
    found = json.loads(capsys.readouterr().out)
    verdicts = {one["name"]: one["verdict"] for one in found["numbers"]}
    assert [name for name, verdict in verdicts.items() if verdict == "different"] == []
    charts = "Noise on the states|States that come late"
    costs = f"What other states cost, ({'|'.join(map(re.escape, unlisted.values()))})"
    left_out = f"({'|'.join(unlisted)}|counterfactuals), |audit, ({charts}|{costs}), "
    absent = [name for name, verdict in verdicts.items() if verdict == "not computed" and not re.match(left_out, name)]
    assert len(unlisted) == 10
    assert sum(verdict != "not computed" for verdict in verdicts.values()) > 800
    assert {"shuffled_states, psnr_db_last", "audit, verdict", "uncertainty, verdict"} <= verdicts.keys()
    if packaged_weights("alex") is None:  # then that is said
        absent = [name for name in absent if not re.search("lpips|fd_alex", name, re.IGNORECASE)]
    assert (code, absent) == (1, []), found["summary"]
