"""What a run is made with is compared wherever it is met again; runs and data sets may move, and stay what they are."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SMALL_WORLD, small_tokenizer, write_followed_tokens, write_squares
from commands import do
from data_builders import write_lerobot

from worldline import builtin
from worldline.builtin import located, stored
from worldline.data.clips import DataConfig
from worldline.data.splits import content_of
from worldline.encoding.encode import tokenize
from worldline.evaluation.held_out import DataChoice, split_of
from worldline.families.card import Identity, ModelCard, describe_model, refuse_another
from worldline.families.config import LoadOptions, TrainConfig, read_config
from worldline.families.load import load_forecaster
from worldline.families.tokenizers import fingerprint, load_tokenizer
from worldline.files import read_json
from worldline.formats.open import open_source
from worldline.nn.optimizer import OptimizerConfig
from worldline.rundir import RunDir, from_json, load_tensors, model_folder, new_folder, write_model
from worldline.schema import UsageError
from worldline.training.loop import train

STEADY = OptimizerConfig(lr=1e-3, warmup_steps=0, schedule="constant")


def _world(root: Path, **changes: Any) -> TrainConfig:
    if not (root / "train").exists():
        write_followed_tokens(root / "train", 3)
        write_followed_tokens(root / "val", 2, seed=1)
    return replace(
        TrainConfig(
            model=replace(SMALL_WORLD, dropout=0.0),
            data=DataConfig(path=root / "train", val_path=root / "val", window_stride=17),
            optimizer=STEADY,
            batch_size=2,
            steps=1,
            device="cpu",
            validation_clips=2,
        ),
        **changes,
    )


def _tokenizer(path: Path, seed: int) -> Path:
    tokenizer = small_tokenizer(seed=seed)
    with new_folder(path) as folder:
        write_model(folder, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
    return path


def _tokens(raw: Path, by: Path, out: Path) -> Path:
    source = open_source(raw)
    episodes = range(len(source.episodes))
    tokenize(source, load_tokenizer(by), out, fingerprint=fingerprint(by), episodes=episodes)
    return out


def _change_a_state(root: Path) -> None:
    path = root / "robot_states/states_0.bin"
    states = np.fromfile(path, np.float32)
    states[3] += 0.5
    states.tofile(path)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what a data set is ---


@pytest.mark.parametrize("kind", ["tokens", "raw", "v2.1", "v3.0"])
def test_a_copied_data_set_is_the_same_and_a_changed_one_is_not(tmp_path: Path, kind: str) -> None:
    match kind:
        case "tokens":
            root = write_followed_tokens(tmp_path / "a", 3)
        case "raw":
            root = write_squares(tmp_path / "a", 3, length=17)
        case _:
            root = write_lerobot(tmp_path / "a", kind, (20, 20, 20))
    first = content_of(open_source(root), range(2))
    copy = tmp_path / "elsewhere/b"
    shutil.copytree(root, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    assert content_of(open_source(copy), range(2)) == first
    assert content_of(open_source(copy), (1, 0)) != first
    assert content_of(open_source(copy), range(3)) != first
    source = open_source(copy)
    film = source.footage(0)[0]
    film.write_bytes(film.read_bytes()[:-1] + b"~")
    assert content_of(open_source(copy), range(2)) != first


def test_states_are_part_of_a_data_set(tmp_path: Path) -> None:
    root = write_squares(tmp_path / "a", 2, length=17)
    first = content_of(open_source(root), range(2))
    _change_a_state(root)
    assert content_of(open_source(root), range(2)) != first


def test_parts_that_are_not_known_are_not_compared() -> None:
    made = Identity(data="a" * 64, tokenizer="b" * 64)
    assert made.differing(Identity(tokenizer="b" * 64, text="c" * 64)) == ()
    assert made.differing(Identity(data="x", tokenizer="y")) == ("data", "tokenizer")
    found = Identity(data="x" * 64, tokenizer="b" * 64)
    expected = r"the run was made with another data \(aaaaaaaaaaaa; here is xxxxxxxxxxxx\).*--allow-different data"
    with pytest.raises(UsageError, match=expected):
        refuse_another(made, found, what="the run", places={"data": "here"})
    refuse_another(made, found, what="the run", places={}, allowed=("data",))
    card = describe_model(builtin.SAMPLING_TINY)
    assert from_json(ModelCard, card.to_json(), Path()) == card


# --- tokens and their tokenizer ---


def test_tokens_of_another_tokenizer_than_the_one_given_are_refused(tmp_path: Path) -> None:
    raw = write_squares(tmp_path / "raw", 2)
    one, two = _tokenizer(tmp_path / "one", 1), _tokenizer(tmp_path / "two", 2)
    by_one = _tokens(raw, one, tmp_path / "by_one")
    by_two = _tokens(write_squares(tmp_path / "val", 1, first=7), two, tmp_path / "by_two")
    config, run = _world(tmp_path), tmp_path / "run"
    data = replace(config.data, path=by_one, val_path=by_one, train_episodes=":1", val_episodes="1:")
    config = replace(config, data=data, tokenizer=two, model=SMALL_WORLD)
    numbers = rf"\({fingerprint(one)[:12]}; {two} is {fingerprint(two)[:12]}\)"
    with pytest.raises(UsageError, match=rf"training data {by_one} was made with another tokenizer {numbers}"):
        train(config, run)
    mixed = replace(config, tokenizer=one, data=replace(data, val_path=by_two, val_episodes=":"))
    with pytest.raises(UsageError, match=rf"validation data {by_two} was made with another tokenizer"):
        train(mixed, run)
    with pytest.raises(UsageError, match=rf"{by_two} was made with another tokenizer .*{by_one} is"):
        train(replace(mixed, tokenizer=None), run)
    assert not run.exists()
    train(replace(config, tokenizer=None), run)
    assert describe_model(model_folder(run)).identity.tokenizer == fingerprint(one), "known without it"
    train(replace(config, allow_different=("tokenizer",)), tmp_path / "on_purpose")
    assert fingerprint(tmp_path / "on_purpose/tokenizer") == fingerprint(two)


def test_the_copy_of_a_tokenizer_is_compared_and_not_only_its_note(tmp_path: Path) -> None:
    raw, one = write_squares(tmp_path / "raw", 2), _tokenizer(tmp_path / "one", 1)
    by_one = _tokens(raw, one, tmp_path / "by_one")
    config = _world(tmp_path, tokenizer=one, model=SMALL_WORLD)
    data = replace(config.data, path=by_one, val_path=by_one, train_episodes=":1", val_episodes="1:")
    train(replace(config, data=data), tmp_path / "run")
    assert fingerprint(tmp_path / "run/tokenizer") == fingerprint(one)
    load_forecaster(tmp_path / "run")
    shutil.copy(_tokenizer(tmp_path / "two", 2) / "model.safetensors", tmp_path / "run/tokenizer")
    with pytest.raises(UsageError, match=r"made with another tokenizer .*run/tokenizer is"):
        load_forecaster(tmp_path / "run")
    load_forecaster(tmp_path / "run", LoadOptions(allow_different=("tokenizer",)))


# --- resume ---


def test_a_run_is_not_gone_on_with_on_other_data(tmp_path: Path) -> None:
    config, run = _world(tmp_path), tmp_path / "run"
    train(config, run)
    before = _files(run)
    _change_a_state(tmp_path / "train")
    longer = replace(config, steps=2)
    with pytest.raises(UsageError, match=r"the run in .*run was made with another data \(.*--allow-different data"):
        train(longer, run, resume=True)
    _change_a_state(tmp_path / "val")
    with pytest.raises(UsageError, match=r"another data \(.*another validation \(.*--allow-different data validation"):
        train(longer, run, resume=True)
    assert _files(run) == before
    told = Identity(**read_json(run / "identity.json"))
    train(replace(longer, allow_different=("data", "validation")), run, resume=True)
    now = Identity(**read_json(run / "identity.json"))
    assert told.differing(now) == ("data", "validation")
    assert describe_model(model_folder(run)).identity == now


def test_a_run_is_not_gone_on_with_by_another_tokenizer_or_split(tmp_path: Path) -> None:
    raw = write_squares(tmp_path / "raw", 3, length=34)
    one, two = _tokenizer(tmp_path / "one", 1), _tokenizer(tmp_path / "two", 2)
    data = DataConfig(path=raw, train_episodes=":2", val_episodes="2:", window_stride=17, cache=tmp_path / "cache")
    config = _world(tmp_path, data=data, tokenizer=one, start_offsets=1)
    train(config, tmp_path / "run")
    made = sorted((tmp_path / "cache").iterdir())
    with pytest.raises(UsageError, match=rf"another tokenizer \(.*{two} is"):
        train(replace(config, tokenizer=two, steps=2), tmp_path / "run", resume=True)
    assert sorted((tmp_path / "cache").iterdir()) == made, "nothing was tokenized"
    moved = tmp_path / "moved"
    raw.rename(moved)
    one.rename(tmp_path / "one_moved")
    config = replace(config, data=replace(data, path=moved), tokenizer=tmp_path / "one_moved", steps=2)
    assert train(config, tmp_path / "run", resume=True).step == 2
    assert sorted((tmp_path / "cache").iterdir()) == made, "moved data and tokenizers are the same"
    shutil.rmtree(tmp_path / "one_moved")
    alone = read_config(RunDir(tmp_path / "run"))
    assert alone.tokenizer == tmp_path / "run/tokenizer", "the run has a copy"
    assert train(replace(alone, steps=3), tmp_path / "run", resume=True).step == 3
    counted = np.load(tmp_path / "run/unigram.npy")
    other = replace(alone, tokenizer=two, steps=4, allow_different=("tokenizer",))
    train(other, tmp_path / "run", resume=True)
    assert fingerprint(tmp_path / "run/tokenizer") == fingerprint(two), "what stands beside the world is its own"
    assert (np.load(tmp_path / "run/unigram.npy") != counted).any(), "of the tokens that it is trained on now"
    load_forecaster(tmp_path / "run")


def test_to_have_none_is_to_have_another(tmp_path: Path) -> None:
    config, one = _world(tmp_path), _tokenizer(tmp_path / "one", 1)  # nobody knows who made these tokens
    train(config, tmp_path / "run")
    with pytest.raises(UsageError, match=rf"made with another tokenizer \(none; {one} is {fingerprint(one)[:12]}\)"):
        train(replace(config, tokenizer=one, steps=2), tmp_path / "run", resume=True)


def test_a_finished_run_goes_on_to_more_steps_as_if_it_had_been_asked_for(tmp_path: Path) -> None:
    config = _world(tmp_path)
    train(replace(config, steps=3), tmp_path / "whole")
    train(config, tmp_path / "parts")
    assert train(replace(config, steps=3), tmp_path / "parts", resume=True).step == 3
    whole, parts = (load_tensors(model_folder(tmp_path / run) / "model.safetensors") for run in ("whole", "parts"))
    assert all((value == parts[name]).all() for name, value in whole.items())
    assert read_json(tmp_path / "parts/config.json") == read_json(tmp_path / "whole/config.json")
    with pytest.raises(UsageError, match="at step 3 already; a length of 2"):
        train(replace(config, steps=2), tmp_path / "parts", resume=True)


def test_weights_of_another_tokenizers_world_are_no_beginning(tmp_path: Path) -> None:
    raw = write_squares(tmp_path / "raw", 2)
    one, two = _tokenizer(tmp_path / "one", 1), _tokenizer(tmp_path / "two", 2)
    data = DataConfig(path=raw, train_episodes=":1", val_episodes="1:", window_stride=17, cache=tmp_path / "cache")
    config = _world(tmp_path, data=data, tokenizer=one, start_offsets=1)
    train(config, tmp_path / "run")
    further = replace(config, init_from=tmp_path / "run", tokenizer=two)
    with pytest.raises(UsageError, match=r"the model in .*run was made with another tokenizer"):
        train(further, tmp_path / "further")
    train(replace(further, allow_different=("tokenizer",)), tmp_path / "further")


# --- moves ---


def test_paths_outlive_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/a")
    (run / "own").mkdir(parents=True)
    several = (Path("data"), run / "more", builtin.TWIN_MINI_TRAIN)
    data = DataConfig(path=several, val_path=builtin.TWIN_MINI_VAL, cache=tmp_path / "cache")
    config = _world(tmp_path, data=data, tokenizer=run / "own")
    kept = stored(config, run)
    assert kept.data.path == (tmp_path / "data", Path("more"), Path("twin-mini"))
    assert kept.data.val_path == Path("twin-mini-val")
    assert (kept.tokenizer, kept.data.cache) == (Path("own"), tmp_path / "cache")
    monkeypatch.chdir("/")
    (tmp_path / "runs/a").rename(tmp_path / "b")
    found = located(kept, tmp_path / "b")
    assert found.data.path == (tmp_path / "data", tmp_path / "b/more", builtin.TWIN_MINI_TRAIN)
    assert found.data.val_path == builtin.TWIN_MINI_VAL
    assert found.tokenizer == tmp_path / "b/own"


def test_a_run_that_has_moved_is_judged_and_gone_on_with_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.chdir(tmp_path)
    _world(tmp_path)
    train(_world(Path()), Path("run"))
    monkeypatch.chdir("/")
    run = tmp_path / "archive/run"
    run.parent.mkdir()
    (tmp_path / "run").rename(run)
    contract = describe_model(model_folder(run)).promise
    assert split_of(run, contract, [run]) == "held out"
    do("train", ["--resume", str(run), "--steps", "2"])
    assert RunDir(run).checkpoint(2).is_dir()

    (tmp_path / "train").rename(tmp_path / "kept_train")
    (tmp_path / "val").rename(tmp_path / "kept_val")
    gone = rf"{tmp_path}/train \(--data\.path PLACE\), {tmp_path}/val \(--data\.val-path PLACE\)"
    with pytest.raises(UsageError, match=gone):
        do("train", ["--resume", str(run), "--steps", "3"])
    with pytest.raises(UsageError, match=rf"{tmp_path}/val, which are not there now; give their new place \(--data"):
        split_of(run, contract, [run])
    places = ["--data.path", str(tmp_path / "kept_train"), "--data.val-path", str(tmp_path / "kept_val")]
    with pytest.raises(UsageError, match="another data"):
        do("train", ["--resume", str(run), "--steps", "3", "--data.path", places[3], "--data.val-path", places[1]])
    do("train", ["--resume", str(run), "--steps", "3", *places])
    assert RunDir(run).checkpoint(3).is_dir()
    assert split_of(run, contract, [run]) == "held out", "the new places are kept"


def test_validation_data_that_have_changed_are_no_longer_the_runs_own(tmp_path: Path) -> None:
    config, run = _world(tmp_path), tmp_path / "run"
    train(config, run)
    contract = describe_model(model_folder(run)).promise
    assert split_of(run, contract, [run]) == "held out"
    _change_a_state(tmp_path / "val")
    with pytest.raises(UsageError, match=r"run was made with another validation \(.*--allow-different validation"):
        split_of(run, contract, [run])
    assert split_of(run, contract, [run], allow_different=("validation",)) == "held out"
    assert split_of(run, contract, [run], DataChoice(data=tmp_path / "val")) == "held out", (
        "named by hand, it is what is meant"
    )
