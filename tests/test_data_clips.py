"""Clips, the frame cache, augmentation and the order of batches."""

import multiprocessing
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from condition_builders import CAMERA, encoded, film, numbers, write, write_film
from data_builders import ramp, write_lerobot, write_raw, write_tokens
from pyarrow import parquet
from tolerances import assert_pixels_agree

from worldline.contract import FramePattern
from worldline.data import loader as loader_module
from worldline.data.augment import AugmentConfig, augment_frames
from worldline.data.cache import CachedSource, cached_frames
from worldline.data.clips import Clips, DataConfig, open_clips, source_windows
from worldline.data.loader import IN_FLIGHT, Loader, clip_bytes, clip_keys, clips_in_part
from worldline.data.splits import content_of, recordings
from worldline.formats.open import open_source
from worldline.formats.video import resize
from worldline.schema import Batch, Clip, DataError, UsageError, join


def _config(root: Path, **changes: object) -> DataConfig:
    config = DataConfig(path=root, pattern=FramePattern(window=8), window_stride=4, image_size=16)
    return replace(config, **changes)


def test_patterns_choose_frames_and_rate_and_keep_every_state(tmp_path: Path) -> None:
    source = open_source(write_lerobot(tmp_path / "d", "v2.1", (90,)))
    index = source_windows(source, window=77, stride=8)
    clip = Clips(source, index, pattern=FramePattern.report_77())[1]
    taken = [*range(0, 77, 4), 76]
    assert clip.fps == 7.5
    assert clip.origin.start == 8
    torch.testing.assert_close(clip.states, torch.from_numpy(ramp(77, 2, start=8)))
    whole = source.read(0, 8, 85).frames
    assert whole is not None
    assert clip.frames is not None
    assert torch.equal(clip.frames, whole[torch.tensor(taken)])


def test_token_clips_hold_34_states_and_6_grids(tmp_path: Path) -> None:
    config = DataConfig(path=write_tokens(tmp_path, np.zeros(200, np.int32)), train_episodes=":")
    clips = open_clips(config, "train")
    assert len(clips) == 5
    assert clips[4].states.shape == (34, 25)
    assert clips[4].tokens is not None
    assert clips[4].tokens.shape == (6, 4, 4)
    with pytest.raises(IndexError):
        clips[5]
    with pytest.raises(UsageError, match="subsampled"):
        open_clips(replace(config, pattern=FramePattern(window=34, stride=2)), "train")
    with pytest.raises(UsageError, match="augmented"):
        open_clips(replace(config, augment=AugmentConfig.presets["usual"]), "train")


def test_splits_share_no_episode(tmp_path: Path) -> None:
    config = _config(write_lerobot(tmp_path / "d", "v2.1"), train_episodes=":-1", val_episodes="-1:")
    train, val = open_clips(config, "train"), open_clips(config, "val")
    assert {clip.origin.episode for clip in train} == {0, 1}
    assert {clip.origin.episode for clip in val} == {2}
    with pytest.raises(UsageError, match="selects none of its 3 episodes"):
        open_clips(replace(config, train_episodes="3:"), "train")
    with pytest.raises(UsageError, match="no window of 60 frames in the 2 train episodes, which have 40 to 50 frames"):
        open_clips(replace(config, pattern=FramePattern(window=60)), "train")


@pytest.mark.parametrize("kind", ["lerobot", "1x"])
def test_cache_gives_what_the_video_gives(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "d"
    source = open_source(write_lerobot(root, "v3.0") if kind == "lerobot" else write_raw(root))
    cached = cached_frames(source, size=16, folder=tmp_path / "cache")
    assert cached.image_size == (16, 16)
    for episode in source.episodes:
        direct, quick = (s.read(episode.index, 0, episode.length) for s in (source, cached))
        assert direct.frames is not None
        assert quick.frames is not None
        assert_pixels_agree(quick.frames, resize(direct.frames, 16))
        assert torch.equal(quick.states, direct.states)


def test_cache_is_kept_resumed_and_separate_per_size(tmp_path: Path) -> None:
    source = open_source(write_lerobot(tmp_path / "d", "v2.1"))
    first = cached_frames(source, size=16, folder=tmp_path / "cache", episodes=[0])
    assert isinstance(first, CachedSource)
    with pytest.raises(DataError, match="cached frames"):
        first.read(2, 0, 4)
    stamps = {path: path.stat().st_mtime_ns for path in first.folder.glob("*.npy")}
    again = cached_frames(source, size=16, folder=tmp_path / "cache")
    assert isinstance(again, CachedSource)
    assert again.folder == first.folder
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert len(list(again.folder.glob("*.npy"))) == 3
    other = cached_frames(source, size=8, folder=tmp_path / "cache")
    assert isinstance(other, CachedSource)
    assert other.folder != first.folder


def test_changed_video_gets_another_cache(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (20,))
    old = cached_frames(open_source(root), size=16, folder=tmp_path / "cache")
    video = next(root.rglob("*.mp4"))
    video.write_bytes(video.read_bytes() + b"\0")
    new = cached_frames(open_source(root), size=16, folder=tmp_path / "cache")
    assert isinstance(old, CachedSource)
    assert isinstance(new, CachedSource)
    assert old.folder != new.folder


def test_cameras_whose_images_share_a_table_have_caches_of_their_own(tmp_path: Path) -> None:
    side = "observation.images.side"

    def columns(_episode: int, count: int, first: int) -> dict[str, pa.Array]:
        films = {CAMERA: film(count, first), side: film(count, 100 + first)}
        return {
            name: pa.array([{"bytes": encoded(image), "path": None} for image in frames])
            for name, frames in films.items()
        }

    image = {"dtype": "image", "shape": [32, 32, 3], "names": None}
    root = write(tmp_path / "d", features={CAMERA: image, side: image}, columns=columns, videos=False)
    for camera, first in ((CAMERA, 0), (side, 100)):
        cached = cached_frames(open_source(root, camera=camera), size=32, folder=tmp_path / "cache")
        assert numbers(cached.read(0, 3, 5).frames) == [first + 3, first + 4]
    one, other = (content_of(open_source(root, camera=camera), [0]) for camera in (CAMERA, side))
    assert one != other


def test_images_of_robots_that_stand_still_are_recordings_of_their_own(tmp_path: Path) -> None:
    def columns(_episode: int, count: int, first: int) -> dict[str, pa.Array]:
        images = [{"bytes": encoded(image), "path": None} for image in film(count, first)]
        return {CAMERA: pa.array(images), "observation.state": pa.array([[0.0, 0.0]] * count)}

    features = {CAMERA: {"dtype": "image", "shape": [32, 32, 3], "names": None}}
    root = write(tmp_path / "d", "v3.0", (36, 36), features=features, columns=columns, videos=False)
    assert len(recordings(open_source(root), (0, 1)).contents) == 2


def test_corrected_times_give_another_cache(tmp_path: Path) -> None:
    root = write(tmp_path / "d", "v3.0", (20, 20))
    video = next(root.rglob("*.mp4"))
    write_film(video, film(60))  # 20 frames too many: the metadata alone say where the second episode begins
    listed = next((root / "meta/episodes").rglob("*.parquet"))
    for begins in (20, 30):
        rows = parquet.read_table(listed).to_pydict()
        rows[f"videos/{CAMERA}/from_timestamp"][1] = begins / 30
        parquet.write_table(pa.table(rows), listed)
        cached = cached_frames(open_source(root), size=32, folder=tmp_path / "cache")
        assert numbers(cached.read(1, 0, 3).frames) == [begins, begins + 1, begins + 2]


def test_truncated_cache_is_named(tmp_path: Path) -> None:
    source = open_source(write_lerobot(tmp_path / "d", "v2.1", (20,)))
    cached = cached_frames(source, size=16, folder=tmp_path / "cache")
    path = next((tmp_path / "cache").rglob("*.npy"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cache again"):
        cached.read(0, 0, 4)


def test_damaged_video_leaves_no_cache_file(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (20,))
    source = open_source(root)
    next(root.rglob("*.mp4")).write_bytes(b"garbage" * 1000)
    with pytest.raises(DataError):
        cached_frames(source, size=16, folder=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_tokens_cannot_be_cached_as_frames(tmp_path: Path) -> None:
    source = open_source(write_tokens(tmp_path / "t", np.zeros(100, np.int32)))
    with pytest.raises(UsageError, match="only video"):
        cached_frames(source, size=16, folder=tmp_path / "cache")


def test_augmentation_depends_on_the_seed_alone(tmp_path: Path) -> None:
    clips = open_clips(_config(write_raw(tmp_path), augment=AugmentConfig.presets["usual"]), "train")
    plain, a, b, c = clips[3], clips[3, 1], clips[3, 1], clips[3, 2]
    assert plain.frames is not None
    assert a.frames is not None
    assert b.frames is not None
    assert c.frames is not None
    assert torch.equal(a.frames, b.frames)
    assert not torch.equal(a.frames, c.frames)
    assert not torch.equal(a.frames, plain.frames)
    assert a.frames.shape == plain.frames.shape == (8, 3, 16, 16)
    assert torch.equal(a.states, plain.states)


def test_augmentation_is_the_same_for_all_frames() -> None:
    still = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8).expand(5, -1, -1, -1).contiguous()
    changed = augment_frames(still, AugmentConfig(crop_scale=(0.5, 0.9), flip=1.0), size=24, seed=3)
    assert changed.shape == (5, 3, 24, 24)
    assert (changed == changed[:1]).all()


def test_neutral_augmentation_changes_nothing_and_a_flip_flips() -> None:
    frames = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    neutral = AugmentConfig()
    assert torch.equal(augment_frames(frames, neutral, size=16, seed=0), frames)
    assert torch.equal(augment_frames(frames, replace(neutral, flip=1.0), size=16, seed=0), frames.flip(-1))


def test_brightness_is_a_gain() -> None:
    frames = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    bright = AugmentConfig(brightness=0.5)
    values = {int(augment_frames(frames, bright, size=8, seed=s).float().mean()) for s in range(30)}
    assert 50 <= min(values) < 75
    assert 125 < max(values) <= 150


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (4, 1), (3, 2), (5, 4)])
def test_each_epoch_has_every_clip_once_and_ranks_are_disjoint(batch_size: int, world_size: int) -> None:
    num_clips, steps = 120, 120 // (batch_size * world_size)
    epochs = []
    for epoch in range(2):
        keys = [
            key
            for step in range(epoch * steps, (epoch + 1) * steps)
            for rank in range(world_size)
            for key in clip_keys(num_clips, seed=7, step=step, batch_size=batch_size, rank=rank, world_size=world_size)
        ]
        assert Counter(number for number, _ in keys) == Counter(range(num_clips))
        assert len({seed for _, seed in keys}) == num_clips
        epochs.append([number for number, _ in keys])
    assert epochs[0] != epochs[1]


def test_epochs_join_without_losing_a_clip() -> None:
    keys = [
        number
        for step in range(30)
        for number, _ in clip_keys(10, seed=1, step=step, batch_size=4, rank=0, world_size=1)
    ]
    assert all(sorted(keys[i : i + 10]) == list(range(10)) for i in range(0, 120, 10))


def test_order_does_not_depend_on_how_the_batch_is_split() -> None:
    one = clip_keys(50, seed=3, step=2, batch_size=8, rank=0, world_size=1)
    two = [key for rank in range(2) for key in clip_keys(50, seed=3, step=2, batch_size=4, rank=rank, world_size=2)]
    assert one == two


def _same(a: Batch, b: Batch) -> bool:
    assert a.frames is not None
    assert b.frames is not None
    return torch.equal(a.frames, b.frames) and torch.equal(a.states, b.states) and a.origins == b.origins


def test_resuming_at_any_step_gives_the_same_batches(tmp_path: Path) -> None:
    clips = open_clips(_config(write_raw(tmp_path), augment=AugmentConfig.presets["usual"]), "train")
    straight = list(Loader(clips, 3, seed=5).iterate(0, 8))
    resumed = list(Loader(clips, 3, seed=5).iterate(5, 8))
    assert all(_same(a, b) for a, b in zip(straight[5:], resumed, strict=True))
    assert _same(next(Loader(clips, 3, seed=5).iterate(6, 7)), straight[6])
    assert not _same(next(Loader(clips, 3, seed=6).iterate(6, 7)), straight[6])
    assert straight[0].frames is not None
    assert straight[0].frames.shape == (3, 8, 3, 16, 16)


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_raw(tmp_path / "d")
    clips = open_clips(_config(root, augment=AugmentConfig.presets["usual"], cache=tmp_path / "cache"), "train")
    half = partial(Loader, clips, 5, seed=5, rank=1, world_size=2)
    alone = list(half(pieces=2).iterate(2, 7))
    drawn = torch.get_rng_state()  # where dropout draws from: a resumed run starts its workers at another step
    helped = list(half(pieces=2, num_workers=2).iterate(2, 7))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [len(piece) for piece in alone] == [2, 3] * 5
    assert all(_same(a, b) for a, b in zip(alone, helped, strict=True))
    monkeypatch.setattr(loader_module, "IN_FLIGHT", 1)  # every clip comes by itself
    singly = list(half(num_workers=1).iterate(2, 4))
    assert all(_same(join(alone[2 * i : 2 * i + 2]), whole) for i, whole in enumerate(singly))


class _Counted(Clips):
    """Clips that leave a byte in a file for each that a worker reads."""

    log: Path

    def __getitem__(self, key: int | tuple[int, int]) -> Clip:  # pyright: ignore[reportIncompatibleMethodOverride]
        if multiprocessing.parent_process() is not None:
            with self.log.open("ab") as file:
                file.write(b"x")
        return super().__getitem__(key)


def test_no_more_is_read_than_the_piece_at_work_and_what_may_be_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_clips(_config(write_raw(tmp_path / "d")), "train")
    clips = _Counted(plain.source, plain.windows, pattern=plain.pattern, image_size=16)
    clips.log, size = tmp_path / "log", clip_bytes(plain[0])
    monkeypatch.setattr(loader_module, "IN_FLIGHT", 5 * size)  # one worker may have begun two parts of two clips
    pieces = Loader(clips, 16, seed=0, num_workers=1, pieces=4).iterate(0, 9)
    next(pieces)
    read = 0
    while read != (now := clips.log.stat().st_size):
        read = now
        time.sleep(0.5)
    assert read == 4 + 2 * 2, "the piece of four, and two parts of two"
    del pieces


def test_workers_read_ahead_a_bounded_number_of_bytes() -> None:
    video, latents, tokens = 16_500_000, 1_180_000, 24_000
    for size, piece, part in ((video, 128, 1), (latents, 128, 26), (tokens, 160, 160), (10**12, 4, 1)):
        assert clips_in_part(size, piece, workers=8) == part
        assert part == 1 or 2 * 8 * part * size <= IN_FLIGHT
