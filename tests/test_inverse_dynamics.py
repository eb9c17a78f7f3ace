"""Inverse dynamics: states are learned from frames at any pace; the model is trained, kept and refused like others."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import moving_square, randomise, write_squares
from torch import Tensor

from worldline.data.augment import AugmentConfig
from worldline.data.clips import DataConfig
from worldline.families.card import describe_model
from worldline.families.config import TrainConfig
from worldline.families.load import load_forecaster, prepare
from worldline.judges.inverse_dynamics import InverseDynamics, InverseDynamicsConfig, explained
from worldline.nn.optimizer import OptimizerConfig
from worldline.nn.pictures import blurred
from worldline.planning.plan import plan
from worldline.rundir import RunDir, load_tensors, model_folder
from worldline.schema import Batch, Origin, UsageError
from worldline.training.loop import train

SMALL = InverseDynamicsConfig(widths=(24,), blocks=(1,), places=8, hidden=32, longest_gap=4, blur=0.2)


def squares(clips: int, length: int = 12, seed: int = 0) -> Batch:
    """Clips of a square whose place the two states give."""
    made = [moving_square(length, seed=seed + i) for i in range(clips)]
    frames = torch.stack([torch.from_numpy(f).permute(0, 3, 1, 2) for f, _ in made])
    states = torch.stack([torch.from_numpy(s) for _, s in made])
    origins = tuple(Origin(source="drawn", episode=i, start=0) for i in range(clips))
    return Batch(frames=frames, states=states, fps=30.0, origins=origins)


def learned(steps: int = 160) -> InverseDynamics:
    """A small model that has seen 32 clips of squares."""
    torch.manual_seed(0)
    model, batch = SMALL.build(2).train(), squares(32)
    rows = batch.states.flatten(0, 1)
    model.set_statistics(rows.mean(dim=0), rows.std(dim=0))
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=5e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(batch, generator)[0].backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def model() -> InverseDynamics:
    return learned()


@pytest.mark.parametrize("pace", [1, 2, 4])
def test_it_reads_new_clips_at_any_pace_far_better_than_the_mean(model: InverseDynamics, pace: int) -> None:
    new = squares(16, seed=500)
    assert new.frames is not None
    times = range(pace, 12, pace)
    read = model.read(new.frames[:, pace::pace], new.frames[:, 0], times=[t / 30 for t in times], began=0.0)
    true = new.states[:, pace::pace]
    assert read.shape == true.shape
    found = explained(read.flatten(0, 1), true.flatten(0, 1))
    assert found.min() > 0.7, found


def test_a_frame_that_is_repeated_is_read_beside_an_earlier_one(model: InverseDynamics) -> None:
    new = squares(2, seed=900)
    assert new.frames is not None
    frames = new.frames[:, [4, 8, 8]]
    read = model.read(frames, new.frames[:, 0], times=[4 / 30, 8 / 30, 8 / 30], began=0.0)
    assert torch.isfinite(read).all()
    assert torch.equal(read[:, 1], read[:, 2])


def test_pictures_may_have_another_size_that_patches_divide() -> None:
    model = InverseDynamicsConfig().build(3).eval()
    before = torch.zeros(1, 3, 24, 40, dtype=torch.uint8)
    assert model.read(before[:, None], before, times=[0.1], began=0.0).shape == (1, 1, 3)
    odd = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    with pytest.raises(UsageError, match="frames of 20x20 do not divide into squares of 8 px"):
        model.read(odd[:, None], odd, times=[0.1], began=0.0)


def test_the_time_between_frames_matters() -> None:
    model = SMALL.build(2).eval()
    randomise(model)
    frames = squares(1).frames
    assert frames is not None
    near, far = (model.read(frames[:, 1:2], frames[:, 0], times=[t], began=0.0) for t in (1 / 30, 0.2))
    assert not torch.allclose(near, far)


def test_pairs_are_drawn_at_every_pace_with_the_state_of_the_second_frame() -> None:
    model, batch = SMALL.build(2), squares(40, length=5)
    assert batch.frames is not None
    before, now, seconds, states = model.drawn(batch, torch.Generator().manual_seed(0))
    gaps = (seconds * 30).round().long()
    assert set(gaps.tolist()) == {1, 2, 3, 4}
    clip = torch.arange(40).repeat_interleave(SMALL.pairs)
    for i in range(len(gaps)):
        end = int((batch.states[clip[i]] == states[i]).all(dim=1).nonzero()[0])
        shown = batch.frames[clip[i], [end - int(gaps[i]), end]].float() / 127.5 - 1
        assert torch.equal(torch.stack([before[i], now[i]]), shown)


def test_blurring_keeps_brightness_and_touches_a_share_of_the_frames() -> None:
    frames = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(blurred(frames, 0.0, torch.Generator().manual_seed(0)), frames)
    soft = blurred(frames, 0.5, torch.Generator().manual_seed(0))
    touched = (soft != frames).flatten(1).any(dim=1).float().mean()
    assert 0.35 < touched < 0.65
    even = torch.full((3, 3, 8, 8), 0.25)
    torch.testing.assert_close(blurred(even, 1.0, torch.Generator().manual_seed(0)), even)


def test_explained_is_the_share_of_the_variance() -> None:
    true = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
    read = torch.tensor([[0.5, 5.0], [1.5, 4.0]])
    assert explained(read, true).tolist() == pytest.approx([1 - 0.5 / 2, 0.0])


# --- as a run ---


def run_on_squares(root: Path, **changes: object) -> TrainConfig:
    write_squares(root / "train", 6, length=36)
    write_squares(root / "val", 2, length=30, first=90)
    config = TrainConfig(
        model=replace(SMALL, pairs=8),
        data=DataConfig(path=root / "train", val_path=root / "val", image_size=16, window_stride=2, cache=root / "c"),
        optimizer=OptimizerConfig(lr=5e-3, warmup_steps=5, ema_decay=0.9),
        batch_size=8,
        steps=6,
        device="cpu",
        validation_clips=4,
    )
    return replace(config, **changes)  # pyright: ignore[reportArgumentType]


def _weights(run: Path) -> dict[str, Tensor]:
    return load_tensors(model_folder(run) / "model.safetensors")


def test_a_run_is_trained_resumed_exactly_described_and_loaded(tmp_path: Path) -> None:
    config = run_on_squares(tmp_path)
    whole = train(config, tmp_path / "whole")
    assert whole.figures.keys() >= {"train/state_error", "val/state_error"}
    train(replace(config, steps=3, optimizer=replace(config.optimizer, schedule="constant")), tmp_path / "other")
    cut = replace(config, max_minutes=1e-6)
    stopped = train(cut, tmp_path / "cut")
    assert stopped.step == 1
    train(config, tmp_path / "cut", resume=True)
    for name, value in _weights(tmp_path / "whole").items():
        assert torch.equal(value, _weights(tmp_path / "cut")[name]), name
    card = describe_model(model_folder(tmp_path / "whole"))
    assert card.promise.state_names == ("elbow", "gripper")
    assert card.promise.grid is None
    assert card.statistics is not None
    assert card.trained_on is not None
    assert torch.allclose(_weights(tmp_path / "whole")["mean"], torch.tensor(card.statistics.mean))
    assert RunDir(tmp_path / "whole").checkpoints()


def test_a_finished_run_knows_what_of_it_is_readable(tmp_path: Path) -> None:
    config = run_on_squares(tmp_path)
    train(replace(config, steps=60), tmp_path / "run")
    assert _weights(tmp_path / "run")["r2"].max() > 0.3


def test_what_is_readable_is_measured_where_the_model_is_and_keeps_no_graph(tmp_path: Path) -> None:
    config = run_on_squares(tmp_path)
    made = prepare(config)
    made.kind.finish(made.model, made, replace(config, device="cuda:7"))  # each rank has a device of its own
    assert made.model.r2.any()
    assert not made.model.r2.requires_grad


def test_what_cannot_be_read_from_is_refused(tmp_path: Path) -> None:
    config = run_on_squares(tmp_path)
    flipped = replace(config.data, augment=AugmentConfig(flip=0.5))
    with pytest.raises(UsageError, match="flipped image no longer shows the states"):
        train(replace(config, data=flipped), tmp_path / "run")
    with pytest.raises(UsageError, match=r"frames of 18 px do not divide .* \(--data.image-size\)"):
        train(replace(config, data=replace(config.data, image_size=18)), tmp_path / "run")
    with pytest.raises(UsageError, match="--tokenizer would change nothing"):
        train(replace(config, tokenizer=tmp_path), tmp_path / "run")
    with pytest.raises(UsageError, match="one number for each of the 2 widths"):
        InverseDynamicsConfig(widths=(8, 8), blocks=(1,))
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_it_is_no_world_and_no_tokenizer(tmp_path: Path) -> None:
    train(run_on_squares(tmp_path, steps=1), tmp_path / "run")
    with pytest.raises(UsageError, match="holds a judge, which forecasts nothing"):
        load_forecaster(tmp_path / "run")


def test_it_is_planned() -> None:
    from worldline.recipes import inverse_dynamics_tiny

    found = plan(inverse_dynamics_tiny())
    assert found.kind == "inverse-dynamics"
    assert found.parameters < 500_000  # under 1 MB in float16
    assert [verb.name for verb in found.verbs] == ["evaluate"]
