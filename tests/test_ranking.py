"""`worldline rank` from end to end: with real counts on any robot's data, and with the twin's physics."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import TWO_JOINTS, moving_square, write_squares
from commands import do
from run_builders import run_of

from worldline import builtin, policies
from worldline.forecasting.recorded import Imagined, write_session
from worldline.ranking.rank import RankOptions, rank
from worldline.ranking.result import Ranking, read_films
from worldline.schema import DataError, UsageError
from worldline.training.loop import train
from worldline.twin.simulation import can_draw

MODULE = """
from pathlib import Path
import numpy as np

class Pose:
    def __init__(self, value):
        self.value = value
    def act(self, observation):
        with Path("acted").open("a") as file:
            file.write(".")
        return np.full(len(observation["state"]), self.value, np.float32)

class Nan(Pose):
    def act(self, observation):
        return np.full(2, np.nan)

def low():
    return Pose(0.0)

def high():
    return Pose(1.0)

def middle():
    return Pose(0.5)

def nan():
    return Nan(0.0)

def success(frames, states, task):
    assert task in ("left", "right")
    return bool(states[-1].mean() > 0.4)
"""
COUNTS = "policy,task,successes,trials\nlow,left,1,10\nmiddle,left,6,10\nhigh,left,9,10\nnan,left,5,10\n"
OWN = ["--policy", "own_robot:low", "--policy", "own_robot:middle", "--policy", "own_robot:high"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world over tokens of a robot of two joints, and data that it was not trained on."""
    lab = tmp_path_factory.mktemp("lab")
    (lab / "train").mkdir()
    raw = write_squares(lab / "train/raw", 3)
    config = run_of(raw, "tokens", window_stride=17, train_episodes=":-1", val_episodes="-1:")
    train(config, lab / "world")
    write_squares(lab / "other", 3, first=20)
    return lab


@pytest.fixture
def here(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_robot.py").write_text(MODULE)
    (tmp_path / "counts.csv").write_text(COUNTS)
    (tmp_path / "world").symlink_to(lab / "world")
    (tmp_path / "other").symlink_to(lab / "other")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _words(*more: str) -> list[str]:
    words = "world --real-counts counts.csv --data other --success own_robot:success --starts 3 --seconds 0.9"
    return [*words.split(), "--out", "ranked", *OWN, *more]


def test_own_policies_are_ranked_beside_real_counts_and_go_on_where_they_were_cut_off(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    do("rank", _words("--json"))
    said = json.loads(capsys.readouterr().out)
    found = Ranking.load(here / "ranked/ranking.json")
    (task,) = found.tasks
    assert (task.id, task.policies) == ("left", ("low", "middle", "high"))
    assert [rate.successes for rate in task.rates["counts"]] == [1, 6, 9]
    assert [rate.value for rate in task.rates["world"]] == [0, 1, 1]
    world = task.of("world")
    assert world is not None
    assert world.k == 3
    assert "cannot reach 0.05" in world.agreement("pearson").warning
    assert said["tasks"][0]["policies"] == ["low", "middle", "high"]
    assert {"replayed", "unconditional"} <= found.not_computed.keys()
    assert {"shuffled_states", "copy_last"} <= task.rates.keys()
    assert found.provenance.seeds["left"]
    (film,) = read_films(here / "ranked/films.npz")
    assert film.twin is None
    assert film.world.shape[0] == 3

    acted = (here / "acted").stat().st_size
    parts = sorted((here / "ranked/parts").iterdir())
    parts[0].unlink()
    do("rank", _words("--json"))
    text = capsys.readouterr()
    again = json.loads(text.out)
    assert "parts were played before and are kept; what is your own is known by the file of its module" in text.err
    assert 0 < (here / "acted").stat().st_size - acted < acted / 3, "only what was missing is played again"
    assert again["tasks"] == said["tasks"]


def test_a_bad_policy_and_one_without_counts_are_named_and_the_others_ranked(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        do("rank", _words("--policy", "own_robot:nan", "--policy", "extra=own_robot:low"))
    assert ended.value.code == 2
    text = capsys.readouterr().out
    assert "left out: policy 'nan', start left 0:0, step 0: its action is no finite number" in text
    assert "left out: policy 'extra' is missing from the counts of task 'left'" in text
    found = Ranking.load(here / "ranked/ranking.json")
    assert found.tasks[0].policies == ("low", "middle", "high")
    assert {one.policy: one.place for one in found.failures} == {"nan": "world", "extra": "counts"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": ()}, "no policies: give a folder"),
        ({"success": None}, "nobody reads success"),
        ({"real_counts": None}, "--data would change nothing"),
        ({"tasks": ("right",)}, "no line of the counts is of task 'right'; there are: left"),
        ({"policy": ("a=own_robot:low", "a=own_robot:high")}, "are called 'a'"),
        ({"trust": "spread"}, "--trust spread needs several samples"),
        ({"also": ((Path("world"), "x"), (Path("world"), "x"))}, "a label of its own"),
        ({"policies": Path("other")}, "holds no policy of any task"),
        ({"starts": 0}, "starts is 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_played(here: Path, options: dict[str, Any], said: str) -> None:
    usual: dict[str, Any] = {
        "policy": ("own_robot:low", "own_robot:high"),
        "success": "own_robot:success",
        "real_counts": Path("counts.csv"),
        "data": Path("other"),
        "out": here / "ranked",
    }
    with pytest.raises((UsageError, DataError), match=said):
        rank("world", RankOptions(**usual | options))
    assert not (here / "ranked").exists()
    assert not (here / "acted").exists()


def test_a_task_of_which_the_data_have_no_episode_does_not_begin_with_those_of_another(here: Path) -> None:
    frames, states = (torch.from_numpy(one) for one in moving_square(51))
    video = frames.permute(0, 3, 1, 2)[None, None]
    made = Imagined(
        frames=video, states=states[None], times=tuple(range(51)), context=51, uncertainty=torch.zeros(1, 51)
    )
    write_session(here / "told", made, fps=30.0, layout=TWO_JOINTS, name="one", task="left")
    (here / "counts.csv").write_text(COUNTS + "low,right,3,10\nhigh,right,1,10\n")
    options = RankOptions(
        policy=("own_robot:low", "own_robot:high"),
        success="own_robot:success",
        real_counts=Path("counts.csv"),
        data=here / "told",
        out=here / "ranked",
    )
    with pytest.raises(UsageError, match="no episode of task 'right' holds 17 frames"):
        rank("world", options)


def test_a_world_of_another_robot_than_the_twin_needs_counts(here: Path) -> None:
    options = RankOptions(policy=("own_robot:low",), success="own_robot:success", tasks=("touch",), out=here / "ranked")
    with pytest.raises(UsageError, match=r"another robot than the twin.*--real-counts"):
        rank("world", options)


TWIN = """
import numpy as np

class Still:
    def act(self, observation):
        return observation["state"]

def success(frames, states, task):
    return float(np.abs(frames[-1].astype(int) - frames[0]).mean() > 5)
"""


@pytest.mark.slow
@pytest.mark.skipif(not builtin.COMPRESSION_TINY.is_dir(), reason="this checkout has no built-in checkpoints")
def test_policies_of_the_twin_are_ranked_beside_its_physics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_draw():
        pytest.skip("MuJoCo cannot draw here")
    (tmp_path / "own_twin.py").write_text(TWIN)
    monkeypatch.chdir(tmp_path)
    policies.make("set", tasks=("touch",), only=("aim-0", "nothing"), fps=30, classifier=False)
    options = RankOptions(
        policies=Path("set"),
        policy=("still=own_twin:Still",),
        success="own_twin:success",
        starts=2,
        seconds=1.2,
        films=2,
        out=tmp_path / "ranked",
    )
    found = rank("compression-tiny", options)
    (task,) = found.tasks
    assert [failure.policy for failure in found.failures] == ["aim-0", "nothing"], "made for 30 actions per second"
    assert "made for 30 actions per second, but here it acts 1.76" in found.failures[0].said
    assert task.policies == ("still",)
    assert {"physics", "twin", "world", "shuffled_states", "copy_last"} <= task.rates.keys()
    assert [reading.place for reading in task.readings] == ["twin", "replayed"]
    assert 0 <= task.gap["angle"] < 0.1
    assert found.signal == "token_entropy"
    assert read_films(tmp_path / "ranked/films.npz")[1].start == "touch 1"
    assert os.listdir(tmp_path / "ranked/parts")
