"""LeRobot v2.1 and v3.0, read directly: the right frames with the right rows, and every damage named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_builders import CAMERA, moving_picture, ramp, write_lerobot
from pyarrow import parquet

from worldline.formats.open import open_source
from worldline.schema import DataError, UsageError

SHARED = Path(__file__).parents[2] / "shared/data"
VERSIONS = ("v2.1", "v3.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_frames_and_rows_belong_to_the_same_moment(tmp_path: Path, version: str) -> None:
    source = open_source(write_lerobot(tmp_path / "d", version))
    assert source.kind == f"lerobot-{version}"
    assert [episode.length for episode in source.episodes] == [40, 50, 36]
    assert (source.fps, source.image_size, source.grid) == (30.0, (32, 32), None)
    for episode in range(3):
        clip = source.read(episode, 20, 36)
        assert clip.frames is not None
        expected = torch.from_numpy(moving_picture(36, shift=float(episode))[20:]).permute(0, 3, 1, 2)
        assert (clip.frames.float() - expected).abs().mean() < 1.5  # neighbouring frames differ by 3
        torch.testing.assert_close(clip.states, torch.from_numpy(ramp(16, 2, start=100 * episode + 20)))


@pytest.mark.parametrize("version", VERSIONS)
def test_conditioning_chooses_state_action_or_both(tmp_path: Path, version: str) -> None:
    root = write_lerobot(tmp_path / "d", version, names=["elbow", "gripper"])
    states = open_source(root).read_states(1, 0, 5)
    actions = open_source(root, conditioning="action").read_states(1, 0, 5)
    both = open_source(root, conditioning="state+action")
    np.testing.assert_array_equal(actions, states + 0.5)
    np.testing.assert_array_equal(both.read_states(1, 0, 5), np.concatenate([states, actions], axis=1))
    assert both.layout.names == ("state.elbow", "state.gripper", "action.elbow", "action.gripper")


def test_a_column_that_pairs_rows_can_be_a_state_too(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (10,))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["frame_index"] = {"dtype": "int64", "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    source = open_source(root, state_keys=("frame_index", "observation.state"))
    np.testing.assert_array_equal(source.read_states(0, 0, 10)[:, 0], np.arange(10))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["elbow", "gripper"], ("elbow", "gripper")),
        ([["elbow", "gripper"]], ("elbow", "gripper")),
        ({"motors": ["elbow", "gripper"]}, ("elbow", "gripper")),
        ({"gripper": 1, "elbow": 0}, ("elbow", "gripper")),
        (None, ("state.0", "state.1")),
        (["state"], ("state.0", "state.1")),
    ],
)
def test_state_names_in_every_form(tmp_path: Path, names: object, expected: tuple[str, str]) -> None:
    assert open_source(write_lerobot(tmp_path / "d", "v2.1", (4,), names)).layout.names == expected


def test_kinds_are_guessed_and_can_be_overridden(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (4,), ["elbow", "wheel_velocity"])
    assert open_source(root).layout.kinds == ("angle", "velocity")
    assert open_source(root, state_kinds={"elbow": "other"}).layout.kinds == ("other", "velocity")
    with pytest.raises(UsageError, match="knee"):
        open_source(root, state_kinds={"knee": "angle"})


def test_camera_is_chosen_by_key_or_last_part(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (4,))
    assert open_source(root, camera=CAMERA).image_size == (32, 32)
    assert open_source(root, camera="head").image_size == (32, 32)
    with pytest.raises(UsageError, match=CAMERA):
        open_source(root, camera="wrist")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"] = info["features"][CAMERA]
    (root / "meta/info.json").write_text(json.dumps(info))
    folder = root / "videos/chunk-000"
    shutil.copytree(folder / CAMERA, folder / "observation.images.wrist")
    with pytest.raises(UsageError, match="several cameras"):
        open_source(root)


def test_missing_episodes_are_counted_named_and_may_be_left_out(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1")
    next(root.rglob("episode_000001.mp4")).unlink()
    with pytest.raises(DataError, match=r"missing 1: episode 1 \(episode_000001\.mp4\)"):
        open_source(root)
    source = open_source(root, allow_missing=True)
    assert [episode.name for episode in source.episodes] == ["episode 0", "episode 2"]
    torch.testing.assert_close(source.read(1, 0, 4).states, torch.from_numpy(ramp(4, 2, start=200)))
    assert source.left_out == ("episode 1 (episode_000001.mp4)",)


@pytest.mark.parametrize("version", VERSIONS)
def test_missing_metadata_is_named(tmp_path: Path, version: str) -> None:
    root = write_lerobot(tmp_path / "d", version)
    listing = next(path for path in root.glob("meta/**/*") if path.suffix in (".jsonl", ".parquet"))
    listing.unlink()
    with pytest.raises(DataError, match="meta/episodes"):
        open_source(root)


def _damaged_table(kind: str, table: pa.Table) -> pa.Table | None:
    states = table["observation.state"].to_pylist()
    match kind:
        case "rows missing":
            return table.slice(0, 30)
        case "another width":
            states = [[*row, 0.0] for row in states]
        case "uneven rows":
            states = [states[0][:1], [*states[1], 0.0], *states[2:]]
        case "no number":
            states[12][1] = float("nan")
        case "no column":
            return table.drop_columns(["observation.state"])
        case _:
            return None
    column = pa.array(states, pa.list_(pa.float32()))
    return table.set_column(table.column_names.index("observation.state"), "observation.state", column)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("rows missing", "expected 40 rows of episode 0.*found 30"),
        ("another width", "expected observation.state of 2 values per row"),
        (
            "uneven rows",
            r"expected 2 finite numbers in every row, found nan in row 0.*\(4 such values\)",
        ),
        ("no number", r"found nan in row 12, state\.1"),
        ("no column", "expected columns"),
        ("garbage", "expected a parquet file"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, kind: str, found: str) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (40,))
    path = next(root.rglob("episode_000000.parquet"))
    table = _damaged_table(kind, parquet.read_table(path))
    if table is None:
        path.write_bytes(b"garbage" * 100)
    else:
        parquet.write_table(table, path)
    with pytest.raises(DataError, match=found) as caught:
        open_source(root).read_states(0, 0, 20)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"codebase_version": "v1.6"}, "v1.6"),
        ({"fps": None}, "fps"),
        ({"features": {"observation.state": {"dtype": "float32", "shape": [2]}}}, "camera"),
    ],
)
def test_unusable_info_is_named(tmp_path: Path, change: dict[str, object], found: str) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (4,))
    info = json.loads((root / "meta/info.json").read_text()) | change
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=found):
        open_source(root)


def test_garbage_video_is_named(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "d", "v2.1", (40,))
    path = next(root.rglob("*.mp4"))
    path.write_bytes(b"garbage" * 1000)
    source = open_source(root)
    assert source.read_states(0, 0, 40).shape == (40, 2)
    with pytest.raises(DataError, match="a video"):
        source.read(0, 0, 4)


def test_real_g1_recording() -> None:
    if not (SHARED / "g1_pick_bottle_256").exists():
        pytest.skip(f"no g1_pick_bottle_256 in {SHARED}")
    source = open_source(SHARED / "g1_pick_bottle_256")
    assert (len(source.episodes), sum(e.length for e in source.episodes)) == (80, 27_769)
    assert source.layout.kinds == ("angle",) * 14 + ("binary",) * 12
    clip = source.read(79, 10, 27)
    assert clip.frames is not None
    assert clip.frames.shape == (17, 3, 256, 256)
    assert clip.states.shape == (17, 26)


def test_real_broken_g1_recording_counts_what_is_missing() -> None:
    if not (SHARED / "g1_pick_bottle_original").exists():
        pytest.skip(f"no g1_pick_bottle_original in {SHARED}")
    with pytest.raises(DataError, match="missing 98"):
        open_source(SHARED / "g1_pick_bottle_original")
    source = open_source(SHARED / "g1_pick_bottle_original", allow_missing=True)
    assert (len(source.episodes), len(source.left_out)) == (2, 98)
    frames = source.read(0, 100, 102).frames
    assert frames is not None
    assert frames.shape == (2, 3, 480, 640)
