"""1X v2.0 folders: tokens and video, nested, flat and test; damage is named, nothing half-written is read."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from data_builders import (
    SMALL_GRID,
    TWO_JOINTS,
    flatten,
    moving_picture,
    ramp,
    token_ramp,
    write_raw,
    write_tokens,
)

from worldline.contract import FramePattern
from worldline.data.clips import Clips, source_windows
from worldline.files import mapped, mapped_npy
from worldline.formats.onex.write import (
    finish_shards,
    shard_done,
    write_raw_shard,
)
from worldline.formats.open import OpenOptions, open_source
from worldline.formats.states import ONEX_LAYOUT
from worldline.formats.video import encode
from worldline.schema import DataError, TokenGrid, UsageError

SEGMENTS = np.repeat(np.arange(4, dtype=np.int32), [60, 1, 80, 34])  # 175 frames: 10 blocks and 5 frames


@pytest.mark.parametrize("flat", [False, True])
def test_tokens_come_from_the_block_they_belong_to(tmp_path: Path, flat: bool) -> None:
    root = write_tokens(tmp_path / "t", SEGMENTS)
    source = open_source(flatten(root) if flat else root)
    assert (source.kind, source.fps, source.image_size, source.grid) == ("1x-tokens", 30.0, None, SMALL_GRID)
    assert [episode.length for episode in source.episodes] == [60, 1, 80, 34]
    assert [episode.block_offset for episode in source.episodes] == [0, 60 % 17, 61 % 17, 141 % 17]
    clip = source.read(2, 7, 41)  # frames 68..101 of the shard: blocks 4 and 5
    assert clip.tokens is not None
    assert clip.frames is None
    assert clip.tokens.dtype == torch.int64
    assert clip.tokens[:, 0, 0].tolist() == [4, 4, 4, 5, 5, 5]
    torch.testing.assert_close(clip.states, torch.from_numpy(ramp(34, 25, start=68)))


def test_a_data_set_may_have_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    np.save(tmp_path / "table.npy", np.zeros(3, np.float32))
    (tmp_path / "table.bin").write_bytes(bytes(12))
    for kind in (".npy", ".bin"):
        for number in range(600):
            os.link(tmp_path / f"table{kind}", tmp_path / f"{number}{kind}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 550, limits[1]))
    try:
        for number in range(600):
            mapped(tmp_path / f"{number}.bin", "float32", (3,))
            mapped_npy(tmp_path / f"{number}.npy", np.floating, (3,), what="numbers", fix="")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_tokens_off_the_grid_are_refused(tmp_path: Path) -> None:
    source = open_source(write_tokens(tmp_path, SEGMENTS))
    with pytest.raises(UsageError, match="blocks of 17"):
        source.read(0, 1, 35)
    with pytest.raises(IndexError, match="shard 0, segment 3"):
        source.read(3, 12, 46)


@pytest.mark.parametrize("flat", [False, True])
def test_raw_frames_and_states_belong_together(tmp_path: Path, flat: bool) -> None:
    root = write_raw(tmp_path / "r")
    source = open_source(flatten(root) if flat else root)
    assert (source.kind, source.image_size, source.grid, source.layout) == (
        "1x-raw",
        (32, 32),
        None,
        TWO_JOINTS,
    )
    assert [episode.length for episode in source.episodes] == [40, 1, 30]
    clip = source.read(2, 3, 8)  # frames 44..48 of the shard
    assert clip.frames is not None
    expected = torch.from_numpy(moving_picture(71)[44:49]).permute(0, 3, 1, 2)
    assert (clip.frames.float() - expected).abs().mean() < 1.5  # neighbouring frames differ by 3
    torch.testing.assert_close(clip.states, torch.from_numpy(ramp(5, 2, start=44)))


def test_files_as_1x_ships_them_need_none_of_our_metadata(tmp_path: Path) -> None:
    cosmos = TokenGrid(height=32, width=32, vocab_size=64_000)
    root = flatten(write_tokens(tmp_path / "val_v2.0", np.zeros(40, np.int32), cosmos))
    (root / "metadata.json").write_text('{"num_shards": 1, "query": null, "hz": 30, "num_images": 40}')
    source = open_source(root)
    assert source.layout == ONEX_LAYOUT
    assert source.grid == cosmos
    tokens = source.read(0, 0, 34).tokens
    assert tokens is not None
    assert tokens.shape == (6, 32, 32)


def test_test_samples_hold_context_tokens_and_all_states(tmp_path: Path) -> None:
    for name in ("videos", "robot_states"):
        (tmp_path / name).mkdir()
    for i in range(3):
        token_ramp(8, TokenGrid(height=32, width=32, vocab_size=64_000))[i].tofile(tmp_path / f"videos/video_{i}.bin")
        ramp(64, 25, start=100 * i).tofile(tmp_path / f"robot_states/states_{i}.bin")
    source = open_source(tmp_path)
    assert source.kind == "1x-test"
    assert [episode.length for episode in source.episodes] == [64, 64, 64]
    clip = source.read(2, 0, 34)
    assert clip.tokens is not None
    assert clip.tokens.shape == (3, 32, 32)
    assert (clip.tokens == 2).all()
    torch.testing.assert_close(clip.states, torch.from_numpy(ramp(34, 25, start=200)))


def write_test_videos(root: Path, numbers: tuple[int, ...] = (0, 1, 2), frames: int = 17, rows: int = 77) -> Path:
    """Raw test samples: the frames of the context, and the states of what follows, too."""
    for name in ("videos", "robot_states"):
        (root / name).mkdir(parents=True)
    for i in numbers:
        encode(root / f"videos/video_{i}.mp4", moving_picture(frames, shift=float(i)), fps=30.0)
        ramp(rows, 25, start=100 * i).tofile(root / f"robot_states/states_{i}.bin")
    return root


@pytest.mark.parametrize("flat", [False, True])
def test_raw_test_samples_hold_context_frames_and_all_states(flat: bool, tmp_path: Path) -> None:
    root = write_test_videos(tmp_path)
    source = open_source(flatten(root) if flat else root)
    assert (source.kind, source.image_size, source.grid) == ("1x-test", (32, 32), None)
    assert [episode.length for episode in source.episodes] == [77, 77, 77]
    index = source_windows(source, window=77, stride=8)
    assert index[:, 0].tolist() == [0, 1, 2]
    clip = source.read(2, 0, 77)
    assert clip.frames is not None
    assert clip.frames.shape == (17, 3, 32, 32)
    assert (clip.frames.int() - torch.from_numpy(moving_picture(17, shift=2.0)).permute(0, 3, 1, 2)).abs().max() < 20
    torch.testing.assert_close(clip.states, torch.from_numpy(ramp(77, 25, start=200)))
    clips = Clips(source, index, pattern=FramePattern.report_77())
    with pytest.raises(UsageError, match="can be forecast"):
        clips[0]


def test_test_samples_keep_the_numbers_of_their_files(tmp_path: Path) -> None:
    source = open_source(write_test_videos(tmp_path / "sound", (3, 11)))
    assert [episode.name for episode in source.episodes] == ["sample 3", "sample 11"]
    (write_test_videos(tmp_path / "cut", (3, 11)) / "robot_states/states_11.bin").unlink()
    with pytest.raises(DataError, match=r"missing 1: sample 11 \(states_11\.bin\)"):
        open_source(tmp_path / "cut")
    with pytest.raises(DataError, match=r"states_3\.bin.*at least the 17.*16 rows"):
        open_source(write_test_videos(tmp_path / "short", (3,), rows=16))


def test_a_shard_of_video_without_its_segments_is_no_test_set(tmp_path: Path) -> None:
    root = flatten(write_raw(tmp_path))
    (root / "segment_idx_0.bin").unlink()
    with pytest.raises(DataError, match="segment_idx_0"):
        open_source(root)


def test_a_last_partial_block_may_be_absent_too(tmp_path: Path) -> None:
    root = write_tokens(tmp_path, SEGMENTS)
    tokens = root / "videos/video_0.bin"
    tokens.write_bytes(tokens.read_bytes()[: 10 * 3 * 4 * 4 * 4])
    assert open_source(root).read(3, 12, 29).tokens is not None


def _write_and_damage(root: Path, damage: str) -> Path:
    """Write tokens and damage one file; returns that file."""
    write_tokens(root, SEGMENTS)
    tokens, states = root / "videos/video_0.bin", root / "robot_states/states_0.bin"
    segments, metadata = root / "segment_indices/segment_idx_0.bin", root / "metadata.json"
    match damage:
        case "tokens cut":
            tokens.write_bytes(tokens.read_bytes()[:-7])
            return tokens
        case "tokens a block short":
            tokens.write_bytes(tokens.read_bytes()[: 9 * 192])
            return tokens
        case "states cut":
            states.write_bytes(states.read_bytes()[:-1])
            return states
        case "states of another robot":
            ramp(len(SEGMENTS), 26).tofile(states)
            return states
        case "segments cut":
            segments.write_bytes(segments.read_bytes()[:-4])
            return segments
        case "metadata garbage":
            metadata.write_text("{not json")
            return metadata
        case "metadata without rate":
            metadata.write_text('{"num_shards": 1}')
            return metadata
        case "metadata absent":
            metadata.unlink()
            return metadata
        case "grid impossible":
            content = json.loads(metadata.read_text()) | {"block": 9}
            metadata.write_text(json.dumps(content))
            return metadata
        case _:
            raise AssertionError(damage)


@pytest.mark.parametrize(
    "damage",
    [
        "tokens cut",
        "tokens a block short",
        "states cut",
        "states of another robot",
        "segments cut",
        "metadata garbage",
        "metadata without rate",
        "metadata absent",
        "grid impossible",
    ],
)
def test_opening_names_the_damaged_file(tmp_path: Path, damage: str) -> None:
    path = _write_and_damage(tmp_path, damage)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert caught.value.fix


def test_states_of_another_dimension_say_which(tmp_path: Path) -> None:
    _write_and_damage(tmp_path, "states of another robot")
    with pytest.raises(DataError, match="would be 26 columns"):
        open_source(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    root = write_tokens(tmp_path, SEGMENTS)
    states = np.fromfile(root / "robot_states/states_0.bin", np.float32).reshape(-1, 25)
    states[70, 20] = value
    states.tofile(root / "robot_states/states_0.bin")
    source = open_source(root)
    source.read(0, 0, 34)
    with pytest.raises(DataError, match="row 9, NECK_PITCH, of shard 0, segment 2"):
        source.read(2, 7, 41)


@pytest.mark.parametrize("wrong", [-1, 64])
def test_token_ids_outside_the_vocabulary_are_named(tmp_path: Path, wrong: int) -> None:
    root = write_tokens(tmp_path, SEGMENTS)
    tokens = np.fromfile(root / "videos/video_0.bin", np.int32).reshape(-1, 3, 4, 4)
    tokens[5, 1, 2, 3] = wrong
    tokens.tofile(root / "videos/video_0.bin")
    with pytest.raises(DataError, match=r"token ids in 0\.\.63.*in block 5"):
        open_source(root).read(2, 7, 41)


def test_missing_shards_are_counted_named_and_may_be_left_out(tmp_path: Path) -> None:
    root = write_tokens(tmp_path, SEGMENTS)
    metadata = json.loads((root / "metadata.json").read_text()) | {"num_shards": 3}
    (root / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=r"missing 2: shard 1 .*video_1\.bin"):
        open_source(root)
    source = open_source(root, allow_missing=True)
    assert len(source.episodes) == 4
    assert len(source.left_out) == 2


def test_unknown_folders_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"meta/info\.json \(LeRobot\).*metadata\.json"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        OpenOptions().open(tmp_path / "absent")
    write_tokens(tmp_path / "train_v2.0", SEGMENTS)
    with pytest.raises(DataError, match=r"1: train_v2\.0 inside"):
        open_source(tmp_path)


def test_a_folder_being_written_is_refused_until_it_is_finished(tmp_path: Path) -> None:
    states, segments = ramp(20, 2), np.zeros(20, np.int32)
    for shard in range(2):
        assert not shard_done(tmp_path, shard)
        with pytest.raises(UsageError, match="not written"):
            finish_shards(tmp_path, num_shards=2, num_images=40, fps=30.0, layout=TWO_JOINTS, provenance={})
        write_raw_shard(tmp_path, shard, frames=moving_picture(20), states=states, segments=segments, fps=30.0)
        assert shard_done(tmp_path, shard)
        with pytest.raises(DataError, match="written last"):
            open_source(tmp_path)
    finish_shards(tmp_path, num_shards=2, num_images=40, fps=30.0, layout=TWO_JOINTS, provenance={"from": "a test"})
    source = open_source(tmp_path)
    assert [episode.name for episode in source.episodes] == ["shard 0, segment 0", "shard 1, segment 0"]
    assert json.loads((tmp_path / "metadata.json").read_text())["provenance"] == {"from": "a test"}


def test_one_camera_and_states_only(tmp_path: Path) -> None:
    root = write_tokens(tmp_path, SEGMENTS)
    with pytest.raises(UsageError):
        open_source(root, conditioning="action")
    with pytest.raises(UsageError):
        open_source(root, camera="head")


def test_real_raw_states_have_one_frame_segments(tmp_path: Path) -> None:
    fragment = Path(__file__).parents[2] / "shared/data/onex_v2_fragments/raw_states_sample"
    if not fragment.exists():
        pytest.skip(f"no {fragment}")
    for path in fragment.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    cosmos = TokenGrid(height=32, width=32, vocab_size=64_000)
    token_ramp(177, cosmos).tofile(tmp_path / "video_0.bin")  # 3000 frames; the fragment has no video
    source = open_source(tmp_path)
    assert len(source.episodes) == 16
    assert sum(episode.length == 1 for episode in source.episodes) == 8
    assert sum(len(source.read_states(e.index, 0, e.length)) for e in source.episodes) == 3_000
