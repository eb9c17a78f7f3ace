"""Training over two processes: it is the training of one, the model is really sharded, and checkpoints fit both."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks_worker
import torch
from builders import (
    SMALL_TOKENIZER,
    SMALL_WORLD,
    TOKEN_GRID,
    StoppedAfter,
    arrays_in,
    small_tokenizer,
    write_followed_tokens,
    write_squares,
)
from tolerances import assert_whole_agrees
from torch import nn

from worldline.data.augment import AugmentConfig
from worldline.data.clips import DataConfig
from worldline.evaluation.result import Evaluation
from worldline.families.card import ModelCard
from worldline.families.config import TrainConfig
from worldline.families.load import load_world
from worldline.files import write_json
from worldline.nn.optimizer import OptimizerConfig
from worldline.nn.weights import changing_state, load_weights
from worldline.ranks import Ranks, shards_of, whole
from worldline.rundir import RunDir, load_tensors, to_json, write_model
from worldline.schema import DataError, UsageError
from worldline.training.checkpoint import restore, save_checkpoint
from worldline.training.loop import train


def _world(tmp: Path, **changes: Any) -> TrainConfig:
    """A world whose training has no randomness, with all else that could differ between one rank and two."""
    if not (tmp / "tokens").exists():
        write_followed_tokens(tmp / "tokens/train", 4)
        write_followed_tokens(tmp / "tokens/val", 2, seed=1)
    return replace(
        TrainConfig(
            model=replace(SMALL_WORLD, dropout=0.0, normalise_states=True),
            data=DataConfig(path=tmp / "tokens/train", val_path=tmp / "tokens/val", window_stride=17),
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1, clip_norm=1.0, ema_decay=0.8),
            batch_size=8,
            accumulate=2,
            steps=4,
            device="cpu",
            log_every=1,
            evaluate_every=2,
            checkpoint_every=2,
            keep_checkpoints=3,
            validation_clips=4,
        ),
        **changes,
    )


def _launch(command: list[str], *, processes: int = 2) -> list[tuple[int, str]]:
    """Run a command as so many processes, as torchrun does; give the exit code and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(i), "LOCAL_RANK": str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        errors = [process.communicate(timeout=1200)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


def _work(folder: Path, *jobs: str) -> dict[str, list[dict[str, Any]]]:
    """Have two processes do jobs of ranks_worker.py; their results by job, in order of rank."""
    ended = _launch([sys.executable, ranks_worker.__file__, str(folder), *jobs])
    assert [code for code, _ in ended] == [0, 0], "\n".join(error for _, error in ended)
    return {job: [json.loads((folder / f"{job}.{rank}.json").read_text()) for rank in range(2)] for job in jobs}


def _log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def _tensors(run: Path, name: str, step: int) -> dict[str, torch.Tensor]:
    return load_tensors(RunDir(run).checkpoint(step) / f"{name}.safetensors")


def _assert_equal(one: Path, two: Path, step: int) -> None:
    """The files of two checkpoints, bit for bit."""
    for name in ("model", "trainer"):
        expected, found = _tensors(one, name, step), _tensors(two, name, step)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert value.dtype == found[key].dtype
            assert torch.equal(value, found[key]), key


def _assert_close(one: Path, two: Path, step: int) -> None:
    """Figures and weights up to rounding: gradients are summed in another order.

    Adding a bias to all keys of an attention changes nothing, so its gradient is rounding noise, which AdamW scales up.
    """
    for expected, found in zip(_log(one), _log(two), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    for name in ("model", "trainer"):
        expected, found = _tensors(one, name, step), _tensors(two, name, step)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            if name == "model" and not key.endswith("k_norm.bias"):
                assert_whole_agrees(found[key], value, share=1e-3)


def _cut(run: Path, to: Path, step: int) -> None:
    """A copy of a run as if it had been killed right after the checkpoint of a step."""
    shutil.copytree(run, to)
    for checkpoint in (to / "checkpoints").iterdir():
        if checkpoint != RunDir(to).checkpoint(step):
            shutil.rmtree(checkpoint)


# --- two processes ---


@dataclass(frozen=True)
class Pair:
    """What two processes did, one job after the other: to start them takes longer than to do most jobs."""

    folder: Path
    config: TrainConfig
    """Of the world that one process trained in `one`."""
    done: dict[str, list[dict[str, Any]]]
    """What each found, by job."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    config = _world(folder)
    train(config, folder / "one")
    _cut(folder / "one", folder / "one_then_two", 2)
    ranks_worker.adapt(folder, Ranks())
    write_json(folder / "config.json", to_json(TrainConfig, config))
    diverging = replace(config, optimizer=OptimizerConfig(lr=1e30, warmup_steps=0))
    write_json(folder / "diverging.json", to_json(TrainConfig, diverging))
    _write_frames(folder, config)
    _train_tokenizer(folder, config)
    _begin_to_judge(folder)
    jobs = ["learn", "terminated", "shares", "agree", "data", "adapt", "adapted_again", "judge", "evaluated"]
    jobs += ["driven", "forecasts", "tokenizer", *(["wan", "vae"] if find_spec("diffusers") else []), "diverge"]
    return Pair(folder, config, _work(folder, *jobs))


@pytest.mark.slow
def test_two_ranks_train_as_one_and_go_on_from_each_others_checkpoints(pair: Pair) -> None:
    folder, learned, terminated = pair.folder, pair.done["learn"], pair.done["terminated"]
    _assert_close(folder / "one", folder / "two", 4)
    _assert_close(folder / "one", folder / "one_then_two", 4)
    assert learned[0] == learned[1], "figures are means over the ranks"
    load_world(folder / "two")  # by one process, as any other
    _cut(folder / "two", folder / "two_then_one", 2)
    train(pair.config, folder / "two_then_one", resume=True)
    _assert_close(folder / "two", folder / "two_then_one", 4)

    assert all(found["stopped"] and found["at"] in (1, 2, 3) for found in terminated)
    assert terminated[0]["at"] == terminated[1]["at"]
    _assert_equal(folder / "two", folder / "terminated", 4)


@pytest.mark.slow
def test_two_ranks_share_a_model_their_word_and_what_is_made_of_frames(pair: Pair) -> None:
    _assert_sharded(pair.done["shares"])
    _assert_agreed(pair.done["agree"])
    _assert_shared(pair.folder, pair.done["data"])
    _assert_adapted(pair.folder, pair.done["adapt"])


@pytest.mark.slow
def test_two_ranks_judge_and_forecast_as_one(pair: Pair) -> None:
    _assert_judged(pair.folder, pair.done["judge"])
    alone = _alone(ranks_worker.forecasts, pair.folder)
    assert pair.done["forecasts"] == [alone, alone]
    assert _digests(pair.folder / "forecast_by_1") == _digests(pair.folder / "forecast_by_2")


def _alone(job: Callable[[Path, Ranks], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What one process finds, with as many threads as the workers have: the same program again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return job(folder, Ranks())
    finally:
        torch.set_num_threads(threads)


def _assert_sharded(shares: list[dict[str, Any]]) -> None:
    """Every parameter is on both ranks in part, and each rank holds about half of all."""
    by_rank = [found["shares"] for found in shares]
    buffers = {"states.mean", "states.scale"}
    assert {name for name, (here, _) in by_rank[0].items() if here is None} == buffers
    for name in by_rank[0].keys() - buffers:
        assert by_rank[0][name][0] + by_rank[1][name][0] == by_rank[0][name][1], name
    total = sum(size for name, (_, size) in by_rank[0].items() if name not in buffers)
    for found in by_rank:
        assert sum(here or 0 for here, _ in found.values()) == pytest.approx(total / 2, rel=0.05)


def _assert_agreed(said: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(said):
        assert found["everyones"] == [0, 1]
        assert found["told"] == "from 0"
        assert found["failed"] == ["no such data", "rank 0 stopped: UsageError: no such data"][rank]
        assert found["there_before"] == rank, "rank 0 goes first"


def _write_frames(tmp: Path, config: TrainConfig) -> None:
    """Three episodes, a tokenizer, and a world that trains on them by it."""
    write_squares(tmp / "squares", 3)
    (tmp / "tokenizer").mkdir()
    tokenizer = small_tokenizer()
    write_model(tmp / "tokenizer", ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
    frames = DataConfig(path=tmp / "squares", train_episodes=":-1", val_episodes="-1:", window_stride=17)
    on_frames = replace(config, data=frames, tokenizer=tmp / "tokenizer", start_offsets=2)
    write_json(tmp / "on_frames.json", to_json(TrainConfig, on_frames))


def _assert_shared(folder: Path, said: list[dict[str, Any]]) -> None:
    """Two ranks are one owner of a folder: they share the work, write the bytes of one, and are refused together."""
    alone = _alone(ranks_worker.data, folder)
    assert (alone["made"], alone["reused"]) == ([3, 15, 15, 6, 2], 3)
    for found in said:
        assert (found["made"], found["reused"]) == (alone["made"], alone["reused"]), "all ranks report the whole"
        assert "tokens made with another start_offsets" in found["refused"]
    assert _digests(folder / "made_by_1") == _digests(folder / "made_by_2")


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _assert_adapted(folder: Path, done: list[dict[str, Any]]) -> None:
    """A frozen bfloat16 base under float32 adapters: trained alike, and never saved."""
    one, two = folder / "adapted_1", folder / "adapted_2"
    trainable = {f"blocks.{i}.{name}" for i in range(3) for name in ("down", "up", "nothing")}
    for run in (one, two):
        assert _tensors(run, "model", 0).keys() == {*trainable, "first.weight", "first.bias", "rare", "scale"}
        for key, value in _tensors(one, "model", 0).items():
            assert_whole_agrees(_tensors(run, "model", 0)[key], value, share=1e-3)
    assert done[0] == done[1]
    _assert_equal(one, folder / "adapted_again", 0)
    state = ranks_worker.adapted(Ranks())
    restore(RunDir(two), state)
    save_checkpoint(RunDir(folder / "adapted_back"), state, ModelCard(config=SMALL_WORLD), keep=1)
    _assert_equal(two, folder / "adapted_back", 0)


def _begin_to_judge(folder: Path) -> None:
    """One process is stopped after the first of three batches, of what two will go on with."""
    with pytest.raises(KeyboardInterrupt):
        ranks_worker.judge(folder, StoppedAfter(number=1), by=2)
    assert len(list((folder / "judged_2/compression").rglob("batch_*"))) == 1


def _assert_judged(folder: Path, found: list[dict[str, Any]]) -> None:
    """Two ranks find to the last digit what one does, both know it, and one of them writes it."""
    alone = _alone(ranks_worker.judge, folder)
    assert repr(found[0]) == repr(found[1])  # by their text, because NaN is not equal to NaN
    for protocol, expected in alone.items():
        clock = {"seconds", "environment"}
        for name in expected.keys() - clock:
            assert repr(found[0][protocol][name]) == repr(expected[name]), (protocol, name)
        assert expected["data"]["num_clips"] == 5
    for protocol in ("compression", "sampling"):
        one, two = (arrays_in(folder / f"judged_{ranks}/{protocol}/forecasts.npz") for ranks in (1, 2))
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others_with_a_message(tmp_path: Path) -> None:
    write_squares(tmp_path / "raw", 2, length=17)
    video = tmp_path / "raw/videos/video_1.mp4"
    data = video.read_bytes()
    begin = data.index(b"mdat") + 4
    video.write_bytes(data[:begin] + bytes(data.index(b"moov") - begin - 4) + data[data.index(b"moov") - 4 :])
    script = "from worldline.cli.main import main; main()"
    command = [sys.executable, "-c", script, "data", "convert", str(tmp_path / "raw"), str(tmp_path / "out"), "--json"]
    (fine, waiting), (damaged, reason) = _launch(command)
    assert (fine, damaged) == (1, 2)
    assert "video_1.mp4" in reason
    assert "another process of this job has ended" in waiting
    assert not (tmp_path / "out/metadata.json").exists(), "an unfinished folder"


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_every_rank_with_the_same_words(pair: Pair) -> None:
    one, two = (found["message"] for found in pair.done["diverge"])
    assert one == two
    assert "at step 1" in one
    assert one.count("Origin(") == 4, "the clips of the rank that met it"


@pytest.mark.slow
def test_the_models_of_the_sampling_track_train_sharded_as_whole(pair: Pair) -> None:
    pytest.importorskip("diffusers")
    for job in ("wan", "vae"):
        expected = getattr(ranks_worker, job)(pair.folder, Ranks())
        for found in pair.done[job]:
            torch.testing.assert_close(
                torch.tensor(found["figures"]), torch.tensor(expected["figures"]), rtol=1e-3, atol=0
            )
            assert_whole_agrees(torch.tensor(found["made"]), torch.tensor(expected["made"]), share=2e-2)
            assert found["saved"] == expected["saved"]
        assert expected["figures"][2][0] < expected["figures"][0][0], "three steps on the same clips lower the loss"


@pytest.mark.slow
def test_a_driven_world_trains_and_is_validated_sharded_as_whole(pair: Pair) -> None:
    expected = ranks_worker.driven(pair.folder, Ranks())
    for found in pair.done["driven"]:
        for name, values in expected.items():
            off = 3e-2 if "halved" in name else 1e-3  # a gradient that came a step late would be off by a tenth
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(values), rtol=off, atol=0)
    assert all(expected[name][2][0] < expected[name][0][0] for name in ("true", "own")), "three steps lower the loss"


def _train_tokenizer(folder: Path, config: TrainConfig) -> None:
    """One process trains a tokenizer, and what it left half-way is what two will go on with."""
    data = DataConfig(
        path=folder / "squares",
        train_episodes=":-1",
        val_episodes="-1:",
        image_size=16,
        window_stride=5,
        cache=folder / "tokenizer_cache",
        augment=AugmentConfig.presets["usual"],
    )
    train(replace(config, model=replace(SMALL_TOKENIZER, past=0), data=data, accumulate=1), folder / "tokenizer_by_1")
    _cut(folder / "tokenizer_by_1", folder / "tokenizer_by_2", 2)


@pytest.mark.slow
def test_two_ranks_go_on_with_a_tokenizer_of_one(pair: Pair) -> None:
    assert [found["step"] for found in pair.done["tokenizer"]] == [4, 4]
    for expected, found in zip(_log(pair.folder / "tokenizer_by_1"), _log(pair.folder / "tokenizer_by_2"), strict=True):
        losses = {name: value for name, value in expected.items() if name.endswith("/loss")}
        assert {name: found[name] for name in losses} == pytest.approx(losses, rel=1e-3)


@pytest.mark.slow
def test_two_ranks_evaluate_a_run_as_one_and_are_refused_together(pair: Pair) -> None:
    alone = _alone(ranks_worker.evaluated, pair.folder)["refused"]
    one, two = (Evaluation.load(pair.folder / f"evaluated_by_{ranks}/metrics.json") for ranks in (1, 2))
    assert one.data == two.data
    assert one.data.num_clips == 4
    for row, other in zip(one.rows, two.rows, strict=True):
        for name, value in row.metrics.items():
            assert other.metrics[name].mean == pytest.approx(value.mean, rel=1e-5), (row.id, name)
    first, second = (found["refused"] for found in pair.done["evaluated"])
    assert "recordings that the run was trained on" in first == alone
    assert second == f"rank 0 stopped: UsageError: {first}"
    assert not (pair.folder / "refused").exists()


# --- one process ---


@pytest.mark.parametrize(("batch", "fits"), [(10, 8), (2, 4), (7, 4)])
def test_a_batch_that_does_not_divide_is_refused_before_anything_is_done(tmp_path: Path, batch: int, fits: int) -> None:
    with pytest.raises(UsageError, match=rf"a batch of {batch} .* 4 processes; .* --batch-size {fits}$"):
        train(_world(tmp_path, batch_size=batch), tmp_path / "run", ranks=Ranks(rank=1, world_size=4))
    assert not (tmp_path / "run").exists()


def test_processes_that_torchrun_did_not_start_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="torchrun"), Ranks.start("cpu"):
        pass


def test_blocks_are_the_elements_of_a_models_own_lists_or_what_it_names() -> None:
    model = SMALL_WORLD.build(TOKEN_GRID, 2)
    model.alone = nn.ModuleList([nn.Linear(2, 2)])
    model.further_in = nn.Sequential(nn.ModuleList(nn.Linear(2, 2) for _ in range(2)))
    assert shards_of(model) == list(model.blocks)
    model.shards = ()  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    assert shards_of(model) == []


# --- what is saved ---


def test_all_but_frozen_parameters_is_saved_and_loaded_strictly(tmp_path: Path) -> None:
    model = ranks_worker.Adapted()
    state = changing_state(model)
    assert model.state_dict().keys() - state.keys() == {
        f"blocks.{i}.base.{w}" for i in range(3) for w in ("weight", "bias")
    }
    assert (
        changing_state(SMALL_WORLD.build(TOKEN_GRID, 2)).keys() == SMALL_WORLD.build(TOKEN_GRID, 2).state_dict().keys()
    )
    load_weights(model, {name: value + 1 for name, value in state.items()}, tmp_path)
    assert torch.equal(model.scale, torch.full((2,), 1.5))
    for wrong in (
        {"rare": torch.ones(5)},
        {**state, "blocks.0.base.bias": torch.ones(8)},
        {**state, "rare": torch.ones(4)},
    ):
        with pytest.raises(DataError, match=r"model\.safetensors"):
            load_weights(model, wrong, tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    ranks_worker.adapt(tmp_path, Ranks())
    state = ranks_worker.adapted(Ranks())
    state.model.rare = nn.Parameter(torch.ones(6))
    with pytest.raises(DataError, match="another shape: rare"):
        restore(RunDir(tmp_path / "adapted_1"), state)


def test_one_process_gathers_nothing_and_copies_nothing() -> None:
    weights = SMALL_WORLD.build(TOKEN_GRID, 2).state_dict()
    kept = whole(weights, keep=True)
    assert all(kept[name] is value for name, value in weights.items())
    assert whole(weights, keep=False) == {}
