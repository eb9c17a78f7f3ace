"""Exports as LeRobot, v2.1 and v3.0: what comes back, the published rules, and safety of what is added to."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import StoppedAfter
from data_builders import CAMERA, TWO_JOINTS, moving_picture, ramp, write_lerobot, write_raw
from lerobot_rules import faults
from pyarrow import parquet

from worldline.data.info import inspect
from worldline.data.splits import recording_of
from worldline.encoding.export import to_lerobot
from worldline.formats.lerobot import write
from worldline.formats.lerobot.write import Export, Provenance, Recorded, add_episodes
from worldline.formats.open import only, open_source
from worldline.formats.source import Source
from worldline.schema import DataError, UsageError

VERSIONS = ("v2.1", "v3.0")
STATED_PSNR = 38.0  # dB: docs/lerobot.md says that it is above this


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _column(root: Path, name: str) -> np.ndarray:
    tables = [parquet.read_table(path) for path in sorted((root / "data").rglob("*.parquet"))]
    return np.array([row for table in tables for row in table[name].to_pylist()])


def _psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (one.float() - other.float()).square().mean()))


def _assert_same(before: Source, after: Source, lowest_psnr: float = STATED_PSNR) -> None:
    assert [one.length for one in after.episodes] == [one.length for one in before.episodes]
    for one, other in zip(before.episodes, after.episodes, strict=True):
        clip, again = (source.read(i.index, 0, i.length) for source, i in ((before, one), (after, other)))
        assert torch.equal(clip.states, again.states)
        assert clip.frames is not None
        assert again.frames is not None
        assert _psnr(clip.frames, again.frames) > lowest_psnr


# --- there and back ---


@pytest.mark.parametrize("version", VERSIONS)
def test_states_and_times_come_back_to_the_bit_and_frames_to_the_stated_psnr(tmp_path: Path, version: Any) -> None:
    source, out = open_source("twin-mini-val"), tmp_path / "out"
    made = to_lerobot(only(source, (3, 0, 7)), out, version=version)
    after = open_source(out)
    assert (after.kind, after.fps, after.image_size, after.layout) == (
        f"lerobot-{version}",
        30.0,
        (64, 64),
        source.layout,
    )
    _assert_same(only(source, (3, 0, 7)), after)
    times = [(np.arange(source.episodes[i].length) / 30).astype(np.float32) for i in (3, 0, 7)]
    assert _column(out, "timestamp").astype(np.float32).tobytes() == np.concatenate(times).tobytes()
    assert made.psnr is not None
    assert made.psnr > STATED_PSNR
    assert recording_of(after, 0) == recording_of(source, 3)  # held out stays held out
    assert faults(out) == []
    assert inspect(out, thorough=True).problems == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_export_says_where_it_is_from_and_that_its_frames_are_real(tmp_path: Path, version: Any) -> None:
    source = open_source(write_raw(tmp_path / "d", (40, 30)))
    to_lerobot(source, tmp_path / "out", version=version, task="wave")
    after = open_source(tmp_path / "out")
    said = after.episodes[1].provenance
    assert (said["source"], said["episode"], said["start"]) == ("d", "shard 0, segment 1", 0)
    assert said["recording"] == recording_of(source, 1)
    assert after.episodes[1].task == "wave"
    assert _column(tmp_path / "out", write.REAL).tolist() == [True] * 70
    assert _column(tmp_path / "out", write.SOURCE_FRAME).tolist() == [*range(40), *range(30)]
    assert _column(tmp_path / "out", write.UNCERTAINTY).tolist() == [0.0] * 70
    states = np.concatenate([ramp(40, 2), ramp(30, 2, start=40)])
    following = states[[*range(1, 40), 39, *range(41, 70), 69]]
    np.testing.assert_array_equal(_column(tmp_path / "out", "action").astype(np.float32), following)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_lerobot_source_keeps_its_own_actions_names_and_camera(tmp_path: Path, version: Any) -> None:
    source = open_source(write_lerobot(tmp_path / "d", "v3.0", names={"motors": ["elbow", "gripper"]}))
    to_lerobot(source, tmp_path / "out", version=version)
    _assert_same(source, open_source(tmp_path / "out", camera=CAMERA))
    commands = [open_source(root, conditioning="action") for root in (tmp_path / "d", tmp_path / "out")]
    assert commands[0].layout.names == commands[1].layout.names == ("elbow", "gripper")
    for episode in range(3):
        np.testing.assert_array_equal(commands[0].read_states(episode), commands[1].read_states(episode))
    assert faults(tmp_path / "out") == []
    to_lerobot(source, tmp_path / "other", version=version, actions="next_state")
    actions = open_source(tmp_path / "other", conditioning="action").read_states(0)
    np.testing.assert_array_equal(actions[:-1], source.read_states(0)[1:])
    with pytest.raises(UsageError, match="no actions of its own"):
        to_lerobot(open_source(write_raw(tmp_path / "raw")), tmp_path / "x", version=version, actions="recorded")


def test_an_export_of_an_export_still_says_which_frames_are_imagined(tmp_path: Path) -> None:
    add_episodes(tmp_path / "a", _export("v2.1"), [_episode(0), _episode(1, real=False)])
    to_lerobot(open_source(tmp_path / "a"), tmp_path / "b", version="v3.0")
    assert _column(tmp_path / "b", write.REAL).tolist() == [True] * 12 + [False] * 12
    assert _column(tmp_path / "b", write.UNCERTAINTY).tolist() == [0.0] * 12 + [1.5] * 12
    said = [open_source(tmp_path / name).episodes[1].provenance for name in "ab"]
    assert {**said[0], "psnr": 0} == {**said[1], "psnr": 0}
    assert open_source(tmp_path / "b").episodes[1].recording == "r1"
    _assert_same(open_source(tmp_path / "a"), open_source(tmp_path / "b"))


@pytest.mark.parametrize("order", [1, -1])
def test_recordings_and_imagined_episodes_joined_still_say_which_frames_are_imagined(
    tmp_path: Path, order: int
) -> None:
    """Each episode is asked of its own data set: another program's has no such columns, and may have other actions."""
    write_lerobot(tmp_path / "real", "v2.1", (20,), names=[*TWO_JOINTS.names])
    export = _export("v3.0", state_kinds=open_source(tmp_path / "real").layout.kinds)
    add_episodes(tmp_path / "imagined", export, [_episode(1, real=False)])
    both = open_source([tmp_path / name for name in ("real", "imagined")][::order])
    to_lerobot(both, tmp_path / "out", version="v3.0", actions="next_state")
    assert _column(tmp_path / "out", write.REAL).tolist() == ([True] * 20 + [False] * 12)[::order]
    assert _column(tmp_path / "out", write.UNCERTAINTY).tolist() == ([0.0] * 20 + [1.5] * 12)[::order]


def test_actions_that_were_made_of_states_are_not_mixed_with_recorded_ones(tmp_path: Path) -> None:
    """An export of imagined episodes has a column of actions, but nobody recorded them."""
    real = open_source(write_lerobot(tmp_path / "real", "v2.1", (20,), names=[*TWO_JOINTS.names]))
    add_episodes(tmp_path / "imagined", _export("v3.0", state_kinds=real.layout.kinds), [_episode(1, real=False)])
    imagined, out = open_source(tmp_path / "imagined"), tmp_path / "out"
    to_lerobot(real, out, version="v3.0")
    with pytest.raises(UsageError, match="its actions is recorded, here it is next_state"):
        to_lerobot(imagined, out, version="v3.0", append=True)
    with pytest.raises(UsageError, match="no actions of its own"):
        to_lerobot(imagined, out, version="v3.0", append=True, actions="recorded")
    with pytest.raises(UsageError, match=r"other actions, \['elbow', 'gripper'\] and \[\]; take --actions next_state"):
        to_lerobot(open_source((real.path, imagined.path)), tmp_path / "both", version="v3.0")


def test_joined_data_sets_of_other_actions_are_refused_unless_none_are_taken(tmp_path: Path) -> None:
    both = [write_lerobot(tmp_path / name, "v2.1", (20,)) for name in "ab"]
    info = json.loads((both[1] / "meta/info.json").read_text())
    info["features"]["action"] = info["features"]["action"] | {"names": ["gripper", "elbow"]}
    (both[1] / "meta/info.json").write_text(json.dumps(info))
    source = open_source(both)
    with pytest.raises(
        UsageError, match=r"other actions, \['action.0', .* and \['gripper', 'elbow'\]; take --actions next"
    ):
        to_lerobot(source, tmp_path / "out", version="v2.1")
    to_lerobot(source, tmp_path / "out", version="v2.1", actions="next_state")
    np.testing.assert_array_equal(open_source(tmp_path / "out").column(1, "action")[:-1], source.read_states(1)[1:])


@pytest.mark.parametrize("version", VERSIONS)
def test_one_state_and_a_rate_that_is_no_whole_number(tmp_path: Path, version: Any) -> None:
    export = _export(version, fps=7.5, state_names=("lift",), state_kinds=("other",), action_names=("lift",))
    one = _episode(0)
    rows = one.states[:, :1].copy()
    add_episodes(tmp_path / "d", export, [_episode(0, states=rows, actions=rows)])
    after = open_source(tmp_path / "d")
    assert (after.fps, after.layout.names, after.layout.kinds) == (7.5, ("lift",), ("other",))
    np.testing.assert_array_equal(after.read_states(0), rows)
    assert after.read(0, 3, 9).frames is not None
    assert faults(tmp_path / "d") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_episodes_give_the_same_bytes(tmp_path: Path, version: Any) -> None:
    for name in "ab":
        add_episodes(tmp_path / name, _export(version), [_episode(i) for i in range(3)])
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    assert not (tmp_path / "a/.worldline").exists()


def test_files_and_folders_of_large_data_sets() -> None:
    old, new = _export("v2.1"), _export("v3.0")
    assert old.place(write._DATA, episode=1234, file=9) == "data/chunk-001/episode_001234.parquet"
    assert new.place(write._VIDEO, episode=9, file=1234) == f"videos/{CAMERA}/chunk-001/file-234.mp4"
    assert [*write._groups(old, [5000, 5000])] == [range(1), range(1, 2)]
    assert [*write._groups(new, [5000, 3000, 5000, 9000, 10])] == [range(2), range(2, 3), range(3, 4), range(4, 5)]
    large = _export("v3.0", size=(1024, 1024))
    assert len([*write._groups(large, [500] * 4)]) == 4  # a file stays below LeRobot's 200 MB


# --- adding ---


def _export(version: Any, **changes: Any) -> Export:
    usual: dict[str, Any] = {"version": version, "fps": 30.0, "size": (32, 32), "camera": CAMERA}
    usual |= {"state_names": TWO_JOINTS.names, "state_kinds": TWO_JOINTS.kinds, "action_names": TWO_JOINTS.names}
    return Export(**(usual | {"actions": "next_state"} | changes))


def _episode(number: int, *, real: bool = True, **changes: Any) -> Recorded:
    states = ramp(12, 2, start=100 * number)
    usual: dict[str, Any] = {
        "frames": lambda: iter([moving_picture(12, shift=float(number))]),
        "states": states,
        "actions": states,
        "real": np.full(12, real),
        "source_frames": np.arange(12),
        "uncertainty": partial(np.full, 12, 0.0 if real else 1.5, np.float32),
        "task": f"task {number % 2}",
        "provenance": Provenance(
            source="s", episode=f"e{number}", recording=f"r{number}", forecaster="" if real else "world"
        ),
    }
    return Recorded(**(usual | changes))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_a_task_of_several_lines_does_not_part_the_list(tmp_path: Path, version: Any, separator: str) -> None:
    first = _episode(0, task=f"put it down{separator}then wave")
    add_episodes(tmp_path, _export(version), [first])
    made = add_episodes(tmp_path, _export(version), [first, _episode(1)], append=True)
    assert (made.episodes, made.reused) == (2, 1)
    assert open_source(tmp_path).episodes[0].task == first.task


@pytest.mark.parametrize("version", VERSIONS)
def test_episodes_are_added_once_and_nothing_that_was_there_changes(tmp_path: Path, version: Any) -> None:
    out, export = tmp_path / "out", _export(version)
    add_episodes(out, export, [_episode(i) for i in range(2)])
    before = _files(out)
    made = add_episodes(out, export, [_episode(i) for i in (1, 2, 3)], append=True)
    assert (made.episodes, made.reused, made.frames) == (3, 1, 24)
    again = add_episodes(out, export, [_episode(i) for i in (1, 2, 3)], append=True)
    assert (again.reused, again.frames) == (3, 0)
    after = _files(out)
    assert {name for name in before if after[name] != before[name]} == {
        name for name in before if name.startswith("meta/") and "episodes/" not in name and "tasks" not in name
    }
    assert faults(out) == []
    source = open_source(out)
    assert [one.task for one in source.episodes] == ["task 0", "task 1"] * 2
    for number in range(4):
        np.testing.assert_array_equal(source.read_states(number), ramp(12, 2, start=100 * number))
    whole = tmp_path / "whole"
    add_episodes(whole, export, [_episode(i) for i in range(4)])
    if version == "v3.0":
        parts, once = (json.loads((root / "meta/stats.json").read_text()) for root in (out, whole))
        for name, found in once.items():
            for kind in ("min", "max", "mean", "std", "count"):
                np.testing.assert_allclose(parts[name][kind], found[kind], atol=2e-2 if name == CAMERA else 1e-9)
        values = ramp(12, 2).astype(np.float64) + np.array([0.0, 0.1, 0.2, 0.3])[:, None, None]
        np.testing.assert_allclose(once["observation.state"]["std"], values.reshape(-1, 2).std(0), atol=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_does_not_fit_is_refused_and_nothing_is_touched(tmp_path: Path, version: Any) -> None:
    out = tmp_path / "out"
    add_episodes(out, _export(version), [_episode(0)])
    before = _files(out)
    other = next(one for one in VERSIONS if one != version)
    changes: list[dict[str, Any]] = [
        {"fps": 15.0},
        {"size": (16, 16)},
        {"camera": "observation.images.wrist"},
        {"state_names": ("a", "b")},
        {"action_names": ("a", "b")},
        {"actions": "recorded"},
        {"version": other},
    ]
    for change in changes:
        with pytest.raises(UsageError, match=f"cannot be added to: its {next(iter(change))} is"):
            add_episodes(out, _export(**({"version": version} | change)), [_episode(1)], append=True)
    with pytest.raises(UsageError, match="holds a data set of 1 other episodes; add to it with --append"):
        add_episodes(out, _export(version), [_episode(1)])
    with pytest.raises(UsageError, match="an episode is given twice"):
        add_episodes(out, _export(version), [_episode(1), _episode(1)], append=True)
    assert _files(out) == before
    assert add_episodes(out, _export(version), [_episode(0)]).reused == 1  # the same call again


@pytest.mark.parametrize("version", VERSIONS)
def test_a_data_set_of_another_writer_is_never_touched(tmp_path: Path, version: Any) -> None:
    foreign, letters = write_lerobot(tmp_path / "d", version), tmp_path / "letters"
    letters.mkdir()
    (letters / "letter.txt").write_text("keep me")
    for root, problem in ((foreign, "worldline did not write"), (letters, r"something else \(letter.txt\)")):
        before = _files(root)
        with pytest.raises(UsageError, match=problem):
            add_episodes(root, _export(version), [_episode(0)], append=True)
        assert _files(root) == before
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        add_episodes(tmp_path / "file", _export(version), [_episode(0)])


@pytest.mark.parametrize("version", VERSIONS)
def test_an_export_that_was_changed_or_damaged_since_is_refused(tmp_path: Path, version: Any) -> None:
    out = tmp_path / "out"
    add_episodes(out, _export(version), [_episode(0), _episode(1)])
    info = json.loads((out / "meta/info.json").read_text())
    (out / "meta/info.json").write_text(json.dumps(info | {"total_episodes": 3}))
    with pytest.raises(DataError, match="Another program has changed the data set since"):
        add_episodes(out, _export(version), [_episode(2)], append=True)
    (out / "meta/info.json").write_text(json.dumps(info))
    listed = next(path for path in sorted((out / "meta").rglob("*episodes*")) if path.name != "episodes_stats.jsonl")
    listed = listed if listed.is_file() else next(listed.rglob("*.parquet"))
    whole = listed.read_bytes()
    listed.write_bytes(whole[: len(whole) // 3])
    before = _files(out)
    with pytest.raises(DataError, match=r"episodes|parquet"):
        add_episodes(out, _export(version), [_episode(2)], append=True)
    assert _files(out) == before


# --- interrupted ---


@pytest.mark.parametrize("version", VERSIONS)
def test_a_call_that_is_killed_among_its_moves_leaves_the_old_episodes_and_the_next_one_finishes(
    tmp_path: Path, version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, export, moves = tmp_path / "base", _export(version), 0
    add_episodes(base, export, [_episode(0), _episode(1)])
    replaced = os.replace

    def dying(source: Any, place: Any, *, after: int) -> None:
        nonlocal moves
        if "/.worldline/files/" in str(source) and not str(source).endswith(".tmp"):
            if moves == after:
                raise KeyboardInterrupt
            moves += 1
        replaced(source, place)

    for after in (0, 1, 3, 5, 6):
        out, moves = tmp_path / f"after_{after}", 0
        shutil.copytree(base, out)
        monkeypatch.setattr(os, "replace", partial(dying, after=after))
        with pytest.raises(KeyboardInterrupt):
            add_episodes(out, export, [_episode(2)], append=True)
        monkeypatch.setattr(os, "replace", replaced)
        assert json.loads((out / "meta/info.json").read_text())["total_episodes"] == 2  # it comes last
        source = open_source(out)
        for number in range(2):
            np.testing.assert_array_equal(source.read_states(number), ramp(12, 2, start=100 * number))
            assert source.read(number, 0, 12).frames is not None
        assert add_episodes(out, export, [_episode(2)], append=True).reused == 1
        assert faults(out) == []
        assert len(open_source(out).episodes) == 3
        assert not (out / ".worldline").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_call_that_is_stopped_before_has_changed_nothing_and_goes_on(tmp_path: Path, version: Any) -> None:
    out, export = tmp_path / "out", _export(version)
    small = [_episode(i) for i in range(2)]
    add_episodes(out, export, small[:1])
    before = _files(out)
    with pytest.raises(KeyboardInterrupt):
        add_episodes(out, export, small, append=True, ranks=StoppedAfter(number=1))
    assert {name: data for name, data in _files(out).items() if not name.startswith(".worldline/")} == before
    assert faults(out) == []
    staged = {path: path.stat().st_mtime_ns for path in (out / ".worldline/files").rglob("*.mp4")}
    assert len(staged) == 1
    assert add_episodes(out, export, small, append=True).reused == 1
    assert next(iter(staged.values())) in {path.stat().st_mtime_ns for path in (out / "videos").rglob("*.mp4")}
    assert faults(out) == []
    # What another call left unfinished is not mixed in.
    with pytest.raises(KeyboardInterrupt):
        add_episodes(out, export, [_episode(5)], append=True, ranks=StoppedAfter(number=1))
    add_episodes(out, export, [_episode(6)], append=True)
    assert [one.provenance["episode"] for one in open_source(out).episodes] == ["e0", "e1", "e6"]


def test_the_first_call_that_is_stopped_leaves_what_no_reader_takes_for_data(tmp_path: Path) -> None:
    source = open_source(write_raw(tmp_path / "d"))
    with pytest.raises(KeyboardInterrupt):
        to_lerobot(source, tmp_path / "out", version="v2.1", ranks=StoppedAfter(number=1))
    with pytest.raises(DataError, match="none of them"):
        open_source(tmp_path / "out")
    assert to_lerobot(source, tmp_path / "out", version="v2.1").counts["episodes"] == 3
    assert faults(tmp_path / "out") == []


# --- bad input ---


def test_odd_sizes_and_tokens_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"need an even size, these frames are 33x32; scale them \(--size 32\)"):
        _export("v3.0", size=(33, 32))
    source = open_source(write_raw(tmp_path / "d"))
    with pytest.raises(UsageError, match="even size"):
        to_lerobot(source, tmp_path / "out", version="v3.0", size=15)
    assert not (tmp_path / "out").exists()


def test_the_rules_find_faults(tmp_path: Path) -> None:
    """The second opinion is one: it sees what is wrong."""
    for version in VERSIONS:
        out = tmp_path / version
        add_episodes(out, _export(version), [_episode(0), _episode(1)])
        assert faults(out) == []
        table = next(iter(sorted((out / "data").rglob("*.parquet"))))
        whole = parquet.read_table(table)
        for name, change in (("timestamp", 0.01), ("frame_index", 1), ("index", 1), ("task_index", 1)):
            column = pa.array(whole[name].to_numpy() + change, whole[name].type)
            parquet.write_table(whole.set_column(whole.column_names.index(name), name, column), table)
            assert any(name in fault for fault in faults(out)), name
        parquet.write_table(whole, table)
        info = json.loads((out / "meta/info.json").read_text())
        for name, change in {"total_frames": 25, "splits": {}, "fps": 29}.items():
            (out / "meta/info.json").write_text(json.dumps(info | {name: change}))
            assert faults(out) != [], name
        (out / "meta/info.json").write_text(json.dumps(info))
        assert faults(out) == []
