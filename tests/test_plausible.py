"""Finite numbers that no robot gives are named with their first place, and sound data raise no alarm."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import write_squares
from data_builders import write_lerobot
from pyarrow import parquet
from run_builders import run_of

from worldline import builtin
from worldline.data.info import inspect
from worldline.evaluation.held_out import DataChoice, split_of
from worldline.families.card import describe_model
from worldline.formats.open import open_source
from worldline.formats.states import bounds_of, compute_stats, implausible, unlike
from worldline.schema import DataError
from worldline.training.loop import train

SHARED = Path(__file__).parents[2] / "shared/data"
G1, ONEX = SHARED / "g1_pick_bottle_256", SHARED / "onex_v2_fragments/raw_states_sample/states_0.bin"


def moved(episode: int, length: int = 60, dim: int = 2) -> np.ndarray:
    """Joints that swing by about one radian, each in its own way."""
    t = np.arange(length)[:, None] + 7 * episode
    return np.sin(t / 9 + np.arange(dim)).astype(np.float32)


def write(root: Path, states: list[np.ndarray]) -> Path:
    """A LeRobot data set with these states, one array per episode."""
    write_lerobot(root, "v2.1", tuple(len(rows) for rows in states), names=["elbow", "knee"])
    for path, rows in zip(sorted(root.glob("data/*/*.parquet")), states, strict=True):
        table = parquet.read_table(path)
        column = pa.array(rows.tolist(), pa.list_(pa.float32()))
        parquet.write_table(table.set_column(0, "observation.state", column), path)
    return root


def kinds(problems: list[DataError]) -> list[str]:
    return [problem.kind for problem in problems]


@pytest.mark.parametrize("value", [1e6, -1e6, 3e38, 500.0])
@pytest.mark.parametrize("length", [12, 60])
def test_a_wild_value_is_named_and_makes_no_joint_something_else(tmp_path: Path, value: float, length: int) -> None:
    states = [moved(episode, length) for episode in range(3)]
    states[1][9, 0] = value
    source = open_source(write(tmp_path / "d", states))
    assert source.layout.kinds == ("angle", "angle")
    (problem,) = implausible(source, range(3))
    assert problem.kind == "wild_value"
    assert problem.path.name == "episode_000001.parquet"
    assert f"found {value:.6g} in row 9 of episode 1 (1 such values in 1 episodes)" in str(problem)
    assert "elbow within" in str(problem)
    assert "--exclude-episodes 1" in str(problem)
    assert list(implausible(source, [0, 2])) == []


def test_wild_values_are_counted_once_per_kind(tmp_path: Path) -> None:
    states = [moved(episode) for episode in range(4)]
    for episode in (1, 3):
        states[episode][20:22] = 1e5
    (problem,) = implausible(open_source(write(tmp_path / "d", states)), range(4))
    assert "in row 20 of episode 1 (8 such values in 2 episodes)" in str(problem)


def test_an_episode_in_degrees_is_named(tmp_path: Path) -> None:
    states = [moved(episode) for episode in range(5)]
    states[3] = np.degrees(states[3])
    (problem,) = implausible(open_source(write(tmp_path / "d", states)), range(5))
    assert problem.kind == "other_unit"
    assert "in episode 3, as if in another unit (1 such episodes)" in str(problem)


def test_data_info_says_it(tmp_path: Path) -> None:
    states = [moved(episode) for episode in range(3)]
    states[1][9, 0] = 1e6
    found = [problem for problem in inspect(write(tmp_path / "d", states)).problems if problem.kind == "wild_value"]
    assert len(found) == 1
    assert "row 9 of episode 1" in str(found[0])


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda rows: np.degrees(rows), "other_range", "2 such dimensions"),
        (lambda rows: np.add(rows, [0, 30]), "other_range", "knee as in training"),
        (lambda rows: rows * [1, 0] + [0, 0.25], "stands_still", "knee to move, as in training, found 0.25"),
        (lambda rows: np.where(np.arange(len(rows))[:, None] == 5, 1e4, rows), "wild_value", "in row 5 of episode 0"),
    ],
)
def test_states_unlike_those_of_training_are_named(tmp_path: Path, change: object, kind: str, words: str) -> None:
    trained = compute_stats(open_source(write(tmp_path / "train", [moved(i) for i in range(4)])))
    source = open_source(write(tmp_path / "new", [np.asarray(change(moved(9)), np.float32)]))  # pyright: ignore[reportCallIssue]
    problems = list(unlike(source, [0], trained))
    assert kinds(problems) == [kind]
    assert words in str(problems[0])


def test_radians_where_training_had_degrees_are_named(tmp_path: Path) -> None:
    trained = compute_stats(open_source(write(tmp_path / "train", [np.degrees(moved(i)) for i in range(4)])))
    problems = list(unlike(open_source(write(tmp_path / "new", [moved(9)])), [0], trained))
    assert kinds(problems) == ["other_range"]


def test_a_wild_value_in_training_does_not_make_others_plausible(tmp_path: Path) -> None:
    states = [moved(episode) for episode in range(4)]
    states[0][3, 1] = 1e6
    trained = compute_stats(open_source(write(tmp_path / "train", states)))
    new = moved(9)
    new[7, 1] = 1e5
    problems = list(unlike(open_source(write(tmp_path / "new", [new])), [0], trained))
    assert kinds(problems) == ["wild_value"]


def test_what_moves_rarely_is_plausible(tmp_path: Path) -> None:
    states = [moved(episode) * [1, 0] for episode in range(4)]
    states[2][30:33, 1] = [1, 5, 1]  # a gripper that closes once, a base that is driven once
    source = open_source(write(tmp_path / "d", [np.asarray(rows, np.float32) for rows in states]))
    assert list(implausible(source, range(4))) == []


@pytest.mark.parametrize("path", [G1, builtin.TWIN_MINI_TRAIN, builtin.TWIN_MINI_VAL], ids=["g1", "train", "val"])
def test_real_and_simulated_recordings_raise_no_alarm(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{path} is not here")
    source = open_source(path)
    count = len(source.episodes)
    assert list(implausible(source, range(count))) == []
    known = compute_stats(source, episodes=range(count * 4 // 5))
    assert list(unlike(source, range(count * 4 // 5, count), known)) == []
    assert [kinds(list(unlike(source, [i], known))) for i in range(0, count, 8)] == [[]] * len(range(0, count, 8))


def test_states_of_the_1x_robot_raise_no_alarm() -> None:
    if not ONEX.exists():
        pytest.skip(f"{ONEX} is not here")
    rows = np.fromfile(ONEX, np.float32).reshape(-1, 25)
    assert (rows == rows.clip(*bounds_of(rows))).all()


def test_training_and_evaluation_say_it_before_they_begin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_squares(tmp_path / "raw", 4, length=34)
    states = np.fromfile(root / "robot_states/states_0.bin", np.float32)
    states[20] = 1e6
    states.tofile(root / "robot_states/states_0.bin")
    config = run_of(root, "tokens", train_episodes=":3", val_episodes="3:")
    caplog.set_level(logging.WARNING)
    train(replace(config, data=replace(config.data, window_stride=17)), tmp_path / "run")
    assert "found 1e+06 in row 10 of shard 0, segment 0" in caplog.text
    caplog.clear()
    other = write_squares(tmp_path / "other", 1, length=34, first=50)
    (np.fromfile(other / "robot_states/states_0.bin", np.float32) * 0 + 7).tofile(other / "robot_states/states_0.bin")
    contract = describe_model(tmp_path / "run/checkpoints/step_0000001").promise
    assert split_of(tmp_path / "run", contract, [tmp_path / "run"], DataChoice(data=other)) == "held out"
    assert "expected elbow as in training" in caplog.text
    assert "expected elbow to move, as in training, found 7 in every row (such dimensions: 2" in caplog.text
