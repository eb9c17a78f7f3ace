"""`inspect` reports everything that is wrong, and the counts of what is right."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_builders import moving_picture, write_lerobot, write_raw, write_tokens
from pyarrow import parquet
from pydantic import TypeAdapter

from worldline.data.info import Info, inspect
from worldline.formats.video import encode
from worldline.schema import DataError

SHARED = Path(__file__).parents[2] / "shared/data"


def _found(info: Info, *parts: str) -> bool:
    texts = [f"{one.kind}: {example}. {one.remedy}" for one in info.problems for example in one.examples]
    return any(all(part in text for part in parts) for text in texts)


@pytest.mark.parametrize("thorough", [False, True])
def test_sound_data_have_no_problems(tmp_path: Path, thorough: bool) -> None:
    raw = inspect(write_raw(tmp_path / "raw"), thorough=thorough)
    assert raw.problems == ()
    assert (raw.kind, raw.episodes, raw.frames, raw.fps, raw.state_dim) == ("1x-raw", 3, 71, 30.0, 2)
    assert (raw.image_size, raw.samples, raw.windows_77) == ((32, 32), 1, 0)
    assert raw.statistics is not None
    assert raw.statistics.count == 71
    lerobot = inspect(write_lerobot(tmp_path / "l", "v3.0", (90, 40, 50)), thorough=thorough)
    assert lerobot.problems == ()
    assert (lerobot.episodes, lerobot.frames, lerobot.samples, lerobot.windows_77) == (3, 180, 4, 2)
    tokens = inspect(write_tokens(tmp_path / "t", np.zeros(175, np.int32)), thorough=thorough)
    assert tokens.problems == ()
    assert tokens.grid is not None
    assert (tokens.samples, tokens.windows_77, tokens.image_size) == (5, 0, None)


def test_the_answer_is_json_with_the_promised_keys(tmp_path: Path) -> None:
    content = json.loads(TypeAdapter(Info).dump_json(inspect(write_raw(tmp_path))))
    assert {"kind", "episodes", "frames", "fps", "state_dim", "state_names"} <= set(content)
    assert {"image_size", "samples", "windows_77", "problems"} <= set(content)
    assert set(content) == set(asdict(inspect(tmp_path)))


def test_every_lerobot_problem_is_reported(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (40, 50, 36, 30, 30, 30))
    video, table = (sorted(root.rglob(f"*.{suffix}")) for suffix in ("mp4", "parquet"))
    video[0].write_bytes(b"garbage" * 1000)
    encode(video[1], moving_picture(44), fps=30.0)  # of 50
    encode(video[2], moving_picture(36, 48), fps=25.0)  # of 32 px and 30 Hz
    video[3].unlink()
    rows = parquet.read_table(table[4])
    states = rows["observation.state"].to_pylist()
    states[7][0] = float("inf")
    column = pa.array(states, pa.list_(pa.float32()))
    parquet.write_table(rows.set_column(0, "observation.state", column), table[4])
    parquet.write_table(parquet.read_table(table[5]).slice(0, 29), table[5])
    info = inspect(root)
    assert _found(info, "missing_files: ", "missing episode 3", "episode_000003.mp4")
    assert _found(info, "episode_000000.mp4", "expected a video")
    assert _found(info, "episode_000001.mp4", "expected 50 frames", "found 44")
    assert _found(info, "rate: ", "episode_000002.mp4", "at 30 rows/s", "runs at 25 frames/s")
    assert _found(info, "episode_000002.mp4", "frames of 32x32", "found 48x48")
    assert _found(info, "episode_000004.parquet", "found inf in row 7")
    assert _found(info, "episode_000005.parquet", "expected 30 rows", "found 29")
    assert info.statistics is not None
    assert info.statistics.count == 40 + 50 + 36


def test_damage_inside_a_video_needs_a_thorough_look(tmp_path: Path) -> None:
    root = write_raw(tmp_path, (120,), size=64)
    path = root / "videos/video_0.mp4"
    encode(path, np.random.default_rng(0).integers(0, 256, (120, 64, 64, 3), np.uint8), fps=30.0)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(b ^ 0x5A for b in data[middle : middle + 4000])
    path.write_bytes(data)
    assert inspect(root).problems == ()
    assert _found(inspect(root, thorough=True), "video_0.mp4", "to decode")


def test_every_token_problem_is_reported(tmp_path: Path) -> None:
    root = write_tokens(tmp_path, np.repeat(np.arange(2, dtype=np.int32), 85))
    tokens = np.fromfile(root / "videos/video_0.bin", np.int32)
    tokens[[0, 400]] = 64, -3
    tokens.tofile(root / "videos/video_0.bin")
    states = np.fromfile(root / "robot_states/states_0.bin", np.float32).reshape(-1, 25)
    states[3, 0], states[:, 9] = np.nan, 0.25
    states.tofile(root / "robot_states/states_0.bin")
    metadata = json.loads((root / "metadata.json").read_text()) | {"num_shards": 2, "num_images": 170}
    (root / "metadata.json").write_text(json.dumps(metadata))
    info = inspect(root)
    assert _found(info, "missing shard 1")
    assert _found(info, "video_0.bin", "token ids", "2 such blocks")
    assert _found(info, "states_0.bin", "nan in row 3, HIP_YAW")
    assert info.notes == ("1 state dimensions never change: LEFT_ELBOW_PITCH",)
    assert len(info.problems) == 3


def test_several_faulty_files_of_one_shard_are_all_reported(tmp_path: Path) -> None:
    root = write_tokens(tmp_path, np.zeros(100, np.int32))
    for name in ("videos/video_0.bin", "robot_states/states_0.bin", "segment_indices/segment_idx_0.bin"):
        (root / name).write_bytes((root / name).read_bytes()[:-3])
    (root / "metadata.json").unlink()
    info = inspect(root)
    assert info.episodes == 0
    for name in ("metadata.json", "video_0.bin", "states_0.bin", "segment_idx_0.bin"):
        assert _found(info, name)


def test_wrong_totals_are_reported(tmp_path: Path) -> None:
    root = write_raw(tmp_path)
    metadata = json.loads((root / "metadata.json").read_text()) | {"num_images": 99}
    (root / "metadata.json").write_text(json.dumps(metadata))
    assert _found(inspect(root), "num_images 99", "found 71")


def test_video_longer_or_shorter_than_its_states_is_reported(tmp_path: Path) -> None:
    root = write_raw(tmp_path)
    encode(root / "videos/video_0.mp4", moving_picture(70), fps=30.0)
    assert _found(inspect(root), "video_0.mp4", "expected 71 frames", "found 70")


def test_unreadable_metadata_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (4,))
    (root / "meta/info.json").write_text("{broken")
    info = inspect(root)
    assert info.episodes == 0
    assert _found(info, "info.json", "expected JSON")
    with pytest.raises(DataError, match=r"meta/info\.json \(LeRobot\)"):
        inspect(tmp_path)


def test_real_broken_recording_names_the_98_missing_episodes() -> None:
    if not (SHARED / "g1_pick_bottle_original").exists():
        pytest.skip(f"no g1_pick_bottle_original in {SHARED}")
    info = inspect(SHARED / "g1_pick_bottle_original")
    assert (info.episodes, len(info.left_out)) == (2, 98)
    missing = next(problem for problem in info.problems if problem.kind == "missing_files")
    assert missing.count == 98  # one line, not 98
    assert _found(info, "missing episode 0 ")
