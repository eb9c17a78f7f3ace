"""Inverse dynamics in an evaluation: what is read from each row against what it was given; misfits are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import write_squares
from commands import do
from run_builders import run_of
from test_inverse_dynamics import SMALL, run_on_squares

from worldline import builtin
from worldline.data.clips import DataConfig, open_clips
from worldline.evaluation.evaluate import EvaluateOptions, evaluate
from worldline.evaluation.reader import Reader
from worldline.evaluation.reader_choice import choose_reader
from worldline.evaluation.result import Evaluation
from worldline.evaluation.rows import Judged
from worldline.evaluation.studies.inverse_dynamics import AS_TRUE, InverseDynamicsStudy, spread_of
from worldline.evaluation.study import Found
from worldline.evaluation.verify import VerifyOptions, verify
from worldline.families.card import describe_model
from worldline.families.inverse_dynamics import load_inverse_dynamics
from worldline.forecasting.forecaster import CopyLast
from worldline.metrics.states import state_error
from worldline.metrics.table import NotComputed
from worldline.report.headline import headline
from worldline.report.tables import text_table
from worldline.rundir import model_folder
from worldline.schema import UsageError
from worldline.training.loop import train

# --- numbers against those computed by hand ---


def test_the_metric_is_the_mean_absolute_error_of_the_judged_joints_in_deviations() -> None:
    read, given = torch.tensor([[[1.0, 4.0, 9.0]]]), torch.tensor([[[0.0, 2.0, 0.0]]])
    scale, judged = torch.tensor([0.5, 4.0, 1.0]), torch.tensor([True, True, False])
    assert state_error(read, given, scale, judged).tolist() == [[(1 / 0.5 + 2 / 4.0) / 2]]


def reader(readable: list[float], names: int) -> Reader:
    model = SMALL.build(names).eval()
    model.set_statistics(torch.zeros(names), torch.tensor([0.5, 2.0, 1.0]))
    model.r2.copy_(torch.tensor(readable))
    return Reader(model=model, kinds=("angle", "binary", "angle"), fps=30.0)


def found(measured: dict[str, torch.Tensor], readable: list[float]) -> Found:
    judged = Judged(
        forecaster=CopyLast(context_frames=1, times=(1,), chunk_frames=1),
        protocol="compression",
        run="a",
        reader=reader(readable, 3),
    )
    return Found(
        judged=judged,
        measured=measured,
        scores={},
        numbers={},
        episodes=torch.tensor([0, 0, 1, 1]),
        forecast="forecast",
        alike="forecast",
        fps=30.0,
        state_names=("elbow", "gripper", "hip"),
    )


def errors(*of_each: float) -> torch.Tensor:
    return torch.tensor([of_each] * 4)


MEASURED = {
    "real": errors(0.1, 0.2, 0.9),
    "forecast": errors(0.14, 0.48, 0.9),
    "copy_last": errors(0.3, 0.8, 0.9),
    "squared": errors(0.02, 0.05, 0.9),
    "states": torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]] * 2),
    "states2": errors(1.0, 0.25, 1.0),
    "moved": errors(0.2, 0.1, 1.0),
}


def test_the_study_says_which_joints_are_shown() -> None:
    finding = InverseDynamicsStudy().conclude(found(MEASURED, [0.9, 0.9, 0.9]))
    assert (finding.verdict, AS_TRUE) == ("shows it partly", 1.5)  # 0.14 of 0.1, but 0.48 of 0.2
    assert finding.sentence == (
        "The forecast shows 1 of 2 readable joints (of 3) within 1.5 times the error on true frames: 0.26 deviations "
        "on average, 0.15 on true frames, 0.50 for a copy of the last frame."
    )
    every, angles, closures = finding.tables
    assert [line.label for line in every.lines] == ["true frames", "forecast", "copy-last"]
    assert [line.values[0].mean for line in every.lines] == pytest.approx([0.15, 0.26, 0.5])  # type: ignore[union-attr]
    assert [column.label for column in angles.columns] == ["true frames", "forecast", "copy-last", "deviation", "R^2"]
    assert {column.unit for column in angles.columns[:4]} == {"rad"}
    (elbow,), (gripper,) = angles.lines, closures.lines
    assert (elbow.label, gripper.label) == ("elbow", "gripper")
    assert [one.mean for one in elbow.values if one] == pytest.approx([0.1, 0.14, 0.3, 1.0, 0.9])
    assert [one.mean for one in gripper.values if one] == pytest.approx([0.2, 0.48, 0.8, 0.5, 0.5])
    assert "hip (0.10)" in finding.notes[-1]


def test_joints_whose_moves_are_not_read_in_true_frames_are_not_judged() -> None:
    finding = InverseDynamicsStudy().conclude(found(MEASURED | {"moved": errors(0.2, 0.09, 1.0)}, [0.9, 0.4, 0.9]))
    assert finding.sentence.startswith("The forecast shows 1 of 1 readable joints")
    assert finding.verdict == "shows it"
    assert "gripper (0.44), hip (0.10)" in finding.notes[-1]
    with pytest.raises(NotComputed, match="reads the moves of no joint well enough"):
        InverseDynamicsStudy().conclude(found(MEASURED | {"moved": errors(0.03, 0.09, 1.0)}, [0.1, 0.1, 0.9]))


def test_what_is_misread_in_the_last_context_frame_is_taken_away() -> None:
    torch.manual_seed(0)
    whole = reader([1.0, 1.0, 1.0], 3)
    forecaster = CopyLast(context_frames=5, times=(6, 8), chunk_frames=2)
    frames = torch.randint(0, 256, (2, 9, 3, 16, 16), dtype=torch.uint8)
    now, shown = torch.randn(2, 3), frames[:, [6, 8]]
    plain = whole.model.read(shown, frames[:, 4], times=[6 / 30, 8 / 30], began=4 / 30)
    known = whole.model.read(frames[:, 4:5], frames[:, 2], times=[4 / 30], began=2 / 30)
    torch.testing.assert_close(whole.read(shown, frames[:, :5], now, forecaster), plain - known + now[:, None])
    alone = CopyLast(context_frames=1, times=(1,), chunk_frames=1)
    one = whole.model.read(frames[:, 1:2], frames[:, 0], times=[1 / 30], began=0.0)
    torch.testing.assert_close(whole.read(frames[:, 1:2], frames[:, :1], now, alone), one)


def test_r2_and_deviation_over_all_clips() -> None:
    states = torch.tensor([[0.0, 3.0], [4.0, 3.0]])
    measured = {"squared": torch.tensor([[1.0, 1.0], [0.0, 1.0]]), "states": states, "states2": states.square()}
    spread, shares = spread_of(measured, torch.tensor([0, 1]))
    assert [one.mean for one in spread] == pytest.approx([2.0, 0.0], abs=1e-5)
    assert [one.mean for one in shares] == pytest.approx([1 - 0.5 / 4, 0.0])
    shares = spread_of(measured | {"moved": torch.tensor([[2.0, 4.0], [0.0, 4.0]])}, torch.tensor([0, 1]))[1]
    assert [one.mean for one in shares] == pytest.approx([1 - 0.5 / 1, 1 - 1 / 4])


# --- in an evaluation ---


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world over tokens of squares, a model that reads their states, and other squares to judge it on."""
    lab = tmp_path_factory.mktemp("lab")
    config = run_on_squares(lab, steps=120)
    train(config, lab / "reader")
    world = run_of(
        write_squares(lab / "raw" / "d", 5, length=68, first=200), "tokens", val_episodes="2:", train_episodes=":2"
    )
    train(replace(world, data=replace(world.data, window_stride=17)), lab / "world")
    return lab


def judged(lab: Path, out: Path, **options: Any) -> Evaluation:
    return evaluate(lab / "world", EvaluateOptions(num_clips=4, device="cpu", out=out, **options))


def test_every_row_with_frames_has_a_state_error(lab: Path, tmp_path: Path) -> None:
    evaluation = judged(lab, tmp_path, inverse_dynamics=lab / "reader")
    rows = {row.id: row.metrics for row in evaluation.rows}
    assert {"forecast", "copy_last", "reconstruction", "shuffled_states"} <= rows.keys()
    for id in ("forecast", "copy_last", "reconstruction", "shuffled_states"):
        assert {"state_error_last", "state_error_mean"} <= rows[id].keys()
        assert len(evaluation.curves["state_error"][id]) == 17
    assert "state_error_mean" not in rows["unigram"]
    (finding,) = (one for one in evaluation.findings if one.id == "inverse_dynamics")
    every = {line.label: line.values[0] for line in finding.tables[0].lines}
    true, copied = every["true frames"], every["copy-last"]
    assert true is not None
    assert copied is not None
    assert true.mean < copied.mean
    assert (evaluation.settings["inverse_dynamics"], evaluation.settings["inverse_dynamics_split"]) == (
        "reader",
        "held out",
    )
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert "inverse_dynamics" in receipt["identities"]["models"]


def test_without_a_model_that_fits_it_is_not_computed_and_said_how_to_train_one(lab: Path, tmp_path: Path) -> None:
    evaluation = judged(lab, tmp_path)
    why = evaluation.not_computed["state_error"]
    assert "the built-in inverse-dynamics model reads other states" in why
    assert "worldline train inverse_dynamics_tiny" in why
    assert "--data.image-size 16" in why
    assert evaluation.not_computed["inverse_dynamics"] == why
    assert "state_error" not in evaluation.curves


def _changed(lab: Path, to: Path, **contract: object) -> Path:
    """A copy of the reader, whose contract says something else."""
    folder, config = model_folder(lab / "reader"), to / "model.json"
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    card = json.loads(config.read_text())
    card["contract"] |= contract
    config.write_text(json.dumps(card))
    return to


def test_a_model_that_does_not_fit_is_refused(lab: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases: dict[str, dict[str, object]] = {
        "reads other states: 'wrist' where the world has 'gripper'": {"state_names": ["elbow", "wrist"]},
        "reads clips of 15 frames per second": {"fps": 15.0},
        "reads frames of 32x32, and the world's are 16x16": {"image_size": 32},
    }
    for number, (said, contract) in enumerate(cases.items()):
        other = _changed(lab, tmp_path / f"other{number}", **contract)
        with pytest.raises(UsageError, match=said):
            judged(lab, out, inverse_dynamics=other)
    with pytest.raises(UsageError, match="is none, but of the kind"):
        judged(lab, out, inverse_dynamics=lab / "world")
    with pytest.raises(UsageError, match=r"was trained on \d+ of the evaluated episodes"):
        judged(lab, out, inverse_dynamics=lab / "reader", data=lab / "train")
    assert not out.exists()


def test_a_tokenizer_has_no_use_for_it(lab: Path) -> None:
    with pytest.raises(UsageError, match="--inverse-dynamics would change nothing"):
        evaluate(
            lab / "raw/tokenizer", EvaluateOptions(inverse_dynamics=lab / "reader", data=lab / "val", device="cpu")
        )


# --- such a model alone ---


def test_alone_it_is_compared_with_the_mean_and_the_first_state(lab: Path, tmp_path: Path) -> None:
    evaluation = evaluate(lab / "reader", EvaluateOptions(device="cpu", out=tmp_path))
    assert evaluation.protocol == "states"
    rows = {row.id: row.metrics for row in evaluation.rows}
    assert rows.keys() == {"read_states", "mean_state", "first_state"}
    assert {metric for metrics in rows.values() for metric in metrics} == {"state_error_last", "state_error_mean"}
    own, mean = (rows[id]["state_error_mean"].mean for id in ("read_states", "mean_state"))
    assert own < 0.6 * mean
    finding = evaluation.findings[0]
    assert finding.verdict in ("1 of 2", "2 of 2")
    assert [line.label for table in finding.tables for line in table.lines] == ["elbow", "gripper"]
    assert f"{finding.title} {finding.verdict}" in text_table(evaluation)
    assert "reads states from pictures" in headline(evaluation).sentence


def test_alone_it_is_verified_at_the_step_at_which_it_was_evaluated(lab: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lab / "reader", tmp_path / "reader")
    evaluate(run, EvaluateOptions(device="cpu", num_clips=2))
    do("train", ["--resume", str(run), "--steps", "121"])
    found = verify(run, VerifyOptions(identities=True))
    assert (found.holds, found.differences) == (True, ())


def test_alone_it_has_no_use_for_what_forecasts_need(lab: Path) -> None:
    for words in ({"num_samples": 2}, {"inverse_dynamics": lab / "reader"}, {"horizon": "2s"}):
        with pytest.raises(UsageError, match="would change nothing: the states protocol does not use them"):
            evaluate(lab / "reader", EvaluateOptions(**words))


# --- the built-in ---


def test_the_built_in_reads_the_arms_and_is_the_choice_for_worlds_of_the_twin_alone() -> None:
    place = builtin.INVERSE_DYNAMICS_TINY
    assert sum(file.stat().st_size for file in place.iterdir()) < 1_000_000
    model, contract = load_inverse_dynamics(place), describe_model(place).promise
    names = contract.state_names
    read = {name for name, readable in zip(names, model.readable.tolist(), strict=True) if readable}
    arms = {name for name in names if any(joint in name for joint in ("SHOULDER", "ELBOW", "WRIST"))}
    assert read == arms | {"KNEE_PITCH", "ANKLE_PITCH", "RIGHT_HAND_CLOSURE"}  # bent knees lower the camera

    twin = open_clips(DataConfig(path=builtin.TWIN_MINI_VAL, image_size=64), "val")
    world = describe_model(builtin.COMPRESSION_TINY).promise
    chosen = choose_reader(None, world, twin, "held-out")
    assert (chosen.folder, chosen.split, chosen.why_not) == (place, "held out", "")
    slower = replace(world, fps=15.0)
    assert "reads clips of 30 frames per second" in choose_reader(None, slower, twin, "held-out").why_not


def test_data_of_the_same_names_that_are_not_the_twins_get_none_by_default(tmp_path: Path) -> None:
    copied = tmp_path / "robot"
    shutil.copytree(builtin.TWIN_MINI_VAL, copied, ignore=shutil.ignore_patterns("twin.json", "physics"))
    clips = open_clips(DataConfig(path=copied, image_size=64), "val")
    world = describe_model(builtin.COMPRESSION_TINY).promise
    assert "was trained on the twin" in choose_reader(None, world, clips, "held-out").why_not
    given = choose_reader(builtin.INVERSE_DYNAMICS_TINY, world, clips, "held-out")
    assert given.folder == builtin.INVERSE_DYNAMICS_TINY


def test_several_data_sets_of_the_twin_are_clips_of_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(builtin.TWIN_MINI_VAL, tmp_path / name)
    clips = open_clips(DataConfig(path=(tmp_path / "one", tmp_path / "two"), image_size=64), "val")
    assert clips.source.name == "one + two"
    world = describe_model(builtin.COMPRESSION_TINY).promise
    assert choose_reader(None, world, clips, "held-out").folder == builtin.INVERSE_DYNAMICS_TINY
    (tmp_path / "two/twin.json").unlink()
    assert "no clips of it" in choose_reader(None, world, clips, "held-out").why_not
