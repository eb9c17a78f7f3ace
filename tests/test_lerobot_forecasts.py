"""Imagined episodes as LeRobot data sets: which frames are real, what is not known, and nothing of it trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_rules import faults
from pyarrow import parquet

import worldline
from worldline.data.splits import recording_of, repeated
from worldline.forecasting.forecaster import clip_seeds
from worldline.forecasting.recorded import Imagined, write_session
from worldline.formats.lerobot import write
from worldline.formats.open import open_source
from worldline.schema import UsageError, stack


def _rows(root: Path, name: str) -> list[list[float]]:
    """A column, episode by episode."""
    tables = [parquet.read_table(path) for path in sorted((root / "data").rglob("*.parquet"))]
    found: dict[int, list[float]] = {}
    for table in tables:
        for episode, value in zip(table["episode_index"].to_pylist(), table[name].to_pylist(), strict=True):
            found.setdefault(episode, []).append(value)
    return list(found.values())


def _psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (one.float() - other.float()).square().mean()))


def test_a_world_over_latents_makes_an_episode_of_each_future_at_its_own_pace(tmp_path: Path) -> None:
    options = {"num_samples": 2, "steps": 1, "device": "cpu"}
    out = worldline.forecast("sampling-tiny", format="lerobot-v2.1", out=tmp_path / "d", clips=(5,), seed=3, **options)
    assert out == [tmp_path / "d"]
    assert faults(tmp_path / "d") == []
    after, source = open_source(tmp_path / "d"), worldline.open_data("twin-mini-val")
    assert (after.fps, [one.length for one in after.episodes]) == (7.5, [20, 20])  # every fourth frame
    said = [one.provenance for one in after.episodes]
    assert [(one["sample"], one["seed"], one["run"]) for one in said] == [
        (0, 3, "sampling_tiny"),
        (1, 3, "sampling_tiny"),
    ]
    start, times = int(said[0]["start"]), np.arange(0, 77, 4)
    episode = next(one.index for one in source.episodes if one.name == said[0]["episode"])
    batch = stack([source.read(episode, start, start + 77)])
    forecaster = worldline.load("sampling-tiny", **options).forecaster
    made = forecaster.forecast_clips(batch, seeds=clip_seeds(3, batch.origins))
    spread = made.spread.mean(dim=(2, 3))[0]
    for number in range(2):
        clip = after.read(number, 0, 20)
        assert torch.equal(clip.states, batch.states[0, times])
        assert clip.frames is not None
        assert batch.frames is not None
        assert _psnr(clip.frames[:5], batch.frames[0, :17:4]) > 36
        assert _psnr(clip.frames[5:], made.video[0, number]) > 36
        assert _rows(tmp_path / "d", write.REAL)[number] == [True] * 5 + [False] * 15
        assert _rows(tmp_path / "d", write.SOURCE_FRAME)[number] == (start + times).tolist()
        np.testing.assert_allclose(
            _rows(tmp_path / "d", write.UNCERTAINTY)[number], [0.0] * 5 + spread.tolist(), atol=0.05
        )
    assert spread.min() > 0
    # A future is known to be of its recording: who validates on that may not train on this.
    assert {recording_of(after, i) for i in range(2)} == {recording_of(source, episode)}
    assert list(repeated(after, range(2))) == []


def test_a_world_over_tokens_is_added_once_and_with_one_sample_nothing_is_known_of_its_spread(tmp_path: Path) -> None:
    out = tmp_path / "d"
    worldline.forecast("compression-tiny", format="lerobot-v3.0", out=out, clips=(0,), device="cpu", task="wave")
    worldline.forecast("compression-tiny", format="lerobot-v3.0", out=out, clips=(0, 9), device="cpu", append=True)
    after = open_source(out)
    assert [one.task for one in after.episodes] == ["wave", "unknown"]
    assert [one.length for one in after.episodes] == [34, 34]
    assert _rows(out, write.UNCERTAINTY) == [[0.0] * 17 + [-1.0] * 17] * 2
    assert faults(out) == []
    options = {"steps": 1, "device": "cpu", "append": True}
    with pytest.raises(UsageError, match=r"its fps is 30.0, here it is 7.5"):
        worldline.forecast("sampling-tiny", format="lerobot-v3.0", out=out, clips=(0,), **options)
    with pytest.raises(UsageError, match=r"--append would change nothing here; give --format lerobot-v3.0 too"):
        worldline.forecast("compression-tiny", out=out, append=True)


@pytest.mark.slow
def test_a_horizon_and_a_session_of_as_many_steps_are_the_same_episode(tmp_path: Path) -> None:
    worldline.forecast(
        "compression-tiny", format="lerobot-v3.0", out=tmp_path / "d", clips=(0,), device="cpu", horizon="1s"
    )
    said = open_source(tmp_path / "d").episodes[0].provenance
    source, start = worldline.open_data("twin-mini-val"), int(said["start"])
    assert said["episode"] == source.episodes[0].name
    batch = stack([source.read(0, start, start + 51)])
    loaded = worldline.load("compression-tiny", device="cpu")
    session = loaded.forecaster.start_clips(batch, seed=clip_seeds(0, batch.origins))
    made = [session.advance(batch.states[:, begin : begin + 17]) for begin in (17, 34)]
    imagined = Imagined.of(loaded.forecaster, batch, made)
    assert imagined.times == tuple(range(51))
    layout = source.layout
    driven = {"fps": 30.0, "layout": layout, "version": "v2.1"}
    of = recording_of(source, 0)
    write_session(tmp_path / "s", imagined, name="a drive", task="wave", recordings=[of], starts=[start], **driven)
    assert faults(tmp_path / "s") == []
    one, other = open_source(tmp_path / "d"), open_source(tmp_path / "s")
    assert (one.episodes[0].length, other.episodes[0].length) == (17 + 30, 51)
    assert torch.equal(one.read(0, 0, 47).states, other.read(0, 0, 47).states)
    seen = [source.read(0, 0, 47).frames for source in (one, other)]
    assert seen[0] is not None
    assert seen[1] is not None
    assert _psnr(*seen) > 40
    assert json.loads((tmp_path / "s/meta/worldline.json").read_text())["tasks"] == ["wave"]
    assert other.episodes[0].provenance["start"] == one.episodes[0].provenance["start"]
    # Driven elsewhere: the states are those that were commanded.
    states = batch.states.flip(1)
    elsewhere = Imagined.of(loaded.forecaster, batch, made, states=states)
    write_session(tmp_path / "s", elsewhere, name="another drive", append=True, **driven)
    written = open_source(tmp_path / "s")
    assert torch.equal(written.read(1, 0, 51).states, states[0])
    assert [recording_of(written, i) for i in (0, 1)] == [of, "another drive, clip 0"]
    with pytest.raises(UsageError, match=r"its frames are not every 1, they"):
        Imagined.of(loaded.forecaster, batch, made[1:])
    with pytest.raises(UsageError, match="34 states are given, but the last frame is number 50"):
        Imagined.of(loaded.forecaster, batch, made, states=batch.states[:, :34])
