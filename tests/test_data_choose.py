"""Choosing: state keys by name, several data sets as one, episodes by place and by number; bad values are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import Means, small_tokenizer, write_squares
from commands import parse
from data_builders import CAMERA, ramp, write_lerobot, write_raw, write_tokens
from pyarrow import parquet

from worldline.cli.data import ConvertJob
from worldline.cli.train import Train
from worldline.contract import Contract, FramePattern, Reading
from worldline.data.clips import DataConfig, check_held_out, open_clips
from worldline.data.info import inspect
from worldline.encoding.encode import convert, encode, tokenize
from worldline.evaluation.held_out import DataChoice, held_out
from worldline.files import write_json
from worldline.formats.onex.source import OnexSource
from worldline.formats.open import OpenOptions, choose_episodes, join, only, open_source, reading_of
from worldline.formats.source import how_to_leave_out
from worldline.rundir import from_json, to_json
from worldline.schema import DataError, UsageError

EIGHT = FramePattern(window=8)


def renamed(root: Path, names: dict[str, str]) -> Path:
    """Give the columns of a LeRobot v2.1 data set other names."""
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] = {names.get(key, key): feature for key, feature in info["features"].items()}
    (root / "meta/info.json").write_text(json.dumps(info))
    for path in root.glob("data/*/*.parquet"):
        table = parquet.read_table(path)
        parquet.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), path)
    return root


def renumbered(root: Path, numbers: dict[int, int]) -> Path:
    """Give the episodes of a LeRobot v2.1 data set other numbers."""
    lines = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    for line in lines:
        old, new = line["episode_index"], numbers[line["episode_index"]]
        for path in root.glob(f"*/chunk-000/**/episode_{old:06d}.*"):
            path.rename(path.with_name(f"moved_{new:06d}{path.suffix}"))
        line["episode_index"] = new
    for path in root.glob("*/chunk-000/**/moved_*"):
        path.rename(path.with_name(path.name.replace("moved", "episode")))
    for path in root.glob("data/*/*.parquet"):
        table, number = parquet.read_table(path), int(path.stem.split("_")[1])
        column = table.column_names.index("episode_index")
        numbers_now = pa.array(np.full(len(table), number))
        parquet.write_table(table.set_column(column, "episode_index", numbers_now), path)
    (root / "meta/episodes.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return root


# --- states by name ---


def test_states_are_columns_of_any_name_joined_in_the_order_given(tmp_path: Path) -> None:
    names = {"observation.state": "robot.hand", "action": "robot.arm"}
    root = renamed(write_lerobot(tmp_path / "d", "v2.1", (20,), names=["a", "b"]), names)
    with pytest.raises(UsageError, match=r"no 'observation.state'; .*--data.state-keys\): robot.hand, robot.arm"):
        open_source(root)
    source = open_source(root, state_keys=("robot.arm", "robot.hand"))
    assert source.layout.names == ("arm.a", "arm.b", "hand.a", "hand.b")
    states = ramp(20, 2)
    np.testing.assert_allclose(source.read_states(0, 0, 20), np.concatenate([states + 0.5, states], axis=1), rtol=1e-6)
    assert open_source(root, state_keys=("robot.hand",)).layout.names == ("a", "b")


def test_columns_that_end_alike_keep_their_whole_names(tmp_path: Path) -> None:
    root = renamed(
        write_lerobot(tmp_path / "d", "v2.1", (20,)), {"observation.state": "left.joints", "action": "right.joints"}
    )
    source = open_source(root, state_keys=("left.joints", "right.joints"))
    assert len(set(source.layout.names)) == 4
    assert source.layout.names[2] == "right.joints.0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_keys": ("absent",)}, "no 'absent'"),
        ({"state_keys": (CAMERA,)}, "no numbers in 'observation.images.head'"),
        ({"state_keys": ("action", "action")}, "each can be given once"),
        ({"state_keys": ("action",), "conditioning": "action"}, "give one of the two"),
    ],
)
def test_state_keys_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (20,))
    with pytest.raises(UsageError, match=message):
        open_source(root, **options)  # pyright: ignore[reportArgumentType]


def test_a_1x_data_set_has_no_columns_to_choose(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out camera, conditioning and state keys"):
        open_source(write_raw(tmp_path), state_keys=("arm",))


def test_several_cameras_are_listed_with_size_kind_and_files(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (20, 21))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"] = info["features"][CAMERA] | {"shape": [16, 24, 3]}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert open_source(root).read(0, 0, 1).frames is not None, "of two cameras one alone has files"
    folder = root / "videos/chunk-000/observation.images.wrist"
    folder.mkdir()
    (folder / "episode_000000.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match=r"head \(32x32, colour, 2 videos\); .*wrist \(16x24, colour, 1 videos\)"):
        open_source(root)


# --- episodes ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":", [0, 1, 2, 3]),
        ("1:", [1, 2, 3]),
        (":-1", [0, 1, 2]),
        ("::2", [0, 2]),
        ("-1", [3]),
        (":1,3", [0, 3]),
        ("3,:2,1:", [3, 0, 1, 2]),
        (" 1 , -1: ", [1, 3]),
    ],
)
def test_slices_and_numbers_mean_what_python_means(four: OnexSource, text: str, expected: list[int]) -> None:
    assert list(choose_episodes(four, text)) == expected


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> OnexSource:
    source = open_source(
        write_tokens(tmp_path_factory.mktemp("four") / "t", np.repeat(np.arange(4, dtype=np.int32), 34))
    )
    assert isinstance(source, OnexSource)
    return source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "no choice of episodes") for text in ("all", "1;2", "::0", "1:2:3:4", "", "1,", "1.5")),
        *((text, "selects none of its 4 episodes") for text in ("4", "7:", ":-4", "0:0", ":2,9", "-5")),
    ],
)
def test_other_choices_are_refused(four: OnexSource, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_episodes(four, text)


def test_episodes_are_excluded_by_their_own_numbers_and_no_other_moves(tmp_path: Path) -> None:
    root = renumbered(write_lerobot(tmp_path / "d", "v2.1", (20, 21, 22, 23)), {0: 3, 1: 7, 2: 9, 3: 12})
    source = open_source(root)
    assert [episode.name for episode in source.episodes] == [f"episode {n}" for n in (3, 7, 9, 12)]
    assert choose_episodes(source, ":-1", exclude=[7]) == (0, 2)
    config = DataConfig(
        path=root, train_episodes=":-1", val_episodes="-1:", exclude_episodes=(7,), pattern=EIGHT, window_stride=8
    )
    assert {clip.origin.episode for clip in open_clips(config, "train")} == {0, 2}
    with pytest.raises(UsageError, match="no episode 2 to exclude; numbers are 3 to 12"):
        choose_episodes(source, exclude=[2])
    with pytest.raises(UsageError, match="excluded; nothing is left"):
        open_clips(replace(config, exclude_episodes=(12,)), "val")


def test_a_source_of_some_episodes_reads_what_the_whole_reads(four: OnexSource, tmp_path: Path) -> None:
    lerobot = open_source(write_lerobot(tmp_path / "d", "v3.0"))
    for source, kept in ((four, (3, 1)), (lerobot, (2, 0))):
        part = only(source, kept)
        assert len(part.episodes) == 2
        assert len(part.left_out) == len(source.episodes) - 2
        for position, whole in enumerate(kept):
            length = source.episodes[whole].length
            one, two = part.read(position, 0, length), source.read(whole, 0, length)
            assert torch.equal(one.states, two.states)
            assert one.frames is None if two.frames is None else torch.equal(one.frames, two.frames)  # pyright: ignore


# --- several data sets ---


def test_several_data_sets_are_read_as_one(tmp_path: Path) -> None:
    first, second = write_lerobot(tmp_path / "a", "v2.1", (20, 30)), write_lerobot(tmp_path / "b", "v3.0", (25, 40, 35))
    both = open_source((first, second))
    assert [episode.length for episode in both.episodes] == [20, 30, 25, 40, 35]
    assert [episode.name for episode in both.episodes][2:4] == ["b: episode 0", "b: episode 1"]
    alone = open_source(second)
    assert torch.equal(both.read(4, 3, 9).frames, alone.read(2, 3, 9).frames)  # pyright: ignore[reportArgumentType]
    assert torch.equal(both.read(4, 3, 9).states, alone.read(2, 3, 9).states)
    assert str(first) in str(both.path)
    assert str(second) in str(both.path)
    assert (both.name, alone.name) == ("a + b", "b")
    assert choose_episodes(both, exclude=[2]) == (0, 1, 2, 3)
    with pytest.raises(UsageError, match=r"1 is the number of a: episode 1 and b: episode 1; .*:1,2:"):
        choose_episodes(both, exclude=[1])


def test_rows_that_lie_in_another_table_are_found_in_any_of_several_data_sets(tmp_path: Path) -> None:
    first, second = write_lerobot(tmp_path / "a", "v2.1", (20,)), write_lerobot(tmp_path / "b", "v3.0", (25, 40, 35))
    folder = second / "data/chunk-000"
    (folder / "file-000.parquet").rename(folder / "file-002.parquet")
    (folder / "file-001.parquet").rename(folder / "file-000.parquet")
    (folder / "file-002.parquet").rename(folder / "file-001.parquet")
    both, alone = open_source((first, second)), open_source(second)
    np.testing.assert_array_equal(both.read_states(3), alone.read_states(2))


@pytest.mark.parametrize("write", [write_raw, lambda root: write_tokens(root, np.zeros(60, np.int32))])
def test_1x_folders_are_joined_too(tmp_path: Path, write: object) -> None:
    first, second = (open_source(write(tmp_path / name)) for name in "ab")  # pyright: ignore[reportCallIssue]
    both = join([first, second])
    count = len(first.episodes)
    assert len(both.episodes) == 2 * count
    one, two = both.read(count, 0, 34), second.read(0, 0, 34)
    assert torch.equal(one.states, two.states)
    assert (one.tokens is None) == (two.tokens is None)


def test_training_on_two_data_sets_holds_out_episodes_of_either(tmp_path: Path) -> None:
    roots = write_squares(tmp_path / "a", 2, length=20), write_squares(tmp_path / "b", 2, length=20, first=5)
    config = DataConfig(path=roots, train_episodes=":1,2:3", val_episodes="1,-1", pattern=EIGHT, window_stride=8)
    assert len(check_held_out(config).contents) == 2
    assert [clip.origin.episode for clip in open_clips(config, "val")] == [1, 1, 3, 3]
    with pytest.raises(UsageError, match=r"2 of 2 validation episodes are also trained on \(shard 0, segment 0"):
        check_held_out(replace(config, train_episodes=":", val_path=roots[1], val_episodes=":"))


def test_a_damaged_episode_of_other_validation_data_is_left_out_by_their_own_option(tmp_path: Path) -> None:
    """`--data.exclude-episodes` is of what is trained on: it would leave a good one out, and not this."""
    ours, theirs = write_squares(tmp_path / "a", 2, length=20), write_squares(tmp_path / "b", 3, length=20, first=5)
    (theirs / "videos/video_1.mp4").write_bytes(b"no video")
    config = DataConfig(path=ours, train_episodes=":", val_path=theirs, val_episodes=":", pattern=EIGHT)
    with pytest.raises(DataError, match=r"leave shard 1, segment 0 out: --data\.val-episodes :1,2:,") as caught:
        check_held_out(config)
    assert "exclude" not in caught.value.fix
    check_held_out(replace(config, val_episodes=":1,2:"))


def test_data_sets_that_differ_are_not_joined(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    lerobot = write_lerobot(tmp_path / "d", "v2.1", (20,))
    other = write_lerobot(tmp_path / "names", "v2.1", (20,), names=["x", "y"])
    for roots, message in (
        ((raw, write_raw(tmp_path / "small", size=16)), r"differ in picture size: \(32, 32\) and \(16, 16\)"),
        ((raw, lerobot), "cannot be joined, they differ in format: 1x and lerobot. Bring both to one"),
        ((lerobot, other), "differ in state names"),
        ((raw, write_tokens(tmp_path / "t", np.zeros(40, np.int32))), "differ in"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source(roots)


def test_latents_are_joined_where_they_are_of_one_vae_and_pattern(tmp_path: Path) -> None:
    source, nine = open_source(write_squares(tmp_path / "squares", 3, length=20)), FramePattern(window=9)

    def encoded(name: str, *episodes: int, by: str = "y") -> Path:
        how: dict[str, Any] = {"pattern": nine, "window_stride": 9}
        return encode(source, Means(), tmp_path / name, fingerprint=by, episodes=episodes, **how).folder

    both = open_source((encoded("a", 2), encoded("b", 0, 1)))
    whole = open_source(encoded("c", 2, 0, 1))
    assert [episode.recording for episode in both.episodes] == [episode.recording for episode in whole.episodes]
    for episode in range(3):
        one, two = (made.read(episode, 9, 18) for made in (both, whole))
        assert one.latents is not None
        assert two.latents is not None
        assert torch.equal(one.latents, two.latents)
        assert torch.equal(one.states, two.states)
    with pytest.raises(UsageError, match="differ in tokenizers"):
        open_source((tmp_path / "a", encoded("d", 1, by="z")))


def test_a_plus_in_a_folders_name_joins_nothing(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "cups + plates", "v2.1")
    info = root / "meta/info.json"
    info.write_text(info.read_text().replace('"total_frames": 126', '"total_frames": 999'))
    found = inspect(root)
    assert [problem.kind for problem in found.problems] == ["metadata"]
    assert not any("several data sets" in note for note in found.notes)


def test_info_looks_at_joined_data_and_at_chosen_episodes(tmp_path: Path) -> None:
    roots = write_lerobot(tmp_path / "a", "v2.1", (40, 50)), write_lerobot(tmp_path / "b", "v3.0", (45, 60))
    both = inspect(roots)
    assert both.episodes == 4
    assert both.frames == 195
    assert both.bytes == inspect(roots[0]).bytes + inspect(roots[1]).bytes
    assert both.problems == ()
    some = inspect(roots[1], OpenOptions(conditioning="action"), episodes="1:")
    assert some.frames == 60
    assert some.problems == ()


# --- values ---


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 0},
        {"image_size": -8},
        {"cache_size": 0},
        {"cache_size": 15},
        {"window_stride": 0},
        {"window_stride": -3},
        {"path": ()},
    ],
)
def test_impossible_sizes_and_strides_are_refused_where_they_are_given(change: dict[str, object]) -> None:
    config = DataConfig(path=Path("d"), image_size=16)
    with pytest.raises(UsageError):
        replace(config, **change)


@pytest.mark.parametrize("change", [{"window": 0}, {"window": -1}, {"stride": 0}, {"repeat_last": -1}])
def test_impossible_patterns_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be a whole number"):
        replace(EIGHT, **change)


# --- data to judge on ---

AS_ACTED = Contract(
    fps=30.0,
    state_names=("action.0", "action.1"),
    state_kinds=("angle", "angle"),
    source_kind="lerobot-v2.1",
    pattern=FramePattern(window=10),
)


def test_other_data_are_read_with_the_keys_of_training_and_chosen_alike(tmp_path: Path) -> None:
    contract = replace(AS_ACTED, image_size=16, camera="head", state_keys=("action",))
    first, second = (write_lerobot(tmp_path / name, "v2.1", (20, 30)) for name in "ab")
    clips = held_out(tmp_path, contract, DataChoice(data=(first, second)))
    assert clips.windows[:, 0].tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    np.testing.assert_allclose(clips[0].states, ramp(10, 2) + 0.5, rtol=1e-6)
    few = held_out(tmp_path, contract, DataChoice(data=first, exclude_episodes=(0,)))
    assert set(few.windows[:, 0].tolist()) == {1}
    with pytest.raises(UsageError, match="no single camera is called 'wrist'"):
        held_out(tmp_path, contract, DataChoice(data=first, camera="wrist"))
    with pytest.raises(UsageError, match=r"state 0 is 'state.0', the model was trained with 'action.0'"):
        held_out(tmp_path, contract, DataChoice(data=first, state_keys=("observation.state",)))
    squares = write_squares(tmp_path / "raw", 1, length=20)
    like = replace(contract, state_names=("elbow", "gripper"))
    assert len(held_out(tmp_path, like, DataChoice(data=squares))) == 2, "a 1X folder has no camera to choose"


def test_data_sets_whose_kinds_are_guessed_otherwise_are_judged_on_together(tmp_path: Path) -> None:
    """A checkpoint knows the kinds of its states; a joint that turned further in one recording is none of another."""
    roots = tuple(write_lerobot(tmp_path / name, "v2.1", (20, 30)) for name in "ab")
    for path in roots[1].glob("data/*/*.parquet"):
        table = parquet.read_table(path)
        far = pa.array([[7.0 + row, 1.0] for row in range(len(table))], pa.list_(pa.float32()))
        parquet.write_table(table.set_column(table.column_names.index("action"), "action", far), path)
    with pytest.raises(UsageError, match="differ in state kinds"):
        open_source(roots, conditioning="action")
    contract = replace(AS_ACTED, image_size=16, camera="head", state_keys=("action",))
    clips = held_out(tmp_path, contract, DataChoice(data=roots))
    assert clips.source.layout.kinds == contract.state_kinds
    assert len(clips) == 10
    with pytest.raises(UsageError, match=r"state 0 is 'state.0', the model was trained with 'action.0'"):
        held_out(tmp_path, contract, DataChoice(data=roots, state_keys=("observation.state",)))


def test_excluding_concerns_what_is_judged_on(tmp_path: Path) -> None:
    train, val = write_squares(tmp_path / "train", 2, length=20), write_squares(tmp_path / "val", 3, length=20, first=9)
    config = DataConfig(path=train, exclude_episodes=(0,), val_path=val, val_episodes=":-1")
    contract = replace(AS_ACTED, state_names=("elbow", "gripper"))
    write_json(tmp_path / "config.json", {"data": to_json(DataConfig, config)})
    judged = held_out(tmp_path, contract, DataChoice(exclude_episodes=(1,)))
    assert set(judged.windows[:, 0].tolist()) == {0}
    write_json(tmp_path / "config.json", {"data": to_json(DataConfig, replace(config, val_path=None))})
    with pytest.raises(UsageError, match="nothing is left"):
        held_out(tmp_path, contract, DataChoice(exclude_episodes=(1,)))


def test_info_says_how_many_episodes_are_too_short_for_each_track(tmp_path: Path) -> None:
    notes = inspect(write_lerobot(tmp_path / "d", "v2.1", (20, 33, 40, 80))).notes
    assert [note for note in notes if "shorter" in note] == [
        "2 of 4 episodes are shorter than the 34 frames of a sample of the compression track and give none (they have "
        "20 to 33)",
        "3 of 4 episodes are shorter than the 77 frames of a sample of the sampling track and give none (they have "
        "20 to 40)",
    ]
    tokens = inspect(write_tokens(tmp_path / "t", np.zeros(60, np.int32))).notes
    assert not [note for note in tokens if "shorter" in note]


def test_what_is_made_from_data_says_how_they_were_read(tmp_path: Path) -> None:
    source = open_source(write_lerobot(tmp_path / "d", "v2.1", (40,)), conditioning="action")
    converted = convert(source, tmp_path / "raw", size=16).folder
    raw = open_source(converted)
    tokenize(raw, small_tokenizer(), tmp_path / "tokens", fingerprint="x", episodes=[0])
    how: dict[str, Any] = {"pattern": FramePattern(window=9), "window_stride": 9}
    latents = encode(source, Means(), tmp_path / "latents", fingerprint="y", episodes=[0], size=16, **how).folder
    made = (converted, tmp_path / "tokens", latents)
    found = [reading_of(open_source(path), OpenOptions(), path, None) for path in made]
    assert found == [Reading(image_size=16, camera=CAMERA, state_keys=("action",))] * 3
    clip = held_out(tmp_path, replace(AS_ACTED, **vars(found[1])), DataChoice(data=tmp_path / "d"))[0]
    assert torch.equal(clip.states, raw.read(0, 0, 10).states)
    assert clip.frames is not None
    assert clip.frames.shape[-2:] == (16, 16)


@pytest.mark.parametrize("notes", ["text", {"camera": 3, "image_size": "big", "state_keys": "a"}, [1]])
def test_damaged_notes_of_how_data_were_read_are_no_crash(tmp_path: Path, notes: object) -> None:
    root = write_raw(tmp_path)
    metadata = json.loads((root / "metadata.json").read_text()) | {"provenance": {"reading": notes}}
    (root / "metadata.json").write_text(json.dumps(metadata))
    assert reading_of(open_source(root), OpenOptions(), root, None).camera is None


def test_the_option_that_leaves_an_episode_out_does_so(tmp_path: Path) -> None:
    first, second = (write_lerobot(tmp_path / name, "v2.1", (20, 30)) for name in "ab")
    assert how_to_leave_out(open_source(first), 1).startswith("--exclude-episodes 1 ")
    both = open_source((first, second))
    for episode in range(4):
        option, text, _ = how_to_leave_out(both, episode).split(maxsplit=2)
        assert option == "--episodes"
        assert choose_episodes(both, text) == tuple(i for i in range(4) if i != episode)


def test_choices_are_typed_as_the_docs_say(tmp_path: Path) -> None:
    def data(words: str) -> DataConfig:
        job = parse(["train", "compression_tiny", *words.split()])
        assert isinstance(job, Train)
        return job.config.data

    assert data("--data.path A").path == Path("A")
    assert data("--data.path A B --data.val-path None").path == (Path("A"), Path("B"))
    assert data("--data.val-path A B").val_path == (Path("A"), Path("B"))
    assert data("--data.exclude-episodes 7 12").exclude_episodes == (7, 12)
    assert data("--data.state-keys robot.arm robot.hand").state_keys == ("robot.arm", "robot.hand")
    assert data("--data.train-episodes :40,45,50:60").train_episodes == ":40,45,50:60"
    two = data("--data.path A B --data.exclude-episodes 3")
    assert from_json(DataConfig, json.loads(json.dumps(to_json(DataConfig, two))), tmp_path) == two
    job = parse(["data", "convert", "A", "OUT", "--join", "B", "--exclude-episodes", "7", "--state-keys", "arm"])
    assert isinstance(job, ConvertJob)
    assert (job.path, job.out, job.join, job.exclude_episodes) == (Path("A"), Path("OUT"), (Path("B"),), (7,))
