"""Latents on disk: encoded once, resumable, never of another VAE; and the world trained and used on them."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import TWO_JOINTS, write_squares
from commands import parse
from latent_builders import PATTERN, SMALL_WAN, small_vae, world_run
from tolerances import assert_pixels_agree

from worldline.contract import FramePattern
from worldline.data.augment import AugmentConfig
from worldline.data.clips import Clips, DataConfig, open_clips, open_windows, source_windows
from worldline.data.info import inspect
from worldline.data.splits import content_of
from worldline.encoding.encode import Made, encode
from worldline.evaluation.engine import Amount, score
from worldline.evaluation.evaluate import EvaluateOptions, evaluate
from worldline.evaluation.held_out import DataChoice, held_out
from worldline.evaluation.receipt import Receipt
from worldline.evaluation.rows import Judged
from worldline.families.config import LoadOptions
from worldline.families.family import initialise
from worldline.families.load import load_forecaster
from worldline.families.tokenizers import fingerprint, load_tokenizer
from worldline.forecasting.forecaster import Forecaster, clip_seeds, generators
from worldline.forecasting.latents import LatentForecaster
from worldline.formats.encoded import LatentSource
from worldline.formats.open import open_source
from worldline.process.flow import FlowConfig, FlowSampling, step_size
from worldline.rundir import RunDir, load_tensors
from worldline.schema import Batch, DataError, UsageError
from worldline.training.loop import train

pytest.importorskip("diffusers", reason="needs the extra `wan`")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes to train on and one to judge on, a VAE, and the latents of the former."""
    root = tmp_path_factory.mktemp("latents")
    write_squares(root / "train", 3, length=93)
    write_squares(root / "val", 1, length=93, first=9)
    small_vae(root / "vae")
    encode_into(root, root / "encoded")
    return root


def encode_into(root: Path, out: Path, split: str = "train", **changes: object) -> Made:
    options: dict[str, object] = {
        "fingerprint": fingerprint(root / "vae"),
        "episodes": [0, 1, 2],
        "pattern": PATTERN,
        "window_stride": 8,
        "size": 16,
    }
    vae = load_tokenizer(root / "vae")
    return encode(open_source(root / split), vae, out, **{**options, **changes})  # pyright: ignore[reportArgumentType]


def latents_of(path: Path) -> LatentSource:
    source = open_source(path)
    assert isinstance(source, LatentSource)
    return source


# --- on disk ---


def test_a_window_on_disk_is_what_the_vae_makes_of_it_now(place: Path) -> None:
    encoded, original = latents_of(place / "encoded"), open_source(place / "train")
    assert encoded.layout == TWO_JOINTS
    clip = encoded.read(2, 16, 93)
    frames = original.read(2, 16, 93).frames
    assert clip.latents is not None
    assert frames is not None
    now = load_tokenizer(place / "vae").encode(frames[list(PATTERN.frames)][None])[0]
    torch.testing.assert_close(clip.latents, now, rtol=2e-3, atol=2e-3)  # float16 on disk
    np.testing.assert_array_equal(clip.states.numpy(), original.read_states(2, 16, 93))


def test_every_window_is_there_and_no_other(place: Path) -> None:
    encoded = latents_of(place / "encoded")
    clips = Clips(encoded, source_windows(encoded, window=77, stride=8), pattern=FramePattern(window=77))
    assert [(c.origin.episode, c.origin.start) for c in clips] == [(e, s) for e in range(3) for s in (0, 8, 16)]
    with pytest.raises(UsageError, match="77 frames at multiples of 8, not of 77 at 4"):
        encoded.read(0, 4, 81)
    with pytest.raises(UsageError, match="not of 60 at 8"):
        encoded.read(0, 8, 68)
    every_fourth = DataConfig(path=place / "encoded", pattern=PATTERN, window_stride=4)
    for data in (every_fourth, replace(every_fourth, pattern=FramePattern(window=60), window_stride=8)):
        with pytest.raises(UsageError, match="77 frames at multiples of 8, not of"):
            open_windows(data, "train")  # before a run folder is written, and not at the step that meets one
    assert len(open_windows(replace(every_fourth, window_stride=16), "train")[2]) == 6


def test_a_killed_encoding_is_refused_then_carried_on(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_into(place, out)
    expected = {p.name: p.read_bytes() for p in out.iterdir()}
    (out / "metadata.json").unlink()
    (out / "latents_1.npy").unlink()
    with pytest.raises(DataError, match="2 episodes, encoding unfinished"):
        open_source(out)
    assert encode_into(place, out).counts["reused"] == 2
    assert {p.name: p.read_bytes() for p in out.iterdir()} == expected


def test_latents_of_other_settings_never_mix(place: Path, tmp_path: Path) -> None:
    encode_into(place, tmp_path / "out")
    with pytest.raises(UsageError, match="another window_stride"):
        encode_into(place, tmp_path / "out", window_stride=4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("dear")
    with pytest.raises(UsageError, match="not empty"):
        encode_into(place, tmp_path / "full")


def test_frames_that_do_not_fit_the_vae_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="20 frames do not fit"):
        encode_into(place, tmp_path / "out", pattern=FramePattern(window=77, stride=4))
    with pytest.raises(UsageError, match="stride"):
        encode_into(place, tmp_path / "out", size=12)
    assert not (tmp_path / "out").exists()


def test_latents_are_counted_in_the_windows_that_there_are(place: Path, tmp_path: Path) -> None:
    encode_into(place, tmp_path / "out", pattern=FramePattern(window=33, stride=4), window_stride=16)
    info = inspect(tmp_path / "out")
    assert info.latents == "12 windows of 33 frames, at multiples of 16"
    assert (info.samples, info.windows_77, info.problems) == (0, 0, ())
    assert "samples" not in str(info)


def test_damaged_latents_are_named(place: Path, tmp_path: Path) -> None:
    encode_into(place, tmp_path / "out")
    assert inspect(tmp_path / "out").problems == ()
    path = tmp_path / "out/latents_0.npy"
    path.write_bytes(path.read_bytes()[:200])
    (problem,) = inspect(tmp_path / "out").problems
    assert "latents_0" in problem.examples[0]
    with pytest.raises(DataError, match="latents_0"):
        open_source(tmp_path / "out").read(0, 0, 77)


# --- training ---


@pytest.mark.parametrize(
    ("augment", "cached", "message"),
    [(AugmentConfig(brightness=0.1), True, "cache"), (AugmentConfig(flip=0.5), False, "flip")],
)
def test_augmentation_that_would_do_nothing_or_harm_is_refused(
    place: Path, tmp_path: Path, augment: AugmentConfig, cached: bool, message: str
) -> None:
    config = world_run(place / "train", place / "val", place / "vae")
    data = replace(config.data, augment=augment, cache=tmp_path / "cache" if cached else None)
    with pytest.raises(UsageError, match=message):
        train(replace(config, data=data), tmp_path / "run")


@pytest.mark.slow
def test_it_trains_on_latents_on_a_cache_and_straight_from_video_alike(place: Path, tmp_path: Path) -> None:
    vae = place / "vae"
    cached = world_run(place / "train", place / "val", vae)
    cached = replace(cached, data=replace(cached.data, cache=tmp_path / "cache"))
    encode_into(place, tmp_path / "val_encoded", split="val", episodes=[0])
    on_disk = world_run(place / "encoded", tmp_path / "val_encoded", vae)
    on_disk = replace(on_disk, data=replace(on_disk.data, cache=tmp_path / "of no use to latents"))
    video = world_run(place / "train", place / "val", vae)
    losses = {}
    for name, config in {"cached": cached, "on disk": on_disk, "video": video}.items():
        train(config, tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["train/loss"] for line in lines]
    assert losses["cached"] == losses["on disk"], "a cache is the same folder under another name"
    np.testing.assert_allclose(losses["video"], losses["on disk"], rtol=2e-3)  # float16 on disk
    assert "val/psnr_db" in json.loads((tmp_path / "video/metrics.jsonl").read_text().splitlines()[-1])


def test_latents_of_another_vae_are_refused(place: Path, tmp_path: Path) -> None:
    other, _ = small_vae(tmp_path / "other", seed=5)
    with pytest.raises(UsageError, match=rf"encoded was made with another tokenizer \(.*{other} is "):
        train(world_run(place / "encoded", place / "encoded", other), tmp_path / "run")
    root = tmp_path / "judged"
    root.mkdir()
    (root / "train").symlink_to(place / "val")
    (root / "vae").symlink_to(other)
    encode_into(root, root / "encoded", episodes=[0])
    mixed = world_run(place / "encoded", root / "encoded", place / "vae")
    with pytest.raises(UsageError, match=r"validation data .*judged/encoded was made with another tokenizer"):
        train(mixed, tmp_path / "run")
    with pytest.raises(UsageError, match=r"encoded cannot be validated on .*val, they differ in content"):
        train(world_run(place / "encoded", place / "val", place / "vae"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_changed_latents_are_other_data_and_moved_ones_are_not(place: Path, tmp_path: Path) -> None:
    first = content_of(open_source(place / "encoded"), range(2))
    copy = shutil.copytree(place / "encoded", tmp_path / "copy")
    assert content_of(open_source(copy), range(2)) == first
    changed = np.load(copy / "latents_1.npy")
    changed[0, 0, 0, 0, 0] += 1
    np.save(copy / "latents_1.npy", changed)
    assert content_of(open_source(copy), range(2)) != first


def test_a_stopped_run_resumes_bit_for_bit(place: Path, tmp_path: Path) -> None:
    data = replace(world_run(place / "train", place / "val", place / "vae").data, cache=tmp_path / "cache")
    whole = world_run(place / "train", place / "val", place / "vae", data=data)
    train(whole, tmp_path / "whole")
    train(replace(whole, max_minutes=1e-9), tmp_path / "parts")  # one step, then out of time
    train(whole, tmp_path / "parts", resume=True)
    a, b = (load_tensors(tmp_path / run / "checkpoints/step_0000004/model.safetensors") for run in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


FEW = replace(SMALL_WAN, flow=FlowConfig(shortcut=0.25))


def test_a_world_without_shortcuts_becomes_one_with_them_that_forecasts_the_same(run: Path) -> None:
    world, before = FEW.build(TWO_JOINTS.kinds, PATTERN).eval(), forecaster_of(run).world
    initialise(world, run)
    given = torch.randn(1, 2, 4, 2, 2), torch.zeros(1, 77, 2), torch.randn(1, 4, 4, 2, 2)
    for steps in (1, 3):
        sampling = FlowSampling(steps=steps)
        assert torch.equal(world.forecast(*given, sampling=sampling), before.forecast(*given, sampling=sampling))


@pytest.mark.slow
def test_a_world_with_shortcuts_resumes_bit_for_bit_and_is_no_first_weights_of_one_without(
    run: Path, place: Path, tmp_path: Path
) -> None:
    few = replace(FEW, flow=replace(FEW.flow, shift=3.0))
    config = world_run(place / "train", place / "val", place / "vae", model=few, init_from=run)
    train(config, tmp_path / "whole")
    train(replace(config, max_minutes=1e-9), tmp_path / "parts")
    train(config, tmp_path / "parts", resume=True)
    a, b = (load_tensors(tmp_path / run / "checkpoints/step_0000004/model.safetensors") for run in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert a["step.embedding.linear_2.weight"].abs().max() > 0
    made = load_forecaster(tmp_path / "whole", LoadOptions(steps=4, num_samples=2)).forecaster
    assert isinstance(made, LatentForecaster)
    assert step_size(few.flow, made.sampling) == 1 / 4, "sampled as it was trained"
    frames, states = torch.zeros(1, 17, 3, 16, 16).byte(), torch.zeros(1, 77, 2)
    assert made.forecast(frames, states, seeds=(0,)).frames.shape[:3] == (1, 2, 15)
    with pytest.raises(UsageError, match=r"another model than is trained here.*step\.embedding"):
        train(replace(config, model=SMALL_WAN, init_from=tmp_path / "whole"), tmp_path / "back")


# --- use ---


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    train(world_run(place / "train", place / "val", place / "vae"), place / "run")
    return place / "run"


def forecaster_of(run: Path, **choice: object) -> LatentForecaster:
    loaded = load_forecaster(run, LoadOptions(steps=2, **choice))  # pyright: ignore[reportArgumentType]
    assert isinstance(loaded.forecaster, LatentForecaster)
    return loaded.forecaster


def test_a_run_folder_is_enough_to_forecast(run: Path, place: Path) -> None:
    forecaster = forecaster_of(run, num_samples=3)
    assert (forecaster.context_frames, forecaster.horizon_frames) == (17, 60)
    assert forecaster.times == (*range(20, 77, 4),)
    clip = open_source(place / "val").read(0, 0, 77)
    assert clip.frames is not None
    made = forecaster.forecast(clip.frames[None, :17], clip.states[None], seeds=(0,))
    assert made.frames.shape == (1, 3, 15, 3, 16, 16)
    assert not torch.equal(made.frames[:, 0], made.frames[:, 1]), "samples differ"
    with pytest.raises(UsageError, match="17 frames, but 16"):
        forecaster.forecast(clip.frames[None, :16], clip.states[None])


def test_a_seed_means_the_same_forecast_whatever_the_batch(run: Path, place: Path) -> None:
    source = open_source(place / "train")
    clips = [source.read(e, 0, 77) for e in range(3)]
    frames = torch.stack([c.frames[:17] for c in clips if c.frames is not None])
    states = torch.stack([c.states for c in clips])
    seeds = clip_seeds(4, [clip.origin for clip in clips])
    together = forecaster_of(run, num_samples=2).forecast(frames, states, seeds=seeds).frames
    one_by_one = forecaster_of(run, num_samples=3, rows=1)
    backwards = [one_by_one.forecast(frames[[i]], states[[i]], seeds=[seeds[i]]).frames for i in (2, 1, 0)]
    alone = torch.cat(backwards[::-1])[:, :2]
    assert (together.int() - alone.int()).abs().max() <= 1, "at most a rounding of one grey level"
    others = forecaster_of(run, num_samples=2).forecast(frames, states, seeds=clip_seeds(5, [c.origin for c in clips]))
    assert (together.int() - others.frames.int()).abs().max() > 20


def test_the_future_does_not_leak_into_a_forecast(run: Path, place: Path) -> None:
    clips = open_clips(DataConfig(path=place / "val", train_episodes="0:0", pattern=FramePattern(window=77)), "val")
    clip = clips[0]
    assert clip.frames is not None
    forecaster = forecaster_of(run)
    seen = clip.frames[None, :17].clone()
    honest = forecaster.forecast(seen, clip.states[None], seeds=(0,))
    frames = clip.frames.clone()
    frames[17:] = 0
    blinded = forecaster.forecast(frames[None, :17], clip.states[None], seeds=(0,))
    assert torch.equal(honest.frames, blinded.frames)


def test_averaging_the_repeated_instant_changes_the_last_frame_only(run: Path, place: Path) -> None:
    clip = open_source(place / "val").read(0, 0, 77)
    assert clip.frames is not None
    made = [
        forecaster_of(run, average_repeats=on).forecast(clip.frames[None, :17], clip.states[None], seeds=(0,))
        for on in (False, True)
    ]
    assert torch.equal(made[0].frames[:, :, :-1], made[1].frames[:, :, :-1])
    assert not torch.equal(made[0].frames[:, :, -1], made[1].frames[:, :, -1])


def test_a_conditional_mean_is_the_mean_of_one_step_estimates_in_latents_and_one_decode(run: Path, place: Path) -> None:
    clip = open_source(place / "val").read(0, 0, 77)
    assert clip.frames is not None
    frames, states = clip.frames[None, :17], clip.states[None]
    forecaster = forecaster_of(run)
    (past,) = forecaster.begin(Batch(states=states, fps=30.0, origins=(), frames=frames))
    noise = torch.stack([torch.randn(4, *past.shape[2:], generator=stream) for stream in generators((3,), 3, clips=1)])
    three = past.expand(3, *past.shape[1:]), states.expand(3, *states.shape[1:])
    ends = forecaster.world.forecast(*three, noise, sampling=FlowSampling(steps=1))
    video = forecaster.tokenizer.decode(torch.cat([past, ends.mean(dim=0, keepdim=True)], dim=1))
    expected = video[:, [*range(5, 19), 20]]  # five of the context; the last instant is there twice
    mean = forecaster.conditional_mean(3).forecast(frames, states, seeds=(3,))
    assert_pixels_agree(mean.frames[:, 0], expected)
    by_option = load_forecaster(run, LoadOptions(mean_draws=3)).forecaster.forecast(frames, states, seeds=(3,))
    assert torch.equal(by_option.frames, mean.frames)


def test_a_world_that_never_trained_on_pure_noise_warns_of_its_mean(run: Path) -> None:
    forecaster = forecaster_of(run)
    forecaster.world.knows_mean = FlowConfig(weighting="bell").knows_mean
    with pytest.warns(UserWarning, match="no weight in training"):
        forecaster.conditional_mean(4)


def _judged(forecaster: Forecaster) -> Judged:
    return Judged(forecaster=forecaster, protocol="sampling", run="run")


def test_the_protocol_scores_every_row_and_says_what_it_did_not_compute(run: Path, place: Path) -> None:
    loaded = load_forecaster(run, LoadOptions(steps=2, num_samples=3))
    forecaster = loaded.forecaster
    clips = held_out(run, loaded.contract, DataChoice(data=place / "train"), stride=8)
    amount = Amount(num_clips=4, means=(2,), batch_size=3)
    evaluation = score(_judged(forecaster), clips, amount, out=RunDir(run).evaluation)
    names = [row.id for row in evaluation.rows]
    assert names[:6] == ["mean_3", "mean_2", "sample", "conditional_mean_1", "conditional_mean_4", "medoid"]
    assert {"shuffled_states", "copy_last", "copy_last_blurred", "reconstruction"} <= set(names)
    assert {"lpips", "fid", "unconditional"} <= set(evaluation.not_computed)
    copy = next(row for row in evaluation.rows if row.id == "copy_last")
    expected = []
    for number in (0, 3, 5, 8):  # evenly spread over nine
        frames = clips[number].frames
        assert frames is not None
        expected.append(10 * np.log10(255**2 / (frames[76].double() - frames[16].double()).square().mean().item()))
    assert copy.metrics["psnr_db_last"].mean == pytest.approx(np.mean(expected), abs=1e-3)
    assert len(evaluation.curves["psnr_db"]["sample"]) == 15
    assert (run / "evaluation/forecasts.npz").exists()


def test_an_evaluation_has_the_conditional_means_that_are_asked_for(run: Path, tmp_path: Path) -> None:
    few: dict[str, Any] = {"window_stride": 8, "num_clips": 2, "steps": 1, "condition_samples": 0, "lpips": "off"}
    found = {}
    for draws in ((3, 1), (2,)):
        out = tmp_path / f"{draws}"
        made = evaluate(run, EvaluateOptions(mean_draws=draws, out=out, **few))
        found[draws] = [row.id for row in made.rows if row.id.startswith("conditional_mean")]
        assert made.settings["mean_draws"] == ", ".join(map(str, draws))
        told = Receipt.load(out / "receipt.json")
        assert told.identities.options["mean_draws"] == [*draws]
        assert parse(shlex.split(told.command)[1:]).mean_draws == draws
        [study] = [one for one in made.findings if one.id == "uncertainty"]
        signals = {line.label for line in study.tables[0].lines}
        assert ("disagreement of estimates" in signals) == (len(draws) > 1)
        assert ("instability of the flow" in signals) == (1 in draws)
    assert [*found.values()] == [["conditional_mean_1", "conditional_mean_3"], ["conditional_mean_2"]]


def test_numbers_do_not_depend_on_the_batch_size(run: Path, place: Path, tmp_path: Path) -> None:
    loaded = load_forecaster(run, LoadOptions(steps=2, num_samples=2))
    clips = held_out(run, loaded.contract, DataChoice(data=place / "train"), stride=8)
    found = []
    for size in (1, 4):
        amount, out = Amount(num_clips=4, batch_size=size), tmp_path / str(size)
        evaluation = score(_judged(loaded.forecaster), clips, amount, out=out)
        found.append({row.id: row.metrics["psnr_db_last"].mean for row in evaluation.rows})
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_episodes_that_are_all_too_short_are_refused_before_encoding(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no window of 101 frames in the 3 episodes, which have 93 frames"):
        encode_into(place, tmp_path / "out", pattern=FramePattern(window=101, stride=5))
    assert not (tmp_path / "out").exists()
