"""Roll-outs of any horizon: a session's frames by hand, row for row in an evaluation, and what cannot be is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import GRID_200, arrays_in, noise_frames, write_followed_tokens, write_squares
from commands import do
from latent_builders import small_vae
from test_forecast_files import write_latent_world, write_tokenizer, write_world
from test_session import begun, forecasters, states_of  # noqa: F401 - a fixture

from worldline.builtin import TWIN_MINI_VAL
from worldline.evaluation.evaluate import frames_ahead
from worldline.evaluation.result import Evaluation
from worldline.families.config import LoadOptions
from worldline.families.load import load_forecaster
from worldline.forecasting.forecaster import CopyLast, Forecaster, chunk_seeds, clip_seeds
from worldline.forecasting.latents import LatentForecaster
from worldline.forecasting.rollout import RollOut
from worldline.forecasting.tokens import TokenForecaster
from worldline.formats.open import open_source
from worldline.metrics.image import psnr
from worldline.process.categorical import Sampling
from worldline.report.write import write_report
from worldline.schema import Batch, Origin, UsageError, stack


def batch_of(forecaster: Forecaster) -> Batch:
    """Clips as long as a forecast needs them."""
    length = forecaster.context_frames + forecaster.lookahead_frames
    origins = tuple(Origin(source="drawn", episode=i, start=0) for i in range(2))
    frames = noise_frames(2, length, 3, 16, 16)
    return Batch(states=states_of(length), fps=30.0, origins=origins, frames=frames)


@pytest.mark.parametrize("name", ["tokens", "latents", "copy"])
def test_one_chunk_is_the_forecast_and_more_are_a_session_by_hand(
    name: str,
    forecasters: dict[str, Forecaster],  # noqa: F811
) -> None:
    inner = forecasters[name]
    alone = RollOut.of(inner, inner.horizon_frames)
    batch = batch_of(alone)
    made, expected = alone.forecast_clips(batch, seeds=(3, 4)), inner.forecast_clips(batch, seeds=(3, 4))
    assert made.times == expected.times
    assert torch.equal(made.video, expected.video), "to the bit"
    ahead = 2 * inner.chunk_frames + 9
    rolled = RollOut.of(inner, ahead)
    batch = batch_of(rolled)
    made, session = rolled.forecast_clips(batch, seeds=(3, 4)), inner.start_clips(batch, seed=(3, 4))
    look = inner.lookahead_frames
    chunks = [session.advance(batch.states[:, now : now + look]) for now in range(17, 17 + ahead, inner.chunk_frames)]
    times = [time for chunk in chunks for time in chunk.times if time < 17 + ahead]
    assert made.times == tuple(times)
    assert torch.equal(made.video, torch.cat([chunk.video for chunk in chunks], dim=2)[:, :, : len(times)])
    assert (rolled.horizon_frames, rolled.pace) == (times[-1] - 16, inner.pace)
    assert rolled.lookahead_frames == 2 * inner.chunk_frames + look, "states are read to the end of the last chunk"
    frames, states = noise_frames(2, 17, 3, 16, 16), batch.states
    again = rolled.forecast(frames, states, seeds=(3, 4))
    assert again.video.shape == made.video.shape


def test_times_of_a_horizon(forecasters: dict[str, Forecaster]) -> None:  # noqa: F811
    tokens, latents = forecasters["tokens"], forecasters["latents"]
    for inner, ahead, times, look in (
        (tokens, 5, range(17, 22), 17),
        (tokens, 300, range(17, 317), 306),
        (latents, 4, range(20, 21), 60),
        (latents, 61, range(20, 77, 4), 60),
        (latents, 64, range(20, 81, 4), 120),
        (latents, 300, range(20, 317, 4), 300),
    ):
        rolled = RollOut.of(inner, ahead)
        assert rolled.times == tuple(times)
        assert rolled.lookahead_frames == look
    with pytest.raises(UsageError, match="frame 4 after the context"):
        RollOut.of(latents, 3)
    with pytest.raises(UsageError, match="cannot be rolled on"):
        RollOut.of(replace(forecasters["copy"], chunk_frames=0), 30)  # pyright: ignore[reportArgumentType]


def test_a_roll_out_has_a_baseline_samples_and_other_forecasters_beside_it(
    forecasters: dict[str, Forecaster],  # noqa: F811
) -> None:
    latents, tokens = forecasters["latents"], forecasters["tokens"]
    rolled = RollOut.of(latents, 100)
    batch, seeds = batch_of(rolled), (5, 6)
    assert batch.frames is not None
    copied = CopyLast.beside(rolled).forecast_clips(batch)
    assert copied.times == rolled.times
    assert torch.equal(copied.video[:, 0], batch.frames[:, 16:17].expand(-1, len(rolled.times), -1, -1, -1))
    one, both = replace(rolled, num_samples=1), rolled.forecast_clips(batch, seeds=seeds).video
    assert one.inner.num_samples == 1
    torch.testing.assert_close(one.forecast_clips(batch, seeds=seeds).video, both[:, :1], rtol=0, atol=2)
    assert isinstance(latents, LatentForecaster)
    mean = rolled.conditional_mean(4)
    assert mean is not None
    assert isinstance(mean.inner, LatentForecaster)
    assert (mean.ahead, mean.inner.mean_draws, mean.num_samples) == (100, 4, 1)
    assert isinstance(tokens, TokenForecaster)
    assert RollOut.of(tokens, 50).conditional_mean(4) is None
    mixing = replace(tokens, sampling=Sampling(), num_samples=1, mixture=3)
    single = RollOut.of(mixing, 50).one_roll_out()
    assert single is not None
    assert isinstance(single.inner, TokenForecaster)
    assert (single.inner.mixture, RollOut.of(tokens, 50).one_roll_out()) == (1, None)


def test_a_reconstruction_goes_window_by_window(forecasters: dict[str, Forecaster]) -> None:  # noqa: F811
    tokens, latents = forecasters["tokens"], forecasters["latents"]
    rolled = RollOut.of(tokens, 40)
    batch = batch_of(rolled)
    assert batch.frames is not None
    assert tokens.tokenizer is not None
    blocks = batch.frames.split(17, dim=1)
    whole = torch.cat([tokens.tokenizer.decode(tokens.tokenizer.encode(block)) for block in blocks[1:]], dim=1)
    assert torch.equal(rolled.reconstruct(batch).video[:, 0], whole[:, :40])
    rolled = RollOut.of(latents, 90)
    batch = batch_of(rolled)
    part = replace(batch, **{name: getattr(batch, name)[:, 60:137] for name in ("frames", "states")})
    made, second = rolled.reconstruct(batch), latents.reconstruct(part)
    assert made.times == rolled.times
    assert torch.equal(made.video[:, :, 15:], second.video[:, :, :7]), "frames 80, 84, ..., 104"


def test_a_roll_out_is_a_session_itself(forecasters: dict[str, Forecaster]) -> None:  # noqa: F811
    """Of whole chunks; what it shows beyond them is forecast again by the next step."""
    inner = replace(forecasters["tokens"], sampling=Sampling(), num_samples=1)  # pyright: ignore[reportArgumentType]
    states = states_of(17 + 85)
    for ahead in (34, 40):
        rolled, look = RollOut.of(inner, ahead), 34 if ahead == 34 else 51
        assert (rolled.chunk_frames, rolled.lookahead_frames) == (34, look)
        session, by_hand = begun(rolled), begun(inner)
        two = [session.advance(states[:, now : now + look]) for now in (17, 51)]
        four = [by_hand.advance(states[:, now : now + 17]) for now in (17, 34, 51, 68)]
        assert torch.equal(*(torch.cat([one.video for one in made], dim=2) for made in (two, four)))
        assert two[1].times == tuple(range(51, 85))
    with pytest.raises(UsageError, match="another forecaster"):
        begun(rolled).restore(begun(RollOut.of(inner, 34)).snapshot())


# --- evaluations ---


def evaluate(*words: object) -> None:
    do("evaluate", [*map(str, words), "--device", "cpu"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both kinds of world, with long and short episodes."""
    place = tmp_path_factory.mktemp("worlds")
    write_world(place / "tokens", image_size=16)
    write_tokenizer(place / "tokens/tokenizer")
    vae, _ = small_vae(place / "vae")
    write_latent_world(place / "latents", vae)
    write_squares(place / "long", 2, length=160)
    write_squares(place / "some", 2, length=90)
    write_squares(place / "short", 2, length=80)
    return place


def test_an_evaluation_reaches_as_far_as_asked(place: Path) -> None:
    evaluate(place / "tokens", "--data", place / "long", "--horizon", "3s")
    found = Evaluation.load(place / "tokens/evaluation_3s/metrics.json")
    assert {"forecast", "shuffled_states", "copy_last", "reconstruction"} <= {row.id for row in found.rows}
    assert "one window" in found.not_computed["keep_last_tokens"]
    assert (found.data.horizon_frames, found.settings["roll_out_chunk_frames"]) == (90, 17)
    rows = {row.id: row.metrics for row in found.rows}
    assert "full_ce" not in rows["forecast"]
    assert rows["copy_last"]["motion"].mean == 0
    assert found.not_computed["audit"] == "studied within one window; evaluate without --horizon, too"
    assert "states_late_0_2s" not in rows
    assert "live_twin" not in rows, "these are no data of the twin"
    (drift,) = found.findings
    assert (drift.id, len(drift.tables[1].lines)) == ("drift", 6)
    shown = arrays_in(place / "tokens/evaluation_3s/forecasts.npz")
    assert shown["real"].shape[:2] == (2, 107)
    page = write_report([place / "tokens"], place / "page").read_text(encoding="utf-8")
    assert "tokens, 3s ahead" in page, "a report shows it beside the run's own evaluation"
    assert drift.sentence in page.replace("&#39;", "'")
    forecaster = load_forecaster(place / "tokens", LoadOptions(device="cpu")).forecaster
    batch = stack([open_source(place / "long").read(episode, 0, 119) for episode in (0, 1)])
    assert batch.frames is not None
    session, frames = forecaster.start_clips(batch, seed=clip_seeds(0, batch.origins)), []
    for now in range(17, 119, 17):
        frames.append(session.advance(batch.states[:, now : now + 17]).video[:, 0])
    alone = []
    for number, now in enumerate(range(17, 119, 17)):  # every chunk by itself, from the true frames before it
        part = replace(batch, **{name: getattr(batch, name)[:, now - 17 : now + 17] for name in ("frames", "states")})
        alone.append(forecaster.forecast_clips(part, seeds=chunk_seeds(clip_seeds(0, batch.origins), number)).video)
    apart = psnr(torch.cat(alone, dim=2)[:, 0, :90], batch.frames[:, 17:107]).mean(dim=0)
    curve = torch.tensor([one.mean for one in found.curves["psnr_db"]["true_contexts"]])
    torch.testing.assert_close(curve, apart.to(curve), rtol=1e-4, atol=1e-3)
    expected = psnr(torch.cat(frames, dim=1)[:, :90], batch.frames[:, 17:107]).mean(dim=0)
    curve = torch.tensor([one.mean for one in found.curves["psnr_db"]["forecast"]])
    torch.testing.assert_close(curve, expected.to(curve), rtol=1e-4, atol=1e-3)


def test_a_receipt_of_a_roll_out_is_verified_and_a_world_over_tokens_may_draw_several(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ["--protocol", "sampling", "--temperature", 1, "--num-samples", 2, "--out", place / "drawn"]
    evaluate(place / "tokens", "--data", place / "long", "--horizon", "1s", "--lpips", "off", *drawn)
    found = Evaluation.load(place / "drawn/metrics.json")
    assert {"mean_2", "sample", "shuffled_states", "true_contexts"} <= {row.id for row in found.rows}
    assert {len(curve) for curve in found.curves["psnr_db"].values()} == {30}
    capsys.readouterr()
    do("verify", [str(place / "drawn"), "--json"])
    assert json.loads(capsys.readouterr().out)["holds"]


def test_a_world_over_latents_reaches_as_far_with_several_samples(place: Path) -> None:
    few = ["--tokenizer", place / "vae", "--steps", "1", "--num-samples", "2", "--out", place / "out"]
    evaluate(place / "latents", "--data", place / "long", "--horizon", 100, *few)
    found = Evaluation.load(place / "out/metrics.json")
    assert {"mean_2", "sample", "conditional_mean_4", "shuffled_states", "copy_last", "reconstruction"} <= {
        row.id for row in found.rows
    }
    assert {len(curve) for curve in found.curves["psnr_db"].values()} == {25}, "frames 20, 24, ..., 116"
    assert found.data.horizon_frames == 100


def test_short_episodes_are_counted_and_where_all_are_that_is_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--condition-samples", 0, "--out", place / "out_short"]
    evaluate(place / "tokens", "--data", place / "some", place / "short", "--horizon", 68, *out)
    assert "2 of 4 episodes are too short for --horizon 68 (68 frames ahead need clips of 85" in capsys.readouterr().err
    found = Evaluation.load(place / "out_short/metrics.json")
    assert found.data.num_clips == 2
    longest = r"2 of 2 episodes are too short.*the longest horizon here is 51 frames \(1\.7s\)"
    with pytest.raises(UsageError, match=longest):
        evaluate(place / "tokens", "--data", place / "short", "--horizon", "2s")
    evaluate(place / "tokens", "--data", place / "short", "--horizon", 51, *out)


def test_a_horizon_of_no_length_or_of_no_frames_is_refused(place: Path, tmp_path: Path) -> None:
    assert [frames_ahead(text, fps=30.0) for text in ("10s", "300", 300, "0.5s")] == [300, 300, 300, 15]
    for wrong in ("0", "0s", "-3s", "3 m", "s", "1e3s", "99999999s"):
        with pytest.raises(UsageError, match=r"--horizon .* is no length"):
            evaluate(place / "tokens", f"--horizon={wrong}")
    with pytest.raises(UsageError, match="--horizon would change nothing"):
        evaluate(place / "tokens/tokenizer", "--data", place / "long", "--horizon", "3s")
    tokens = write_followed_tokens(tmp_path / "tokens", 2, words=GRID_200.vocab_size)
    with pytest.raises(UsageError, match="no frames to compare a roll-out with"):
        evaluate(place / "tokens", "--data", tokens, "--horizon", 34)


@pytest.mark.slow
def test_the_twin_itself_is_a_row_beside_a_roll_out(tmp_path: Path) -> None:
    """Also where an episode is missing, so that the others have other places than numbers."""
    data = shutil.copytree(TWIN_MINI_VAL, tmp_path / "data", ignore=shutil.ignore_patterns("video_0.mp4"))
    options = ["--horizon", 40, "--num-clips", 2, "--condition-samples", 0, "--studies", "drift", "--lpips", "off"]
    evaluate("compression-tiny", "--data", data, "--allow-missing", *options, "--out", tmp_path / "out")
    rows = {row.id: row.metrics for row in Evaluation.load(tmp_path / "out/metrics.json").rows}
    assert rows["live_twin"]["psnr_db_last"].mean > rows["forecast"]["psnr_db_last"].mean
    assert 0.7 < rows["live_twin"]["motion"].mean < 1.2
