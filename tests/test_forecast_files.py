"""Forecasts as files: without a future beside the context, by both tracks, and what their reader refuses."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from builders import (
    GRID_200,
    TOKEN_GRID,
    TWO_JOINTS,
    arrays_in,
    moving_square,
    randomise,
    small_tokenizer,
    small_world,
    write_squares,
)
from commands import do
from data_builders import write_lerobot
from latent_builders import PATTERN, SMALL_VAE, SMALL_WAN, small_vae
from tolerances import assert_pixels_agree, assert_tokens_agree

from worldline.contract import Contract, FramePattern, ModelConfig
from worldline.encoding.encode import encode as encode_latents
from worldline.families.card import ModelCard
from worldline.families.config import LoadOptions
from worldline.families.load import load_forecaster
from worldline.families.tokenizers import fingerprint
from worldline.forecasting.forecaster import clip_seeds
from worldline.forecasts import _save_mp4, read_forecasts
from worldline.formats.open import open_source
from worldline.formats.video import encode
from worldline.process.categorical import Sampling
from worldline.rundir import to_json, write_model
from worldline.schema import DataError, LatentGrid, TokenGrid, UsageError, stack
from worldline.tokenizers.fsq_video import FSQVideoConfig
from worldline.worlds.causal import CausalConfig

GRID = small_tokenizer().grid(16, 16)


def write_world(place: Path, grid: TokenGrid = GRID, image_size: int | None = 64) -> Path:
    """A world over tokens as training on a token folder leaves it: it knows no tokenizer, and a foreign image size."""
    world = small_world(grid=grid)
    contract = {
        "fps": 30.0,
        "image_size": image_size,
        "conditioning": "state",
        "camera": None,
        "state_names": list(TWO_JOINTS.names),
        "state_kinds": list(TWO_JOINTS.kinds),
        "grid": to_json(TokenGrid, grid),
        "pattern": {"window": 34},
        "source_kind": "1x-tokens",
    }
    place.mkdir(parents=True)
    write_model(place, {"config": to_json(ModelConfig, world.config), "contract": contract}, world.state_dict())
    return place


def write_tokenizer(place: Path) -> Path:
    tokenizer = small_tokenizer()
    place.mkdir(parents=True)
    write_model(place, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
    return place


def write_test_tokens(root: Path, samples: int = 3, rows: int = 64, grid: TokenGrid = GRID) -> Path:
    """Samples as the challenge's test set has them: three grids of context, and states beyond them."""
    for name in ("videos", "robot_states"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(samples):
        tokens = rng.integers(grid.vocab_size, size=(grid.latents_per_block, grid.height, grid.width))
        tokens.astype(np.int32).tofile(root / f"videos/video_{i}.bin")
        rng.standard_normal((rows, 2)).astype(np.float32).tofile(root / f"robot_states/states_{i}.bin")
    facts = {"num_shards": samples, "hz": 30, "state_names": TWO_JOINTS.names, "state_kinds": TWO_JOINTS.kinds}
    facts |= {"token_grid": [grid.latents_per_block, grid.height, grid.width], "vocab_size": grid.vocab_size}
    facts |= {"block": grid.block, "temporal_stride": grid.temporal_stride}
    (root / "metadata.json").write_text(json.dumps(facts))
    return root


def write_test_videos(root: Path, samples: int = 2, rows: int = 77) -> Path:
    """Raw samples of the test set: 17 frames of context, and states beyond them."""
    for name in ("videos", "robot_states"):
        (root / name).mkdir(parents=True)
    for i in range(samples):
        frames, states = moving_square(rows, seed=i)
        encode(root / f"videos/video_{i}.mp4", frames[:17], fps=30.0)
        states.tofile(root / f"robot_states/states_{i}.bin")
    facts = {"num_shards": samples, "hz": 30, "state_names": TWO_JOINTS.names, "state_kinds": TWO_JOINTS.kinds}
    (root / "metadata.json").write_text(json.dumps(facts))
    return root


def write_latent_world(place: Path, vae: Path) -> Path:
    """A world over latents as training leaves it, with random weights; its VAE is at another place."""
    world = SMALL_WAN.build(TWO_JOINTS.kinds, PATTERN)
    randomise(world)
    contract = {
        "fps": 30.0,
        "image_size": None,
        "conditioning": "state",
        "camera": None,
        "state_names": list(TWO_JOINTS.names),
        "state_kinds": list(TWO_JOINTS.kinds),
        "grid": to_json(LatentGrid, SMALL_VAE.build().grid(16, 16)),
        "pattern": to_json(FramePattern, PATTERN),
        "source_kind": "latents",
    }
    place.mkdir(parents=True)
    description = {
        "config": to_json(ModelConfig, world.config),
        "contract": contract,
        "identity": {"tokenizer": fingerprint(vae)},
    }
    write_model(place, description, world.state_dict())
    return place


def run(*arguments: object) -> None:
    do("forecast", [*map(str, arguments), "--device", "cpu"])


def test_test_samples_of_tokens_are_forecast_without_a_tokenizer(tmp_path: Path) -> None:
    world, data = write_world(tmp_path / "world"), write_test_tokens(tmp_path / "test")
    run(world, "--data", data, "--out", tmp_path / "out", "--format", "npz")
    found = read_forecasts(tmp_path / "out")
    assert list(found) == ["sample_0", "sample_1", "sample_2"], "all of them, named as their files"
    for i, made in enumerate(found.values()):
        assert made.frames is None
        assert made.tokens is not None
        assert made.top_ids is not None
        assert made.top_log_probs is not None
        context = np.fromfile(data / f"videos/video_{i}.bin", np.int32).reshape(1, 3, 2, 2)
        states = np.fromfile(data / f"robot_states/states_{i}.bin", np.float32).reshape(1, 64, 2)[:, :34]
        reference = small_world(grid=GRID_200)
        with torch.no_grad():
            steps = reference.forecast(torch.from_numpy(context).long(), torch.from_numpy(states), sampling=Sampling())
            for index, step in enumerate(steps):
                chances = step.logits[0].log_softmax(dim=-1)
                assert_tokens_agree(made.tokens[0, 0, index], step.tokens[0])
                assert_tokens_agree(made.top_ids[0, index, ..., 0], step.tokens[0])
                expected = chances.gather(-1, made.top_ids[0, index])
                torch.testing.assert_close(made.top_log_probs[0, index], expected, rtol=1e-4, atol=1e-4)
        assert made.top_ids.shape == (1, 3, 2, 2, 200), "no more than there are"


def write_driven(place: Path, horizon: int) -> Path:
    """A world that is driven and its tokenizer of single frames of 16x16, as training leaves them; give both."""
    torch.manual_seed(0)
    sizes = {"widths": (8,), "blocks": (1,), "encoder_kernels": (3,), "kernel": 3, "block_frames": 1}
    tokenizer = FSQVideoConfig(levels=(4, 3), patch=(1, 4), merges=(), **sizes).build()  # pyright: ignore[reportArgumentType]
    sizes = {"context_grids": 4, "horizon_grids": horizon, "width": 16, "heads": 2, "layers": 1, "state_hidden": 8}
    grid, names = tokenizer.grid(16, 16), TWO_JOINTS.names
    world = CausalConfig(code_levels=(4, 3), **sizes).build(grid, names)  # pyright: ignore[reportArgumentType]
    known = {"state_names": names, "state_kinds": TWO_JOINTS.kinds, "source_kind": "1x-raw", "image_size": 16}
    pattern = FramePattern(window=4 + horizon)
    contract = Contract(fps=30.0, pattern=pattern, grid=grid, **known)  # pyright: ignore[reportArgumentType]
    cards = {place: ModelCard(config=world.config, contract=contract)}
    cards[place / "tokenizer"] = ModelCard(config=tokenizer.config)
    for (folder, card), model in zip(cards.items(), (world, tokenizer), strict=True):
        folder.mkdir(parents=True)
        write_model(folder, card.to_json(), model.state_dict())
    return place


@pytest.mark.parametrize("layout", ["npz", "png"])
@pytest.mark.parametrize("horizon", [1, 3])
def test_all_frames_of_a_driven_world_are_written_and_read_again(horizon: int, layout: str, tmp_path: Path) -> None:
    world, data = write_driven(tmp_path / "world", horizon), write_squares(tmp_path / "squares", 1, length=8)
    run(world, "--data", data, "--num-clips", "1", "--format", layout, "--out", tmp_path / "out")
    (made,) = read_forecasts(tmp_path / "out").values()
    loaded, clip = load_forecaster(world, LoadOptions(device="cpu")), open_source(data).read(0, 0, 4 + horizon)
    expected = loaded.whole.forecast_clips(stack([clip]), seeds=clip_seeds(0, [clip.origin]))
    assert made.times == expected.times == tuple(range(4, 4 + horizon))
    assert_pixels_agree(made.video, expected.video)
    assert made.tokens is None


def test_samples_of_several_test_sets_do_not_overwrite_each_other(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    sets = [write_test_tokens(tmp_path / name / "test", samples=2) for name in ("one", "two")]
    run(world, "--data", *sets, "--out", tmp_path / "out", "--format", "npz", "--temperature", "1.0")
    found = read_forecasts(tmp_path / "out")
    assert list(found) == [f"clip_{i:05d}" for i in range(4)]
    first, third = found["clip_00000"], found["clip_00002"]
    torch.testing.assert_close(first.top_log_probs[0, 0], third.top_log_probs[0, 0])  # pyright: ignore[reportOptionalSubscript]
    assert not torch.equal(first.tokens, third.tokens), "two samples, though their tokens are alike"  # pyright: ignore


def test_a_tokenizer_shows_them_whatever_the_image_size_a_recipe_had(tmp_path: Path) -> None:
    world, tokenizer = write_world(tmp_path / "world"), write_tokenizer(tmp_path / "tokenizer")
    data = write_test_tokens(tmp_path / "test")
    for layout in ("npz", "png", "mp4"):
        run(world, "--data", data, "--tokenizer", tokenizer, "--out", tmp_path / layout, "--format", layout)
    arrays, pictures = read_forecasts(tmp_path / "npz"), read_forecasts(tmp_path / "png")
    for name, made in arrays.items():
        assert made.frames is not None
        assert made.tokens is not None
        assert made.frames.shape == (1, 1, 17, 3, 16, 16)
        assert_pixels_agree(made.frames, small_tokenizer().decode(made.tokens[:, 0])[:, None])
        for field in ("frames", "tokens", "top_ids", "top_log_probs"):
            assert torch.equal(getattr(pictures[name], field), getattr(made, field)), field
    assert sorted(path.name for path in (tmp_path / "mp4").glob("*.mp4")) == [f"sample_{i}.mp4" for i in range(3)]
    with pytest.raises(UsageError, match="--format npz or png"):
        read_forecasts(tmp_path / "mp4")
    episodes = write_lerobot(tmp_path / "episodes", "v2.1", (40,))
    with pytest.raises(UsageError, match=r"LeRobot data set.*worldline\.open_data"):
        read_forecasts(episodes)


def test_it_forecasts_and_judges_frames_of_any_size_with_that_tokenizer(tmp_path: Path) -> None:
    world, tokenizer = write_world(tmp_path / "world"), write_tokenizer(tmp_path / "tokenizer")
    data = write_squares(tmp_path / "raw", 1, length=34, size=32)
    run(world, "--data", data, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--format", "npz")
    (made,) = read_forecasts(tmp_path / "out").values()
    assert made.frames is not None
    assert made.frames.shape == (1, 1, 17, 3, 16, 16)
    words = [world, "--data", data, "--tokenizer", tokenizer, "--out", tmp_path / "judged", "--device", "cpu"]
    do("evaluate", [*map(str, words)])
    assert (tmp_path / "judged/metrics.json").exists()


def test_raw_test_samples_are_forecast_by_both_kinds_of_world(tmp_path: Path) -> None:
    data, (vae, _) = write_test_videos(tmp_path / "test"), small_vae(tmp_path / "vae")
    latents = write_latent_world(tmp_path / "latents", vae)
    tokens, tokenizer = write_world(tmp_path / "tokens"), write_tokenizer(tmp_path / "tokenizer")
    for world, given, times in ((latents, vae, range(20, 77, 4)), (tokens, tokenizer, range(17, 34))):
        flow = {"steps": 2, "num_samples": 2} if world == latents else {}
        few = ["--steps", "2", "--num-samples", "2"] if world == latents else []
        run(world, "--data", data, "--tokenizer", given, "--format", "png", *few, "--out", world / "out")
        made = read_forecasts(world / "out")
        assert list(made) == ["sample_0", "sample_1"]
        assert json.loads((world / "out/forecast.json").read_text())["times"] == list(times)
        pictures = {path.name for path in (world / "out/sample_1/future_0").iterdir()}
        assert pictures == {f"frame_{time:03d}.png" for time in times}
        forecaster, clip = (
            load_forecaster(world, LoadOptions(tokenizer=given, **flow)).forecaster,
            open_source(data).read(1, 0, 77),
        )
        assert clip.frames is not None
        assert clip.frames.shape == (17, 3, 16, 16)
        rows = forecaster.context_frames + forecaster.horizon_frames
        seeds = clip_seeds(0, [clip.origin])
        expected = forecaster.forecast(clip.frames[None], clip.states[None, :rows], seeds=seeds).frames
        found = made["sample_1"].frames
        assert found is not None
        assert_pixels_agree(found, expected)
    with pytest.raises(UsageError, match="can be forecast, not evaluated"):
        do("evaluate", [str(latents), "--data", str(data), "--tokenizer", str(vae), "--device", "cpu"])
    run(latents, "--data", data, "--tokenizer", vae, "--steps", "1", "--out", tmp_path / "video")
    with av.open(str(tmp_path / "video/sample_0.mp4")) as container:
        shapes = [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert shapes == [(4 * 16, 4 * 16)] * 20, "the five frames of the context that are encoded, and the forecast"


def test_encoded_data_are_forecast_as_the_frames_they_were_made_of(tmp_path: Path) -> None:
    raw, (place, vae) = write_squares(tmp_path / "raw", 2, length=160), small_vae(tmp_path / "vae")
    world, data = write_latent_world(tmp_path / "world", place), tmp_path / "encoded"
    encoded = {"fingerprint": fingerprint(place), "episodes": (0, 1), "pattern": PATTERN, "window_stride": 20}
    encode_latents(open_source(raw), vae, data, **encoded)
    few = ["--tokenizer", place, "--steps", "2", "--num-clips", "all"]
    for source, name in ((raw, "frames"), (data, "latents")):
        run(world, "--data", source, *few, "--format", "npz", "--out", tmp_path / name)
    frames, latents = read_forecasts(tmp_path / "frames"), read_forecasts(tmp_path / "latents")
    assert len(frames) == 4, "at 0 and 77 of each"
    assert len(latents) == 4, "at 0 and 80 of each"
    for name in ("clip_00000", "clip_00002"):
        one, other = frames[name].frames, latents[name].frames
        assert one is not None
        assert other is not None
        assert (one.float() - other.float()).abs().mean() < 1, "latents on disk are float16"
    run(world, "--data", data, *few, "--out", tmp_path / "video")
    assert len(list((tmp_path / "video").glob("*.mp4"))) == 4
    other, _ = small_vae(tmp_path / "other", seed=1)
    elsewhere = write_latent_world(tmp_path / "elsewhere", other)
    with pytest.raises(UsageError, match="made with another tokenizer"):
        run(elsewhere, "--data", data, "--tokenizer", other, "--out", tmp_path / "out")


def test_a_world_over_latents_does_not_begin_with_tokens(tmp_path: Path) -> None:
    vae, _ = small_vae(tmp_path / "vae")
    world, data = write_latent_world(tmp_path / "world", vae), write_test_tokens(tmp_path / "test", rows=77)
    with pytest.raises(UsageError, match="no frames for a forecast to begin with"):
        run(world, "--data", data, "--tokenizer", vae, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--tokenizer DIR.*--format npz"),
        ("--format png", "--tokenizer DIR.*--format npz"),
        ("--format npz --clips 3", r"no clip 3; the data have clips 0\.\.2"),
        ("--format npz --clips -1", r"clips is \(-1,\)"),
        ("--format npz --num-clips 0", "--num-clips 1"),
        ("--format npz --clips 1 --num-clips 2", "give one of them"),
        ("--format npz --weights wan", "--weights would change nothing"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(words: str, message: str, tmp_path: Path) -> None:
    world, data = write_world(tmp_path / "world"), write_test_tokens(tmp_path / "test")
    (world / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=message):
        run(world, "--data", data, "--out", tmp_path / "out", *words.split())
    assert not (tmp_path / "out").exists()


def test_states_that_are_no_numbers_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    world, data = write_world(tmp_path / "world"), write_test_tokens(tmp_path / "test")
    (world / "model.safetensors").unlink()
    states = np.fromfile(data / "robot_states/states_2.bin", np.float32)
    states[5] = np.nan
    states.tofile(data / "robot_states/states_2.bin")
    with pytest.raises(DataError, match=r"states_2\.bin"):
        run(world, "--data", data, "--format", "npz", "--out", tmp_path / "out")


def test_a_forecast_that_fails_to_start_harms_no_earlier_one(tmp_path: Path) -> None:
    world, data = write_world(tmp_path / "world"), write_test_tokens(tmp_path / "test", samples=1)
    words = ["--data", data, "--format", "npz", "--out", tmp_path / "out"]
    run(world, *words)
    (world / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        run(world, *words, "--seed", "1")
    assert list(read_forecasts(tmp_path / "out")) == ["sample_0"]


def test_a_damaged_sample_is_named_before_weights_are_read(tmp_path: Path) -> None:
    world, data = write_world(tmp_path / "world"), write_test_videos(tmp_path / "test")
    (world / "model.safetensors").unlink()
    encode(data / "videos/video_1.mp4", moving_square(17)[0], fps=10.0)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(DataError, match=r"video_1\.mp4.*30 frames per second"):
        run(world, "--data", data, "--tokenizer", tokenizer, "--out", tmp_path / "out")


def test_what_is_no_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a tokenizer"):
        run(write_tokenizer(tmp_path / "tokenizer"))
    damaged = write_world(tmp_path / "world")
    for content in ({"format": 1}, {"format": 1, "config": []}):
        (damaged / "model.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"model\.json.*configuration"):
            run(damaged)
    (damaged / "model.json").write_text(json.dumps({"format": 1, "config": {"kind": "st-transformer"}}))
    with pytest.raises(UsageError, match=r"model\.json does not say what data its world was trained on"):
        run(damaged)


def test_tokens_and_tokenizers_of_another_grid_are_refused(tmp_path: Path) -> None:
    world, tokenizer = write_world(tmp_path / "world", TOKEN_GRID), write_tokenizer(tmp_path / "tokenizer")
    fitting, other = (write_test_tokens(tmp_path / str(g.vocab_size), grid=g) for g in (TOKEN_GRID, GRID))
    with pytest.raises(UsageError, match=r"tokens of TokenGrid.*vocab_size=200"):
        run(world, "--data", other, "--out", tmp_path / "out", "--format", "npz")
    with pytest.raises(UsageError, match=r"makes tokens of TokenGrid.*vocab_size=200"):
        run(world, "--data", fitting, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--format", "npz")
    raw = write_squares(tmp_path / "raw", 1, length=34)
    with pytest.raises(UsageError, match="--tokenizer DIR"):
        run(world, "--data", raw, "--out", tmp_path / "out", "--format", "npz")


def test_chosen_samples_alone_are_written_and_mean_the_same(tmp_path: Path) -> None:
    world, data = write_world(tmp_path / "world"), write_test_tokens(tmp_path / "test")
    sampled = ["--data", data, "--format", "npz", "--temperature", "1.0", "--top-k", "50", "--top-p", "0.9"]
    run(world, *sampled, "--num-samples", "3", "--out", tmp_path / "all")
    run(world, *sampled, "--clips", "2", "0", "2", "--rows", "1", "--out", tmp_path / "some")
    whole, some = read_forecasts(tmp_path / "all"), read_forecasts(tmp_path / "some")
    assert list(some) == ["sample_2", "sample_0"]
    recorded = json.loads((tmp_path / "all/forecast.json").read_text())
    assert (recorded["num_samples"], recorded["seed"], recorded["settings"]["temperature"]) == (3, 0, 1.0)
    assert (recorded["settings"]["top_k"], recorded["settings"]["top_p"]) == (50, 0.9)
    for name, made in some.items():
        assert made.tokens is not None
        assert_tokens_agree(made.tokens, whole[name].tokens[:, :1])  # pyright: ignore[reportOptionalSubscript]
        torch.testing.assert_close(made.top_log_probs, whole[name].top_log_probs)


def _damaged(folder: Path, damage: str) -> str:
    """Damage one file of a forecast; give its name."""
    path = folder / "sample_1.npz"
    arrays: dict[str, Any] = arrays_in(path)
    match damage:
        case "absent":
            path.unlink()
            return path.name
        case "cut":
            path.write_bytes(path.read_bytes()[:-200])
            return path.name
        case "index" | "sample":
            index = json.loads((folder / "forecast.json").read_text())
            index |= {"num_samples": "many"} if damage == "index" else {"samples": ["sample_1"]}
            (folder / "forecast.json").write_text(json.dumps(index))
            return "forecast.json"
        case "no index":
            (folder / "forecast.json").unlink()
            return "forecast.json"
        case "type":
            arrays["tokens"] = arrays["tokens"].astype(np.int64)
        case "shape":
            arrays["top_ids"] = arrays["top_ids"][:, :1]
        case "range":
            arrays["top_log_probs"] = -arrays["top_log_probs"]
        case "order":
            arrays["top_log_probs"] = arrays["top_log_probs"][..., ::-1]
        case "less":
            del arrays["top_ids"]
    np.savez(path, **arrays)
    return path.name


@pytest.mark.parametrize(
    "damage", ["absent", "cut", "index", "sample", "no index", "type", "shape", "range", "order", "less"]
)
def test_the_reader_names_the_file_that_is_not_what_it_should_be(damage: str, tmp_path: Path) -> None:
    world, data = write_world(tmp_path / "world"), write_test_tokens(tmp_path / "test", samples=2)
    run(world, "--data", data, "--out", tmp_path / "out", "--format", "npz")
    name = _damaged(tmp_path / "out", damage)
    with pytest.raises(DataError, match=name):
        read_forecasts(tmp_path / "out")


def test_a_video_of_more_futures_than_fit_in_a_line_has_several(tmp_path: Path) -> None:
    futures = torch.full((260, 1, 3, 16, 16), 200, dtype=torch.uint8)
    shown = torch.zeros(1, 1, 3, 16, 16, dtype=torch.uint8), torch.full((1, 1, 3, 16, 16), 90, dtype=torch.uint8)
    _save_mp4(tmp_path / "many.mp4", futures, 0, shown, fps=30.0)
    with av.open(str(tmp_path / "many.mp4")) as container:
        _, last = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
    assert last.shape == (128, 16384, 3)
    cells = last.reshape(2, 64, 256, 64, 3)[:, 32, :, 32].mean(axis=-1)
    np.testing.assert_allclose(cells.ravel(), [90, *[200] * 260, *[0] * 251], atol=4)
