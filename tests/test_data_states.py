"""State layouts and statistics: known kinds, known numbers, exact inverses."""

from pathlib import Path

import numpy as np
import pytest
from data_builders import SMALL_GRID, write_tokens
from pydantic import TypeAdapter

from worldline.formats import states as states_module
from worldline.formats.onex.write import finish_shards, token_shard
from worldline.formats.open import open_source
from worldline.formats.states import ONEX_LAYOUT, StateStats, compute_stats, guess_kind
from worldline.schema import DataError


def test_onex_layout_is_the_one_of_the_data_card() -> None:
    assert ONEX_LAYOUT.dim == len(set(ONEX_LAYOUT.names)) == 25
    assert ONEX_LAYOUT.kinds == ("angle",) * 21 + ("binary",) * 2 + ("velocity",) * 2
    assert ONEX_LAYOUT.names[6] == "LEFT_SHOULDER_PITCH"
    assert ONEX_LAYOUT.names[19] == "RIGHT_WRIST_ROLL"
    assert ONEX_LAYOUT.names[20] == "NECK_PITCH"


@pytest.mark.parametrize(
    ("name", "low", "high", "kind"),
    [
        ("kLeftElbow", -1.0, 1.5, "angle"),
        ("kLeftHandThumbBend", 0.0, 1.0, "binary"),
        ("left_gripper", 0.0, 1.0, "binary"),
        ("left_gripper", 0.0, 80.0, "other"),
        ("left_finger_joint", -0.3, 1.9, "angle"),
        ("left_wheel_vel", -1.0, 1.0, "velocity"),
        ("baseAngVelocity", -1.0, 1.0, "velocity"),
        ("level", 0.0, 1.0, "angle"),
        ("delta_x_ee", -0.1, 0.1, "other"),
        ("shoulder_pan.pos", -97.0, 103.0, "other"),
        ("state.3", -3.0, 3.0, "angle"),
    ],
)
def test_kinds_follow_from_name_then_range(name: str, low: float, high: float, kind: str) -> None:
    assert guess_kind(name, low, high) == kind


def _random_states(root: Path, segments: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(len(segments), 25)) * np.arange(1, 26) + 100).astype(np.float32)
    states[:, 4] = 0.7
    tokens = np.zeros((-(-len(segments) // 17), 3, 4, 4), np.int32)
    with token_shard(root, 0, states=states, segments=segments) as put:
        put(0, tokens)
    finish_shards(
        root,
        num_shards=1,
        num_images=len(segments),
        fps=30.0,
        layout=ONEX_LAYOUT,
        grid=SMALL_GRID,
        provenance={},
    )
    return states


def test_statistics_equal_those_of_the_whole_table(tmp_path: Path) -> None:
    states = _random_states(tmp_path, np.repeat(np.arange(50, dtype=np.int32), 37)).astype(np.float64)
    stats = compute_stats(open_source(tmp_path))
    assert stats.count == len(states)
    np.testing.assert_allclose(stats.mean, states.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(stats.std, states.std(axis=0), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(stats.minimum, states.min(axis=0))
    np.testing.assert_allclose(stats.maximum, states.max(axis=0))
    np.testing.assert_allclose([stats.q01, stats.q50, stats.q99], np.quantile(states, (0.01, 0.5, 0.99), axis=0))
    assert stats.constant == (4,)


def test_quantiles_of_long_sources_come_from_evenly_spaced_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = _random_states(tmp_path, np.repeat(np.arange(50, dtype=np.int32), 37))
    monkeypatch.setattr(states_module, "_SAMPLE_ROWS", 100)
    stats = compute_stats(open_source(tmp_path))
    np.testing.assert_allclose(stats.q50, np.median(states[::19], axis=0), rtol=1e-6)


def test_statistics_round_trip_through_json(tmp_path: Path) -> None:
    stats = compute_stats(open_source(write_tokens(tmp_path, np.zeros(100, np.int32))))
    adapter = TypeAdapter(StateStats)
    assert adapter.validate_json(adapter.dump_json(stats)) == stats


def test_statistics_never_touch_tokens_or_video(tmp_path: Path) -> None:
    root = write_tokens(tmp_path, np.zeros(100, np.int32))
    source = open_source(root)
    (root / "videos/video_0.bin").unlink()
    assert compute_stats(source).count == 100


def test_statistics_of_nan_are_refused(tmp_path: Path) -> None:
    root = write_tokens(tmp_path, np.zeros(100, np.int32))
    states = np.fromfile(root / "robot_states/states_0.bin", np.float32)
    states[30 * 25] = np.nan
    states.tofile(root / "robot_states/states_0.bin")
    with pytest.raises(DataError, match="row 30, HIP_YAW"):
        compute_stats(open_source(root))
