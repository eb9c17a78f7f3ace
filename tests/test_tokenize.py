"""A source of frames becomes a 1X token folder: what lies where, resumed after a kill, and what is left out."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import (
    GRID_200,
    SMALL_TOKENIZER,
    SMALL_WORLD,
    TWO_JOINTS,
    moving_square,
    small_tokenizer,
    small_world,
    write_squares,
)
from data_builders import write_tokens
from tolerances import assert_tokens_agree
from torch import Tensor

from worldline.data.augment import AugmentConfig
from worldline.data.clips import DataConfig
from worldline.encoding.encode import Made, tokenize
from worldline.families.card import ModelCard
from worldline.families.config import TrainConfig
from worldline.families.family import Prepared
from worldline.families.load import prepare
from worldline.families.tokenizers import load_tokenizer
from worldline.forecasting.tokens import TokenForecaster
from worldline.formats.onex.write import finish_shards, write_raw_shard
from worldline.formats.open import open_source
from worldline.formats.source import Source
from worldline.formats.video import resize
from worldline.nn.optimizer import OptimizerConfig
from worldline.rundir import new_folder, write_model
from worldline.schema import Batch, UsageError

LENGTHS = (51, 40, 20, 10)


def _source(root: Path, lengths: tuple[int, ...] = LENGTHS) -> Source:
    """Episodes of these lengths, one per shard."""
    for shard, length in enumerate(lengths):
        frames, states = moving_square(length, seed=shard)
        segments = np.zeros(length, np.int32)
        write_raw_shard(root, shard, frames=frames, states=states, segments=segments, fps=30.0)
    total = sum(lengths)
    finish_shards(root, num_shards=len(lengths), num_images=total, fps=30.0, layout=TWO_JOINTS, provenance={})
    return open_source(root)


def _run(source: Source, out: Path, **changes: object) -> Made:
    settings = {"fingerprint": "one", "episodes": range(len(source.episodes)), "tokenizer": small_tokenizer()} | changes
    return tokenize(source, out=out, **settings)  # pyright: ignore[reportArgumentType]


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_tokens_and_states_are_read_back_as_they_were_made(tmp_path: Path) -> None:
    source, tokenizer = _source(tmp_path / "raw"), small_tokenizer()
    _run(source, tmp_path / "out")
    tokens = open_source(tmp_path / "out")
    assert tokens.kind == "1x-tokens"
    assert tokens.grid == tokenizer.grid(16, 16)
    assert (tokens.fps, tokens.layout) == (30.0, TWO_JOINTS)
    for episode, blocks in enumerate((3, 2, 1)):
        seen, made = source.read(episode, 0, 17 * blocks), tokens.read(episode, 0, 17 * blocks)
        assert seen.frames is not None
        assert made.tokens is not None
        assert_tokens_agree(made.tokens, tokenizer.encode(seen.frames[None])[0])
        assert torch.equal(made.states, seen.states)


def test_each_phase_is_a_segment_that_starts_later(tmp_path: Path) -> None:
    source, tokenizer = _source(tmp_path / "raw", (51,)), small_tokenizer()
    report = _run(source, tmp_path / "out", start_offsets=2)
    tokens = open_source(tmp_path / "out")
    assert [(episode.length, episode.block_offset) for episode in tokens.episodes] == [(51, 0), (34, 0)]
    later, made = source.read(0, 8, 42), tokens.read(1, 0, 34)
    assert later.frames is not None
    assert made.tokens is not None
    assert_tokens_agree(made.tokens, tokenizer.encode(later.frames[None])[0])
    assert torch.equal(made.states, later.states)
    assert (report.counts["blocks"], report.counts["frames"], report.counts["frames_left_out"]) == (5, 85, 9)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    source = _source(tmp_path / "raw")
    report = _run(source, tmp_path / "out")
    assert (report.counts["episodes"], report.counts["blocks"], report.counts["frames"]) == (4, 6, 102)
    assert report.counts["frames_left_out"] == 0 + 6 + 3 + 10
    assert report.counts["episodes_too_short"] == 2
    twice = _run(source, tmp_path / "twice", start_offsets=2)
    assert twice.counts["blocks"] == 6 + (2 + 1)
    assert twice.counts["frames_left_out"] == 19 + (9 + 15 + 12 + 2)
    assert twice.counts["episodes_too_short"] == 2


def test_only_chosen_episodes_are_tokenized(tmp_path: Path) -> None:
    source = _source(tmp_path / "raw")
    report = _run(source, tmp_path / "out", episodes=[1])
    tokens = open_source(tmp_path / "out")
    assert (report.counts["episodes"], report.counts["blocks"]) == (1, 2)
    assert torch.equal(tokens.read(0, 0, 34).states, source.read(1, 0, 34).states)


def test_frames_are_resized_first_where_a_size_is_given(tmp_path: Path) -> None:
    source, tokenizer = _source(tmp_path / "raw", (17,)), small_tokenizer()
    _run(source, tmp_path / "out", size=8)
    tokens, frames = open_source(tmp_path / "out").read(0, 0, 17).tokens, source.read(0, 0, 17).frames
    assert frames is not None
    assert tokens is not None
    assert_tokens_agree(tokens, tokenizer.encode(resize(frames, 8)[None])[0])


def test_augmented_phases_are_crops_of_their_own(tmp_path: Path) -> None:
    source, augment = _source(tmp_path / "raw", (51, 51)), AugmentConfig(crop_scale=(0.5, 0.9), brightness=0.2)
    for name in ("one", "two"):
        _run(source, tmp_path / name, start_offsets=34, augment=augment, size=16)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    assert _run(source, tmp_path / "one", start_offsets=34, augment=augment, size=16).counts["reused"] == 2
    tokens = open_source(tmp_path / "one")
    # 34 start_offsets are two passes over the 17 starts: pass p begins at frame p // 2
    passes = [tokens.read(i, 0, 34) for i in (0, 1, 34, 35)]
    assert len({tuple(clip.tokens.flatten().tolist()) for clip in passes if clip.tokens is not None}) == 4
    assert all(torch.equal(clip.states, source.read(i // 2, 0, 34).states) for i, clip in enumerate(passes))
    with pytest.raises(UsageError, match="17 start offsets; with 18 of them"):
        _run(source, tmp_path / "plain", start_offsets=18)
    assert not (tmp_path / "plain").exists()


def test_worlds_do_not_train_on_flipped_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="flip"):
        _run(_source(tmp_path / "raw", (34,)), tmp_path / "out", augment=AugmentConfig(flip=0.5))


def test_augmenting_oblong_frames_needs_a_size(tmp_path: Path) -> None:
    frames, states = moving_square(34)
    wide = np.concatenate([frames, frames[:, :, :8]], axis=2)
    write_raw_shard(tmp_path / "raw", 0, frames=wide, states=states, segments=np.zeros(34, np.int32), fps=30.0)
    finish_shards(tmp_path / "raw", num_shards=1, num_images=34, fps=30.0, layout=TWO_JOINTS, provenance={})
    source, augment = open_source(tmp_path / "raw"), AugmentConfig(brightness=0.1)
    assert source.image_size == (16, 24)
    with pytest.raises(UsageError, match=r"--data\.image-size"):
        _run(source, tmp_path / "out", augment=augment)
    assert _run(source, tmp_path / "out", augment=augment, size=16).counts["blocks"] == 2


@pytest.mark.parametrize(
    "lost", ["metadata/metadata_1.json", "videos/video_1.bin", "segment_indices/segment_idx_1.bin"]
)
def test_killed_between_shards_it_goes_on_where_it_stopped(tmp_path: Path, lost: str) -> None:
    source, out = _source(tmp_path / "raw"), tmp_path / "out"
    first = _run(source, out)
    whole = _digests(out)
    (out / "metadata.json").unlink()
    (out / lost).unlink()
    untouched = (out / "videos/video_0.bin").stat().st_mtime_ns
    again = _run(source, out)
    assert _digests(out) == whole
    assert (first.counts["reused"], again.counts["reused"]) == (0, 3)
    assert (out / "videos/video_0.bin").stat().st_mtime_ns == untouched
    assert (again.counts["frames"], again.counts["frames_left_out"]) == (
        first.counts["frames"],
        first.counts["frames_left_out"],
    )


def test_run_again_it_writes_nothing_anew(tmp_path: Path) -> None:
    source = _source(tmp_path / "raw")
    _run(source, tmp_path / "out")
    assert _run(source, tmp_path / "out").counts["reused"] == 4


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "another"},
        {"size": 8},
        {"start_offsets": 3},
        {"episodes": [0, 1]},
        {"augment": AugmentConfig(brightness=0.1)},
    ],
    ids=lambda c: next(iter(c)),
)
def test_shards_of_other_settings_never_mix(tmp_path: Path, change: dict[str, object]) -> None:
    source = _source(tmp_path / "raw")
    _run(source, tmp_path / "out")
    before = _digests(tmp_path / "out")
    named = {"fingerprint": "tokenizer"}.get(next(iter(change)), next(iter(change)))
    with pytest.raises(UsageError, match=f"another .*{named}"):
        _run(source, tmp_path / "out", **change)
    assert _digests(tmp_path / "out") == before


def test_changed_data_at_the_same_place_are_other_data(tmp_path: Path) -> None:
    _run(_source(tmp_path / "raw"), tmp_path / "out")
    path = tmp_path / "raw/robot_states/states_0.bin"
    states = np.fromfile(path, np.float32)
    states[0] += 0.125
    states.tofile(path)
    with pytest.raises(UsageError, match="another content"):
        _run(open_source(tmp_path / "raw"), tmp_path / "out")


def test_new_video_at_the_same_place_is_other_data(tmp_path: Path) -> None:
    _run(open_source(write_squares(tmp_path / "raw", 2)), tmp_path / "out")
    states = (tmp_path / "raw/robot_states/states_0.bin").read_bytes()
    write_squares(tmp_path / "raw", 2, first=9)
    (tmp_path / "raw/robot_states/states_0.bin").write_bytes(states)
    with pytest.raises(UsageError, match="another content"):
        _run(open_source(tmp_path / "raw"), tmp_path / "out")


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        _run(_source(tmp_path / "raw", (17,)), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_tokens_cannot_be_tokenized(tmp_path: Path) -> None:
    source = open_source(write_tokens(tmp_path / "tokens", np.zeros(34, np.int32)))
    with pytest.raises(UsageError, match="only video"):
        _run(source, tmp_path / "out")


def test_a_size_off_the_stride_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="12x12"):
        _run(_source(tmp_path / "raw", (17,)), tmp_path / "out", size=12)
    assert not (tmp_path / "out").exists()


# --- one truth ---


def _prepared(root: Path, tokenizer: Path, *, train: str, val: str) -> Prepared:
    """Clips of tokens as a training makes them of its frames."""
    data = DataConfig(path=root / "raw", train_episodes=train, val_episodes=val, window_stride=17, cache=root / "cache")
    config = TrainConfig(
        model=SMALL_WORLD,
        data=data,
        tokenizer=tokenizer,
        optimizer=OptimizerConfig(lr=1e-3),
        batch_size=1,
        steps=1,
        start_offsets=2,
    )
    return prepare(config)


@pytest.mark.parametrize("hysteresis", [0.0, 0.75, 100.0])
def test_a_clips_tokens_are_the_same_wherever_they_are_made(tmp_path: Path, hysteresis: float) -> None:
    """Tokenized to disk, for training and for validation, for a forecast with and without the future, and judged."""
    source, tokenizer = (
        _source(tmp_path / "raw", (68, 51)),
        small_tokenizer(replace(SMALL_TOKENIZER, hysteresis=hysteresis)),
    )
    with new_folder(tmp_path / "tokenizer") as folder:
        write_model(folder, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
    frames = source.read(1, 0, 34).frames
    assert frames is not None
    world = small_world(grid=GRID_200)
    folder = tmp_path / "tokenizer"
    forecaster = TokenForecaster(world=world, grid=tokenizer.grid(16, 16), tokenizer=load_tokenizer(folder))

    def encoded(part: Tensor) -> Tensor:
        tokens = forecaster.encoded(Batch(states=torch.zeros(1, 1, 2), fps=30.0, origins=(), frames=part[None])).tokens
        assert tokens is not None
        return tokens[0]

    whole = encoded(frames)

    _run(source, tmp_path / "disk", tokenizer=tokenizer)
    on_disk = open_source(tmp_path / "disk").read(1, 0, 34).tokens
    trained = _prepared(tmp_path, folder, train="1:2", val="0:1").train[0].tokens
    validated = _prepared(tmp_path, folder, train="0:1", val="1:2").val[0].tokens
    context, future = encoded(frames[:17]), encoded(frames[17:])
    judged = torch.cat([tokenizer.encode(block[None])[0] for block in frames.split(17)])
    for tokens in (on_disk, trained, validated, torch.cat([context, future]), judged):
        assert tokens is not None
        assert_tokens_agree(tokens, whole)
    if hysteresis == 100:
        assert torch.equal(whole[1], whole[0])
        assert torch.equal(whole[4], whole[3])
    assert not torch.equal(whole[3], whole[2]), "each block begins with what is there, not with what was"
