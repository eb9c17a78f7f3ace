"""The success classifier: it learns what moved, its errors are those by hand, and it survives a folder."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.cli.policies import told
from worldline.files import read_json, write_json
from worldline.judges.success import (
    Attempts,
    Errors,
    SuccessConfig,
    SuccessNetwork,
    SuccessReader,
    errors_of,
    load_success,
    read_all,
    save_success,
    spread_over,
    train_success,
)
from worldline.nn.fit import FitConfig
from worldline.policies.make import Made
from worldline.rundir import from_json, to_json
from worldline.schema import DataError, UsageError

SMALL = SuccessConfig(tasks=("left", "right"), side=16, looks=2, width=8, fit=FitConfig(steps=40, batch_size=16))


def attempts(count: int, seed: int) -> Attempts:
    """A bright square that goes up in a success, and stays in a failure; half of each task."""
    rng = np.random.default_rng(seed)
    task, moves = np.arange(count) % 2, np.arange(count) // 2 % 2
    frames = rng.integers(60, 80, (count, 4, 3, 16, 16), dtype=np.uint8)
    for i in range(count):
        column = rng.integers(0, 12)
        for time in range(4):
            row = 10 - 3 * time * moves[i]
            frames[i, time, :, row : row + 4, column : column + 4] = 230
    done = np.where(moves, 6, -1)
    return Attempts(
        tasks=SMALL.tasks, task=task, start=np.arange(count), times=np.arange(0, 12, 3), frames=frames, done=done
    )


def reader(config: SuccessConfig = SMALL) -> SuccessReader:
    torch.manual_seed(0)
    return SuccessReader(config, SuccessNetwork(config))


def test_it_learns_what_success_looks_like() -> None:
    made, held_out = train_success(attempts(64, 0), SMALL, choosing=attempts(32, 2)), attempts(40, 1)
    found = errors_of(read_all(made, held_out), held_out.succeeded, held_out.start)
    assert found.accuracy.mean > 0.9
    assert found.auroc.mean > 0.95
    assert found.optimism.mean < 0.3
    again = train_success(attempts(64, 0), SMALL, choosing=attempts(32, 2))
    assert torch.equal(read_all(made, held_out), read_all(again, held_out))


def test_what_cannot_be_learned_is_refused() -> None:
    all_failures = replace(attempts(8, 0), done=np.full(8, -1))
    with pytest.raises(UsageError, match="'left' cannot be learned: 0 of 4"):
        train_success(all_failures, SMALL)


def test_errors_are_those_by_hand() -> None:
    chances, truth = torch.tensor([0.9, 0.8, 0.3, 0.6]), np.array([True, True, True, False])
    found = errors_of(chances, truth, np.arange(4))
    assert found.accuracy.mean == 0.5
    assert found.auroc.mean == pytest.approx(2 / 3)
    assert found.calibration.mean == pytest.approx((0.1 + 0.2 + 0.7 + 0.6) / 4)
    assert found.optimism.mean == pytest.approx(0.6)
    assert (found.episodes, found.successes) == (4, 3)


def test_errors_where_every_attempt_succeeded() -> None:
    """A few attempts of an easy task: there is no failure whose chance could be too high."""
    found = errors_of(torch.tensor([0.9, 0.8, 0.3]), np.array([True, True, True]), np.arange(3))
    assert found.accuracy.mean == pytest.approx(2 / 3)
    assert all(math.isnan(figure.mean) for figure in (found.optimism, found.auroc))
    assert from_json(Errors, to_json(Errors, found), Path("config.json")).successes == 3
    assert "nan" not in told(Made(out=Path("out"), policies={}, errors={"all": found}))


def test_frames_from_first_to_last_are_looked_at() -> None:
    assert spread_over(46, 6) == (0, 9, 18, 27, 36, 45)
    assert spread_over(2, 4) == (0, 0, 1, 1)


def test_it_reads_tensors_arrays_and_one_task_alike() -> None:
    judge, frames = reader(), torch.from_numpy(attempts(4, 0).frames)
    chance = judge.chance(frames, task="left")
    assert chance.shape == (4,)
    assert ((chance > 0) & (chance < 1)).all()
    assert torch.equal(judge.of("left").chance(frames, None), chance)
    assert np.allclose(judge.chances("left", frames.permute(0, 1, 3, 4, 2).numpy()), chance.numpy(), atol=1e-6)
    doubled = frames.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    assert torch.allclose(judge.chance(doubled, task="left"), chance, atol=1e-5)
    with pytest.raises(UsageError, match="'lift'"):
        judge.of("lift")
    with pytest.raises(UsageError, match="two frames at least"):
        judge.chance(frames[:, :1], task="left")


def test_saved_and_loaded_it_reads_alike_and_has_an_identity(tmp_path: Path) -> None:
    first = save_success(tmp_path / "a", reader(), {"note": "one"})
    frames = torch.from_numpy(attempts(4, 0).frames)
    assert torch.equal(load_success(tmp_path / "a").chance(frames, task="left"), reader().chance(frames, task="left"))
    assert len(first.identity) == 64
    assert save_success(tmp_path / "b", reader(), {"note": "two"}).identity == first.identity
    other = reader(replace(SMALL, looks=3))
    assert save_success(tmp_path / "c", other, {}).identity != first.identity


def test_folders_that_hold_no_classifier_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of a success classifier"):
        load_success(tmp_path / "none")
    save_success(tmp_path / "a", reader(), {})
    content = read_json(tmp_path / "a/config.json")
    write_json(tmp_path / "a/config.json", {"config": content["config"] | {"kind": "cloned"}})
    with pytest.raises(DataError, match="success classifier"):
        load_success(tmp_path / "a")
    write_json(tmp_path / "a/config.json", content)
    (tmp_path / "a/model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        load_success(tmp_path / "a")
