"""Held out means held out: shared recordings are found by content in all four kinds of recipes, before any work."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import small_tokenizer, write_squares
from data_builders import TWO_JOINTS, moving_picture, write_lerobot
from latent_builders import small_vae
from run_builders import NINE, run_of

from worldline import builtin
from worldline.data.clips import DataConfig, check_held_out
from worldline.data.info import inspect
from worldline.data.splits import Recordings, recording_of, recordings
from worldline.encoding.encode import convert, encode, tokenize
from worldline.families.load import prepare
from worldline.files import read_json
from worldline.formats.onex.write import finish_shards, write_raw_shard
from worldline.formats.open import open_source
from worldline.rundir import RunDir
from worldline.schema import StateLayout, UsageError
from worldline.training.loop import train


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "raw", 3, length=34)


def _copy(root: Path) -> Path:
    return shutil.copytree(root, root.parent / "copy")


def _link(root: Path) -> Path:
    (root.parent / "link").symlink_to(root)
    return root.parent / "link"


def _converted(root: Path) -> Path:
    return convert(open_source(root), root.parent / "converted", size=8).folder


@pytest.mark.parametrize("kind", ["tokenizer", "vae", "tokens", "latents"])
def test_no_run_validates_on_what_it_trains_on(raw: Path, kind: str) -> None:
    config = run_of(raw, kind, val_path=None)
    with pytest.raises(UsageError, match=r"3 of 3 validation episodes are also trained on \(shard 0, segment 0"):
        train(config, raw.parent / "run")
    assert not (raw.parent / "cache").exists(), "it was refused before anything was decoded, tokenized or encoded"
    assert not RunDir(raw.parent / "run").config.exists(), "the folder stays free"


@pytest.mark.parametrize("other", [lambda root: root, lambda root: root / ".." / root.name, _copy, _link, _converted])
def test_validation_data_elsewhere_are_compared_by_content(raw: Path, other: Callable[[Path], Path]) -> None:
    shared = DataConfig(path=raw, train_episodes=":2", val_path=other(raw), image_size=16)
    with pytest.raises(UsageError, match="2 of 3 validation episodes"):
        check_held_out(shared)
    trained_on = check_held_out(replace(shared, val_episodes="2:"))
    assert trained_on == recordings(open_source(raw), [0, 1])


def test_an_episode_that_is_there_twice_is_never_on_both_sides(raw: Path) -> None:
    for path in [*raw.glob("*/*_0.*")]:
        shutil.copy(path, path.with_name(path.name.replace("_0.", "_3.")))
    marker = raw / "metadata/metadata_3.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"shard_ind": 3}))
    metadata = json.loads((raw / "metadata.json").read_text())
    (raw / "metadata.json").write_text(json.dumps(metadata | {"num_shards": 4}))
    with pytest.raises(UsageError, match=r"1 of 1 validation episodes are also trained on \(shard 3, segment 0\)"):
        check_held_out(DataConfig(path=raw, train_episodes=":3", val_episodes="3:"))
    (problem,) = [problem for problem in inspect(raw).problems if problem.kind == "duplicate"]
    assert "the states of shard 0, segment 0 in shard 3, segment 0 again (1 such episodes)" in str(problem)


def test_tokens_latents_and_conversions_name_the_recordings_they_were_made_from(raw: Path) -> None:
    source, base = open_source(raw), raw.parent
    tokenize(source, small_tokenizer(), base / "tokens", fingerprint="x", episodes=[2, 0], start_offsets=3)
    vae = small_vae(base / "vae")[1]
    encode(source, vae, base / "latents", fingerprint="y", episodes=[1], pattern=NINE, window_stride=9, size=8)
    tokens, latents = open_source(base / "tokens"), open_source(base / "latents")
    names = [recording_of(source, i) for i in range(3)]
    assert len(set(names)) == 3
    by_shard = {episode.name.split(",")[0]: recording_of(tokens, episode.index) for episode in tokens.episodes}
    assert by_shard == {"shard 0": names[2], "shard 1": names[0]}
    assert recording_of(latents, 0) == names[1]
    tokenize(source, small_tokenizer(), base / "all", fingerprint="x", episodes=range(3))
    with pytest.raises(UsageError, match="2 of 3 validation episodes"):
        check_held_out(DataConfig(path=base / "tokens", val_path=base / "all"))
    with pytest.raises(UsageError, match="1 of 1 validation episodes"):
        check_held_out(DataConfig(path=raw, val_path=base / "latents"))
    for train_on, val, free in (("tokens", "latents", "0"), ("latents", "all", "2"), ("tokens", "raw", "1")):
        config = DataConfig(path=base / train_on, val_path=base / val, val_episodes=free)
        with pytest.raises(UsageError, match=r"they differ in content: \w+ and \w+"):
            check_held_out(config)


def _others(root: Path, change: str) -> Path:
    """Recordings of squares by a robot, or a camera, of another kind."""
    names = {"names": ("knee", "gripper"), "more": ("elbow", "gripper", "knee")}.get(change, TWO_JOINTS.names)
    layout, fps = StateLayout(names=names, kinds=("angle",) * len(names)), 10.0 if change == "rate" else 30.0
    frames = moving_picture(34, size=32 if change == "size" else 16)
    states = np.tile(np.linspace(0, 1, 34, dtype=np.float32)[:, None], (1, len(names)))
    write_raw_shard(root, 0, frames=frames, states=states, segments=np.zeros(34, np.int32), fps=fps)
    finish_shards(root, num_shards=1, num_images=34, fps=fps, layout=layout, provenance={})
    return root


@pytest.mark.parametrize("kind", ["tokenizer", "vae", "tokens", "latents"])
@pytest.mark.parametrize("change", ["names", "more", "rate", "size"])
def test_data_unlike_those_of_training_cannot_validate(raw: Path, kind: str, change: str) -> None:
    other, size = _others(raw.parent / "other", change), None if change == "size" else 16
    says = {"rate": "frames per second: 30.0 and 10.0", "size": "picture size"}.get(change, "state names")
    with pytest.raises(UsageError, match=f"differ in {says}"):
        train(run_of(raw, kind, val_path=other, image_size=size), raw.parent / "run")
    assert not (raw.parent / "cache").exists()
    assert not (raw.parent / "run").exists()


def test_a_run_says_what_it_was_trained_on_and_what_it_began_from(raw: Path) -> None:
    first = run_of(raw, "tokenizer", train_episodes=":1", val_episodes="2:")
    train(first, raw.parent / "first")
    second = replace(first, data=replace(first.data, train_episodes="1:2"), init_from=raw.parent / "first")
    train(second, raw.parent / "second")
    latest = RunDir(raw.parent / "second").latest()
    assert latest is not None
    trained_on = Recordings(contents=tuple(read_json(latest / "model.json")["trained_on"]["contents"]))
    assert [e.index for e in trained_on.among(open_source(raw), [2, 1, 0])] == [1, 0]
    with pytest.raises(UsageError, match="1 of 2 validation episodes"):
        train(replace(second, data=replace(second.data, train_episodes="2:", val_episodes=":2")), raw.parent / "third")


def _standing_still(root: Path, episodes: int) -> Path:
    for shard in range(episodes):
        frames = moving_picture(20, shift=float(shard))
        write_raw_shard(
            root, shard, frames=frames, states=np.zeros((20, 2), np.float32), segments=np.zeros(20, np.int32), fps=30.0
        )
    finish_shards(root, num_shards=episodes, num_images=20 * episodes, fps=30.0, layout=TWO_JOINTS, provenance={})
    return root


def test_states_that_never_change_are_told_apart_by_their_videos_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(path=_standing_still(tmp_path / "still", 3), train_episodes=":2", val_episodes="2:")
    with caplog.at_level(logging.WARNING):
        check_held_out(config)
    assert "states of 2 episodes never change" in caplog.text
    with pytest.raises(UsageError, match="2 of 3 validation episodes"):
        check_held_out(replace(config, val_path=_copy(tmp_path / "still"), val_episodes=":"))


def test_damaged_notes_of_recordings_are_no_crash(raw: Path) -> None:
    path = raw / "metadata.json"
    for notes in ("text", ["a"], [1, None, {}], {"0": "a"}):
        metadata = json.loads(path.read_text()) | {"provenance": {"recordings": notes}}
        path.write_text(json.dumps(metadata))
        assert len(recordings(open_source(raw), range(3)).contents) >= 1


@pytest.mark.parametrize("kind", ["tokenizer", "vae", "tokens", "latents"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 15}, "do not divide"),
        ({"val_episodes": "9:"}, "selects none of its 3 episodes"),
        ({"train_episodes": "0", "exclude_episodes": (0,)}, "nothing is left"),
        ({"camera": "wrist"}, "leave out camera"),
    ],
)
def test_data_that_cannot_be_used_are_refused_before_any_work(
    raw: Path, kind: str, change: dict[str, object], message: str
) -> None:
    config = run_of(raw, kind, train_episodes=":2", val_episodes="2:")
    with pytest.raises(UsageError, match=message):
        train(replace(config, data=replace(config.data, **change)), raw.parent / "run")  # pyright: ignore
    assert not (raw.parent / "cache").exists()
    assert not (raw.parent / "run/config.json").exists()


@pytest.mark.parametrize(
    "model", [builtin.TOKENIZER_TINY, builtin.COMPRESSION_TINY, builtin.VAE_TINY, builtin.SAMPLING_TINY]
)
def test_built_ins_say_that_twin_mini_was_trained_on_and_its_validation_set_not(model: Path) -> None:
    trained_on = Recordings(contents=tuple(json.loads((model / "model.json").read_text())["trained_on"]["contents"]))
    assert len(trained_on.contents) == 1600
    train, val = open_source(builtin.TWIN_MINI_TRAIN), open_source(builtin.TWIN_MINI_VAL)
    assert len(trained_on.among(train, range(80))) == 80
    assert trained_on.among(val, range(20)) == []


def test_a_tokenizer_that_has_seen_the_validation_episodes_is_named(
    raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = raw.parent / "tokenizer_run"
    train(run_of(raw, "tokenizer", train_episodes=":2", val_episodes="2:"), run)
    caplog.set_level(logging.WARNING)
    for held_out, says in (("1", True), ("2", False)):
        config = run_of(raw, "tokens", train_episodes="0", val_episodes=held_out, window_stride=17)
        train(replace(config, tokenizer=run), raw.parent / f"world{held_out}")
        assert (
            "was trained on 1 of the 1 validation episodes (the first is shard 1, segment 0)" in caplog.text
        ) == says
        caplog.clear()
        shutil.rmtree(raw.parent / "tokenizer")


def test_a_tokenizer_that_was_given_other_columns_is_named_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, run = write_lerobot(tmp_path / "raw", "v2.1", (34, 34, 34)), tmp_path / "tokenizer_run"
    train(run_of(root, "tokenizer", train_episodes=":2", val_episodes="2:"), run)
    caplog.set_level(logging.WARNING)
    config = run_of(root, "tokens", train_episodes="0", val_episodes="1", window_stride=17, conditioning="action")
    prepare(replace(config, tokenizer=run))
    assert "was trained on 1 of the 1 validation episodes (the first is episode 1)" in caplog.text


def test_of_tokens_it_is_said_how_many_recordings_the_chosen_pieces_show(
    raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = raw.parent / "pieces"
    tokenize(open_source(raw), small_tokenizer(), folder, fingerprint="x", episodes=range(3), start_offsets=3)
    caplog.set_level(logging.WARNING)
    config = run_of(folder, "tokens", val_path=None, val_episodes="6", window_stride=17)
    for taken, says in ((":4", True), ("0,3", False)):
        train(replace(config, data=replace(config.data, train_episodes=taken), tokenizer=None), raw.parent / taken)
        assert ("the 4 of 9 that are trained on show 2 recordings" in caplog.text) == says
        caplog.clear()
