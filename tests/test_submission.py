"""Submission files: complete and sound ones pass, everything that can be wrong with one is named, kills do no harm."""

import hashlib
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import GRID_200, arrays_in, small_world
from commands import do
from latent_builders import small_vae
from PIL import Image
from processes import command, ended
from test_forecast_files import (
    write_latent_world,
    write_test_tokens,
    write_test_videos,
    write_tokenizer,
    write_world,
)

from worldline.forecasts import read_forecasts
from worldline.process.categorical import Sampling
from worldline.schema import DataError, UsageError
from worldline.submission import check_submission


def forecast(*words: object) -> None:
    do("forecast", [*map(str, words), "--device", "cpu"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tracks' test sets, and forecasts of them by small worlds: arrays of tokens, pictures of latents."""
    place = tmp_path_factory.mktemp("made")
    world, tokens = write_world(place / "tokens"), write_test_tokens(place / "test", samples=2)
    forecast(world, "--data", tokens, "--out", place / "npz", "--format", "npz")
    vae, _ = small_vae(place / "vae")
    latents, videos = write_latent_world(place / "latents", vae), write_test_videos(place / "test_raw")
    few = ["--steps", 1, "--num-samples", 2]
    forecast(latents, "--data", videos, "--tokenizer", vae, *few, "--mean", "--out", place / "png", "--format", "png")
    forecast(latents, "--data", videos, "--tokenizer", vae, *few, "--out", place / "both", "--format", "png")
    return place


def test_whole_test_sets_of_both_tracks_pass(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    do("submission", [str(made / "npz"), "--data", str(made / "test")])
    said = capsys.readouterr().out
    assert "2 samples as npz by tokens" in said
    assert "each: 1 x 3x2x2 tokens, 200 log-probabilities of each" in said
    assert "no problem found" in said
    assert f"every sample of {made / 'test'} once" in said
    do("submission", [str(made / "png"), "--data", str(made / "test_raw"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["problems"]) == (2, [])
    assert found["contents"] == "1 future of 15 frames 16x16"
    do("submission", [str(made / "png")])
    assert "give it (--data)" in capsys.readouterr().out
    listed = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=made / "png", capture_output=True)
    assert listed.returncode == 0, listed.stderr


def test_the_mean_of_samples_is_one_future(made: Path) -> None:
    means, samples = read_forecasts(made / "png"), read_forecasts(made / "both")
    for name, one in means.items():
        expected = samples[name].video.float().mean(dim=1).round()
        assert torch.equal(one.video[:, 0].float(), expected)
    index = json.loads((made / "png/forecast.json").read_text())
    assert (index["mean_of"], index["num_samples"]) == (2, 1)
    with pytest.raises(UsageError, match="one sample is its own mean"):
        forecast(made / "latents", "--mean")
    with pytest.raises(UsageError, match="--mixture averages"):
        forecast(made / "tokens", "--data", made / "test", "--mean", "--num-samples", 2, "--temperature", 1)


def test_a_mixture_is_written_as_the_mean_of_its_distributions(made: Path, tmp_path: Path) -> None:
    forecast(made / "tokens", "--data", made / "test", "--out", tmp_path, "--format", "npz", "--mixture", 3)
    assert check_submission(tmp_path, made / "test").problems == ()
    one = read_forecasts(tmp_path)["sample_1"]
    assert one.tokens is not None
    assert one.top_ids is not None
    assert one.top_log_probs is not None
    context = torch.from_numpy(np.fromfile(made / "test/videos/video_1.bin", np.int32).reshape(1, 3, 2, 2)).long()
    states = torch.from_numpy(np.fromfile(made / "test/robot_states/states_1.bin", np.float32).reshape(1, 64, 2))
    world = small_world(grid=GRID_200)
    first = next(iter(world.forecast(context, states[:, :34], sampling=Sampling())))
    expected = first.logits.log_softmax(dim=-1).gather(-1, one.top_ids[:, 0])
    torch.testing.assert_close(one.top_log_probs[:, 0], expected, rtol=1e-4, atol=1e-4)  # no guess is made before it
    alone = read_forecasts(made / "npz")["sample_1"]
    assert alone.top_log_probs is not None
    assert torch.equal(one.tokens, alone.tokens), "the greedy roll-out's"  # pyright: ignore[reportArgumentType]
    last = [
        torch.empty(200).scatter(0, made.top_ids[0, 2, 1, 1], made.top_log_probs[0, 2, 1, 1]) for made in (one, alone)
    ]
    assert (last[0] - last[1]).abs().max() > 1e-3, "later grids depend on the guesses of several roll-outs"


# --- what can be wrong ---


def _rewrite(folder: Path, name: str, **changes: Any) -> None:
    """Change arrays of a sample, with hashes as if they had been written so."""
    path = folder / name
    arrays: dict[str, Any] = arrays_in(path)
    np.savez(
        path,
        **{key: change(arrays[key]) for key, change in changes.items()}
        | {k: v for k, v in arrays.items() if k not in changes},
    )
    _hash_again(folder)


def _hash_again(folder: Path) -> None:
    files = sorted(
        path for path in folder.rglob("*") if (path.is_file() and path.parent != folder) or path.suffix == ".npz"
    )
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def _at(index: tuple[int, ...], value: float) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] = value
        return array

    return change


def _index(folder: Path, **changes: Any) -> None:
    path = folder / "forecast.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "not a number": ({"top_log_probs": _at((0, 0, 0, 7), np.nan)}, "log-probabilities of at most 0.* nan"),
    "above one": ({"top_log_probs": lambda x: x * 0 - 1e-3}, r"of at most 1 in all.*sums up to 199\.8"),
    "too little": ({"top_log_probs": lambda x: x - 0.1}, r"that sum to 1.*0\.90"),
    "another token": ({"tokens": _at((0, 0, 0, 0), 200)}, r"tokens from 0 to below 200.*\.\. 200"),
    "a negative one": ({"top_ids": _at((0, 0, 0, 199), -1)}, r"tokens from 0 to below 200.*-1 \.\."),
    "one twice": ({"top_ids": lambda x: x[..., [*range(199), 0]]}, "one twice"),
    "too few": ({name: (lambda x: x[..., :100]) for name in ("top_ids", "top_log_probs")}, "the 200 likeliest.*100"),
}


@pytest.mark.parametrize("fault", ARRAYS)
def test_arrays_that_say_nothing_sensible_are_named(fault: str, made: Path, tmp_path: Path) -> None:
    changes, message = ARRAYS[fault]
    _copy(made / "npz", tmp_path / "out")
    _rewrite(tmp_path / "out", "sample_1.npz", **changes)
    (problem,) = check_submission(tmp_path / "out", made / "test").problems
    assert "sample_1.npz" in problem
    assert _matches(message, problem), problem


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.DOTALL) is not None


def _copy(one: Path, other: Path) -> None:
    subprocess.run(["cp", "-r", one, other], check=True)


FILES: dict[str, tuple[str, str]] = {
    "absent": ("npz", r"1 files are missing: sample_1\.npz"),
    "changed": ("npz", r"1 files are not as they were written: sample_0\.npz"),
    "left over": ("npz", r"1 files are of no sample: old\.txt"),
    "no hashes": ("npz", "SHA256SUMS"),
    "one less": ("npz", r"has no sample_1 \(1 of 2 samples"),
    "a foreign one": ("npz", r"has foreign clip_00003 \(1 of 2"),
    "listed twice": ("npz", "lists sample_0 2 times"),
    "of nothing": ("npz", "does not say what the forecast was made from"),
    "broken picture": ("png", r"frame_076\.png.*a picture"),
    "another size": ("png", "pictures of one size"),
    "one picture less": ("png", r"1 files are missing: sample_1/future_0/frame_020\.png"),
}


@pytest.mark.parametrize("fault", FILES)
def test_files_that_are_not_what_was_written_are_named(fault: str, made: Path, tmp_path: Path) -> None:
    kind, message = FILES[fault]
    folder = tmp_path / "out"
    _copy(made / kind, folder)
    index = json.loads((folder / "forecast.json").read_text())
    samples, picture = index["samples"], folder / "sample_1/future_0/frame_076.png"
    match fault:
        case "absent":
            (folder / "sample_1.npz").unlink()
        case "changed":
            with np.load(folder / "sample_0.npz") as arrays:
                np.savez(folder / "sample_0.npz", **arrays)
        case "left over":
            (folder / "old.txt").write_text("of another day")
        case "no hashes":
            (folder / "SHA256SUMS").unlink()
        case "one less":
            _index(folder, samples=samples[:1])
            (folder / "sample_1.npz").unlink()
            _hash_again(folder)
        case "a foreign one":
            _index(folder, samples=[*samples, samples[0] | {"name": "clip_00003"}])
            _copy(folder / "sample_0.npz", folder / "clip_00003.npz")
            _hash_again(folder)
        case "listed twice":
            _index(folder, samples=[*samples, samples[0]])
        case "of nothing":
            _index(folder, made_from="")
        case "broken picture":
            picture.write_bytes(picture.read_bytes()[:40])
            _hash_again(folder)
        case "another size":
            Image.new("RGB", (16, 18)).save(picture)
            _hash_again(folder)
        case "one picture less":
            picture.with_name("frame_020.png").unlink()
    problems = check_submission(folder, made / f"test{'_raw' * (kind == 'png')}").problems
    assert any(_matches(message, problem) for problem in problems), problems
    with pytest.raises(SystemExit) as ended:
        do("submission", [str(folder), "--data", str(made / f"test{'_raw' * (kind == 'png')}")])
    assert ended.value.code == 2


def test_another_test_set_and_what_is_none_are_told_apart(made: Path, tmp_path: Path) -> None:
    other = write_test_tokens(tmp_path / "other", samples=2)
    (other / "robot_states/states_1.bin").write_bytes((made / "test/robot_states/states_0.bin").read_bytes())
    (problem,) = check_submission(made / "npz", other).problems
    assert "other data than were forecast, under the same names" in problem
    with pytest.raises(UsageError, match="is no test set"):
        check_submission(made / "npz", Path("twin-mini-val"))
    forecast(
        made / "latents",
        "--data",
        made / "test_raw",
        "--tokenizer",
        made / "vae",
        "--steps",
        1,
        "--out",
        tmp_path / "mp4",
    )
    with pytest.raises(UsageError, match="videos to be looked at"):
        check_submission(tmp_path / "mp4")
    with pytest.raises(DataError, match=r"forecast\.json"):
        check_submission(tmp_path)


@pytest.mark.slow
def test_two_processes_are_killed_and_one_goes_on(tmp_path: Path) -> None:
    """What was written stays as it is, what was half written goes, and the whole is sound."""
    world, data = write_world(tmp_path / "world"), write_test_tokens(tmp_path / "test", samples=40)
    write_tokenizer(tmp_path / "tokenizer")
    words = ["forecast", world, "--data", data, "--tokenizer", tmp_path / "tokenizer", "--format", "png", "--rows", "1"]
    words += ["--out", tmp_path / "out", "--device", "cpu"]
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731", "LOCAL_WORLD_SIZE": "2"}
    several = [command(words, **ranks, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    began = time.monotonic()
    while len([*(tmp_path / "out").glob("sample_*")]) < 3 and time.monotonic() - began < 120:
        time.sleep(0.02)
    for process in several:
        process.kill()
        ended(process)
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("sample_*")}
    assert 0 < len(there) < 40
    with pytest.raises(DataError, match="one that was stopped"):
        check_submission(tmp_path / "out", data)
    do("forecast", [str(word) for word in words[1:]])
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in there} == there
    found = check_submission(tmp_path / "out", data)
    assert (found.samples, found.problems) == (40, ())
