"""The training loop: resumed exactly, stopped with a reason, checkpoints that describe themselves, and it learns."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import (
    GRID_200,
    SMALL_TOKENIZER,
    SMALL_WORLD,
    TOKEN_GRID,
    noise_frames,
    small_world,
    token_batch,
    write_followed_tokens,
    write_squares,
)
from data_builders import write_lerobot
from latent_builders import SMALL_VAE
from processes import ended, forked
from tolerances import assert_values_agree
from torch import Tensor, nn

from worldline.contract import FramePattern
from worldline.data.augment import AugmentConfig
from worldline.data.clips import Clips, DataConfig, open_clips
from worldline.data.loader import Loader
from worldline.evaluation.evaluate import EvaluateOptions, evaluate
from worldline.families.card import ModelCard
from worldline.families.compression import autoregressive_loss
from worldline.families.config import TrainConfig
from worldline.families.family import Kind, Prepared, kind_of
from worldline.families.load import load_world, prepare
from worldline.families.tokenizers import load_tokenizer
from worldline.files import read_json
from worldline.formats.open import open_source
from worldline.nn.optimizer import MovingAverage, OptimizerConfig, build_optimizer
from worldline.process.categorical import Sampling
from worldline.ranks import Ranks, has_bfloat16
from worldline.rundir import Best, RunDir, load_tensors, model_folder, save_tensors, write_model
from worldline.schema import Batch, DataError, TokenGrid, UsageError, join, stack
from worldline.tokenizers.wan_vae import WanVAETokenizer
from worldline.training.checkpoint import TrainState, better, evaluated
from worldline.training.loop import NonFiniteLossError, train, validate
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig

CPU = torch.device("cpu")


class _Stop(Exception):  # noqa: N818 - stands for a user's interrupt
    pass


def _world(tmp: Path, **changes: Any) -> TrainConfig:
    """A world on tokens with all that could break a resume switched on: dropout, statistics, moving average."""
    if not (tmp / "tokens").exists():
        write_followed_tokens(tmp / "tokens/train", 4)
        write_followed_tokens(tmp / "tokens/val", 2, seed=1)
    return replace(
        TrainConfig(
            model=replace(
                SMALL_WORLD, dropout=0.2, normalise_states=True, scheduled_sampling=0.8, scheduled_sampling_rise=1.0
            ),
            data=DataConfig(path=tmp / "tokens/train", val_path=tmp / "tokens/val", window_stride=17),
            optimizer=OptimizerConfig(lr=1e-2, warmup_steps=2, clip_norm=1.0, ema_decay=0.8),
            batch_size=4,
            steps=4,
            device="cpu",
            log_every=1,
            evaluate_every=2,
            checkpoint_every=2,
            validation_clips=4,
        ),
        **changes,
    )


def _tokenizer(tmp: Path, **changes: Any) -> TrainConfig:
    """A tokenizer on frames, augmented."""
    if not (tmp / "raw").exists():
        write_squares(tmp / "raw", 3)
    return replace(
        _world(tmp),
        model=SMALL_TOKENIZER,
        data=DataConfig(
            path=tmp / "raw",
            train_episodes=":-1",
            val_episodes="-1:",
            image_size=16,
            window_stride=5,
            cache=tmp / "cache",
            augment=AugmentConfig.presets["usual"],
        ),
        **changes,
    )


def _stopping_at(step: int) -> Callable[..., None]:
    def report(done: int, total: int, figures: dict[str, float]) -> None:
        del total, figures
        if done == step:
            raise _Stop

    return report


def _interrupt(config: TrainConfig, run: Path, step: int) -> None:
    with pytest.raises(_Stop):
        train(config, run, report=_stopping_at(step))


def _log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def _assert_same_end(one: Path, two: Path) -> None:
    """Weights, raw weights and optimizer moments bit for bit, and every logged figure."""
    ends = [RunDir(run).latest() for run in (one, two)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].name == ends[1].name
    for name in ("model.safetensors", "trainer.safetensors"):
        expected, found = (load_tensors(end / name) for end in ends if end)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(value, found[key]), key
    assert _log(one) == _log(two)


# --- resume ---


@pytest.mark.parametrize("make", [_world, _tokenizer])
def test_two_steps_and_two_more_are_four_steps(tmp_path: Path, make: Callable[[Path], TrainConfig]) -> None:
    config = make(tmp_path)
    train(config, tmp_path / "whole")
    _interrupt(config, tmp_path / "parts", 2)
    result = train(config, tmp_path / "parts", resume=True)
    assert (result.step, result.total_steps) == (4, 4)
    _assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_steps_behind_the_last_whole_checkpoint_are_made_again(tmp_path: Path) -> None:
    config = _world(tmp_path)
    train(config, tmp_path / "whole")
    _interrupt(config, tmp_path / "parts", 3)
    assert [line["step"] for line in _log(tmp_path / "parts")] == [1, 2, 3]
    half = tmp_path / "parts/checkpoints/.step_0000004.99.tmp"
    half.mkdir()
    (half / "model.json").write_text("{")
    train(config, tmp_path / "parts", resume=True)
    _assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_run_stopped_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    config = _world(tmp_path)
    train(config, tmp_path / "whole")
    _interrupt(config, tmp_path / "parts", 1)
    assert RunDir(tmp_path / "parts").latest() is None
    train(config, tmp_path / "parts", resume=True)
    _assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_out_of_time_it_stops_with_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    config = _world(tmp_path, evaluate_every=1, steps=2)
    train(config, tmp_path / "whole")
    result = train(replace(config, max_minutes=1e-9), tmp_path / "parts")
    assert (result.step, result.total_steps) == (1, 2)
    train(replace(config, max_minutes=None), tmp_path / "parts", resume=True)
    _assert_same_end(tmp_path / "whole", tmp_path / "parts")


# --- stopped, damaged, best ---


def test_sigterm_saves_the_running_step_and_the_resumed_run_is_exact(tmp_path: Path) -> None:
    config = _world(tmp_path, steps=5, evaluate_every=3, checkpoint_every=5)
    train(config, tmp_path / "whole")

    def report(done: int, total: int, figures: dict[str, float]) -> None:
        del total, figures
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    result = train(config, tmp_path / "parts", report=report)
    assert (result.step, result.total_steps, result.stopped) == (2, 5, True)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not train(config, tmp_path / "parts", resume=True).stopped
    _assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_the_command_line_ends_with_0_when_it_is_told_to_stop(tmp_path: Path) -> None:
    few = ["--data.train-episodes", ":2", "--data.val-episodes", ":1", "--data.cache", str(tmp_path / "cache")]
    small = "--batch-size 2 --validation-clips 2 --model.kernel 3 --model.levels 8 5 5"
    few += f"{small} --model.widths 8 16 --model.blocks 1 1".split()
    recipe = ["tokenizer_tiny", *few, "--steps", "9999", "--workers", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "worldline", "train", *recipe, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not (tmp_path / "run/metrics.jsonl").exists():
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGTERM)  # as schedulers do: to the workers too
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "stopped by SIGTERM, with a checkpoint; to go on: worldline train --resume" in said
    assert RunDir(tmp_path / "run").latest() is not None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_of_a_cut_newest_checkpoint_the_one_before_is_taken_and_it_is_said(tmp_path: Path) -> None:
    config, run = _world(tmp_path), tmp_path / "run"
    train(config, run)
    whole = shutil.copytree(run, tmp_path / "whole")
    newest, older = RunDir(run).checkpoint(4), RunDir(run).checkpoint(2)
    expected = load_tensors(older / "model.safetensors")
    _cut(newest / "trainer.safetensors")
    load_world(run)  # needs the model alone, which is whole
    _cut(newest / "model.safetensors")
    with pytest.warns(UserWarning, match=r"step_0000004/model.safetensors: .* Going on with .*step_0000002"):
        world, card = load_world(run)
    assert card.step == 2
    assert all(torch.equal(value, expected[name]) for name, value in world.state_dict().items())
    with pytest.warns(UserWarning, match=r"Going on with .*step_0000002"):
        train(config, run, resume=True)
    _assert_same_end(whole, run)
    assert (run / "checkpoints/damaged_step_0000004").is_dir()
    for folder in RunDir(run).checkpoints():
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"step_0000004/model\.safetensors"):
        load_world(run)


def test_the_best_checkpoint_is_kept_and_known_after_a_resume(tmp_path: Path) -> None:
    changes = {"steps": 3, "evaluate_every": 1, "checkpoint_every": 3, "keep_checkpoints": 1, "keep_best": "val/loss"}
    optimizer = OptimizerConfig(lr=0.3, warmup_steps=0, schedule="constant")  # so that the last is not the best
    config = _world(tmp_path, optimizer=optimizer, **changes)
    train(config, tmp_path / "whole")
    values = {line["step"]: line["val/loss"] for line in _log(tmp_path / "whole")}
    step = min(values, key=lambda number: values[number])
    assert step < 3, values
    assert RunDir(tmp_path / "whole").best() == Best(metric="val/loss", step=step, value=values[step])
    assert [folder.name[-1] for folder in RunDir(tmp_path / "whole").checkpoints()] == [str(step), "3"]
    assert read_json(model_folder(tmp_path / "whole", "best") / "model.json")["step"] == step
    assert read_json(model_folder(tmp_path / "whole", "3") / "model.json")["step"] == 3
    with pytest.raises(UsageError, match=rf"no checkpoint '2'.*best and steps {step}, 3$"):
        model_folder(tmp_path / "whole", "2")
    _interrupt(config, tmp_path / "parts", step + 1)
    train(config, tmp_path / "parts", resume=True)
    _assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert RunDir(tmp_path / "parts").best() == RunDir(tmp_path / "whole").best()
    assert model_folder(tmp_path / "parts", "best").is_dir()


def test_of_figures_with_dots_and_names_the_better_is_known() -> None:
    low, high = (Best(metric="val/loss", step=i, value=float(i)) for i in (1, 2))
    assert better(better(None, high), low) == low
    assert better(low, replace(low, step=9)) == low, "of equals the first"
    assert better(low, replace(low, value=math.nan)) == low
    for metric in ("val/psnr_db", "val/ssim", "val/accuracy", "val/tokens_used"):
        low, high = (replace(one, metric=metric) for one in (low, high))
        assert better(low, high) == high


def test_a_figure_that_validation_does_not_have_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no figure 'val/los' .*; it has val/loss"):
        train(_world(tmp_path, keep_best="val/los"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_minus_nine_and_resumed_is_as_if_never_killed(tmp_path: Path) -> None:
    config = _tokenizer(tmp_path)
    train(config, tmp_path / "whole")

    def report(done: int, total: int, figures: dict[str, float]) -> None:
        del total, figures
        if done == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(forked(lambda: train(config, tmp_path / "killed", report=report))) == -signal.SIGKILL
    train(config, tmp_path / "killed", resume=True)
    _assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    config = _world(tmp_path, steps=1)
    train(config, tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match="holds a run already"):
        train(config, tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


SECOND = """
import sys
from pathlib import Path
from worldline.files import read_json
from worldline.rundir import from_json
from worldline.schema import UsageError
from worldline.families.card import ModelCard
from worldline.families.config import TrainConfig
from worldline.training.loop import train

path = Path(sys.argv[1])
config = from_json(TrainConfig, read_json(path / "config.json"), path)
for resume in (False, True):
    try:
        train(config, path, resume=resume)
    except UsageError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_second_training_in_the_same_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    config, run, said = _world(tmp_path), tmp_path / "run", []

    def report(done: int, total: int, figures: dict[str, float]) -> None:
        del total, figures
        if done == 3:
            started = subprocess.run([sys.executable, "-c", SECOND, str(run)], capture_output=True, text=True)
            said.extend(started.stdout.splitlines() or [started.stderr])

    train(config, run, report=report)
    assert len(said) == 2, said
    assert all(f"{run} is in use by process {os.getpid()} on " in line for line in said)
    train(config, tmp_path / "undisturbed")
    _assert_same_end(tmp_path / "undisturbed", run)


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 2}, {"log_every": 9}])
def test_another_configuration_cannot_be_resumed(tmp_path: Path, change: dict[str, Any]) -> None:
    config = _world(tmp_path, steps=1)
    train(config, tmp_path / "run")
    with pytest.raises(UsageError, match="another configuration"):
        train(replace(config, **change), tmp_path / "run", resume=True)


def test_nothing_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        train(_world(tmp_path), tmp_path / "run", resume=True)


def test_a_request_that_fails_does_not_take_the_folder(tmp_path: Path) -> None:
    config = _world(tmp_path, steps=1)
    wrong = replace(config, data=replace(config.data, path=tmp_path / "absent"))
    later = replace(config, init_from=tmp_path / "absent")  # refused when all else is prepared
    for refused in (wrong, later):
        with pytest.raises((DataError, UsageError)):
            train(refused, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert train(config, tmp_path / "run").step == 1


# --- one step ---


def test_a_loss_that_is_no_number_names_step_and_clips(tmp_path: Path) -> None:
    config = _world(tmp_path, optimizer=OptimizerConfig(lr=1e30, warmup_steps=0))
    with pytest.raises(NonFiniteLossError, match=r"at step 1\b") as error:
        train(config, tmp_path / "run")
    assert str(tmp_path / "tokens/train") in str(error.value)
    assert str(error.value).count("Origin(") == 4


def test_a_gradient_that_is_no_number_spoils_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slope of a root at 0 is infinite, and the loss is as ever."""
    config, loss = _world(tmp_path, checkpoint_every=1, steps=2, evaluate_every=2), STTransformer.loss

    def steep(world: STTransformer, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        value, figures = loss(world, batch, generator)
        return (value + (0 * world.norm.bias.sum()).sqrt() if world.progress == 0.5 else value), figures

    monkeypatch.setattr(STTransformer, "loss", steep)
    with pytest.raises(NonFiniteLossError, match=r"gradient's norm is nan at step 1\b") as error:
        train(config, tmp_path / "run")
    assert str(error.value).count("Origin(") == 4
    weights = load_tensors(model_folder(tmp_path / "run") / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(("make", "pieces"), [(_world, 2), (_world, 3), (_tokenizer, 2)])
def test_pieces_of_a_batch_give_the_step_of_the_whole(
    tmp_path: Path, make: Callable[..., TrainConfig], pieces: int
) -> None:
    config = make(tmp_path, steps=2)
    if isinstance(config.model, STTransformerConfig):
        config = replace(config, model=replace(config.model, dropout=0.0, scheduled_sampling=0.0))
    train(config, tmp_path / "whole")
    train(replace(config, accumulate=pieces), tmp_path / "pieces")
    for whole, cut in zip(_log(tmp_path / "whole"), _log(tmp_path / "pieces"), strict=True):
        for name in ("train/loss", "train/gradient_norm"):
            assert cut[name] == pytest.approx(whole[name], rel=1e-3)


def test_more_pieces_than_clips_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most the batch of"):
        train(_world(tmp_path, accumulate=5), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_is_cut_in_order_and_not_into_nothing(tmp_path: Path) -> None:
    config = _world(tmp_path)
    clips = open_clips(config.data, "train")
    batch = next(Loader(clips, 5, seed=0).iterate(3, 4))
    parts = list(Loader(clips, 5, seed=0, pieces=3).iterate(3, 4))
    assert [len(part) for part in parts] == [2, 1, 2]
    assert torch.equal(join(parts).states, batch.states)
    assert join(parts).origins == batch.origins
    with pytest.raises(UsageError, match="at most the batch of 5"):
        replace(config, batch_size=5, accumulate=6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {0: 0.25, 3: 1.0, 4: 1.0, 9: 0.5, 13: 0.1, 14: 0.0}),
        ("cosine", {0: 0.25, 3: 1.0, 4: 1.0, 9: 0.5, 14: 0.0, 5: 0.5 * (1 + math.cos(math.pi / 10))}),
        ("constant", {0: 0.25, 3: 1.0, 4: 1.0, 9: 1.0, 14: 1.0}),
    ],
)
def test_learning_rate_warms_up_and_then_follows_its_schedule(schedule: Any, expected: dict[int, float]) -> None:
    config = OptimizerConfig(lr=2e-3, warmup_steps=4, schedule=schedule)
    for step, share in expected.items():
        assert config.learning_rate(step, 14) == pytest.approx(2e-3 * share, abs=1e-12), step


def test_the_reports_schedule_is_the_default() -> None:
    config = OptimizerConfig()
    assert config.learning_rate(1999, 100_000) == 8e-4
    assert config.learning_rate(51_000, 100_000) == pytest.approx(4e-4)
    assert (config.beta1, config.beta2, config.weight_decay) == (0.9, 0.95, 0.05)


def test_the_rate_is_the_one_that_is_logged(tmp_path: Path) -> None:
    config = _world(tmp_path)
    train(config, tmp_path / "run")
    rates = [line["train/learning_rate"] for line in _log(tmp_path / "run")]
    assert rates == [0.005, 0.01, 0.01, 0.005]


@pytest.mark.parametrize("config", [SMALL_WORLD, SMALL_TOKENIZER])
def test_only_matrices_decay(config: Any) -> None:
    model = config.build()
    optimizer = build_optimizer(OptimizerConfig(weight_decay=0.3), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert decayed | plain == set(names.values())
    matrices = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
    assert {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, matrices)} <= decayed
    assert not [name for name in decayed if name.endswith("bias") or "norm" in name or "position" in name]
    assert {name for name in names.values() if "position" in name} <= plain


def test_the_average_is_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = MovingAverage(model, 0.5)
    expected = 0.0
    for step in range(12):
        nn.init.constant_(model.weight, step + 1.0)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
        assert average.weights["weight"].item() == pytest.approx(expected)


def test_inside_evaluated_the_model_holds_its_average() -> None:
    world = small_world().train()
    state = TrainState(world, build_optimizer(OptimizerConfig(), world), MovingAverage(world, 0.9))
    raw = {name: value.clone() for name, value in world.state_dict().items()}
    assert state.average is not None
    state.average.weights = {name: value + 1 for name, value in raw.items()}
    with evaluated(state):
        assert not world.training
        assert all(torch.equal(value, raw[name] + 1) for name, value in world.state_dict().items())
    assert world.training
    assert all(torch.equal(value, raw[name]) for name, value in world.state_dict().items())


def _prepared(model: nn.Module, clips: Clips) -> Prepared:
    return Prepared(
        kind=kind_of(SMALL_WORLD),
        model=model,
        train=clips,
        val=clips,
        card=ModelCard(config=SMALL_WORLD),
        tokenizer=None,
    )


def _validated(model: nn.Module, clips: Clips) -> float:
    return validate(model, _prepared(model, clips), num_clips=4, device=CPU)["val/loss"]


def test_figures_of_validation_are_those_of_the_average(tmp_path: Path) -> None:
    config = _world(tmp_path)
    train(config, tmp_path / "run")
    clips = open_clips(config.data, "val")
    world, _ = load_world(tmp_path / "run")
    logged = pytest.approx(_log(tmp_path / "run")[-1]["val/loss"], rel=1e-5)
    assert _validated(world, clips) == logged
    latest = RunDir(tmp_path / "run").latest()
    assert latest is not None
    trainer = load_tensors(latest / "trainer.safetensors")
    world.load_state_dict({name[4:]: value for name, value in trainer.items() if name.startswith("raw.")})
    assert _validated(world, clips) != logged


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_validation_is_the_mean_over_evenly_spread_clips(tmp_path: Path, batch_size: int) -> None:
    world, clips = small_world(grid=replace(TOKEN_GRID, vocab_size=8)), open_clips(_world(tmp_path).data, "val")
    assert len(clips) == 6
    losses = [world.loss(stack([clips[i]]), torch.Generator())[0].item() for i in (0, 1, 2, 4, 5)]
    found = validate(world, _prepared(world, clips), num_clips=5, device=CPU, batch_size=batch_size)
    followed = [autoregressive_loss(world, stack([clips[i]])).item() for i in (0, 1, 2, 4, 5)]
    assert found["val/loss"] == pytest.approx(sum(losses) / 5)
    assert found["val/autoregressive_loss"] == pytest.approx(sum(followed) / 5)


def test_what_a_loss_draws_in_validation_differs_between_batches_and_repeats(tmp_path: Path) -> None:
    class Drawing(nn.Module):
        drawn: ClassVar[list[float]] = []

        def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            self.drawn += torch.rand(len(batch), generator=generator).tolist()
            return torch.zeros(()), {}

    model, clips = Drawing(), open_clips(_world(tmp_path).data, "val")
    made = replace(_prepared(model, clips), kind=Kind())
    for _ in range(2):
        validate(model, made, num_clips=6, device=CPU, batch_size=2)
    assert len(set(model.drawn[:6])) == 6
    assert model.drawn[6:] == model.drawn[:6]


def test_the_autoregressive_loss_is_that_of_the_truth_along_the_worlds_own_way() -> None:
    world, batch = small_world(), token_batch(size=3)
    assert batch.tokens is not None
    context, future = batch.tokens[:, :3], batch.tokens[:, 3:]
    guessed = [step.tokens for step in world.forecast(context, batch.states, sampling=Sampling())]
    own = torch.cat([context, torch.stack(guessed, dim=1)], dim=1)
    logits = torch.stack([step.logits for step in world.teacher_forced(own, batch.states)], dim=1)
    expected = F.cross_entropy(logits.flatten(0, 3), future.flatten())
    assert_values_agree(autoregressive_loss(world, batch), expected)
    assert autoregressive_loss(world, batch) != world.loss(batch, torch.Generator())[0], "nor is it teacher-forced"
    # Where the world guesses right, both are the same.
    right = replace(batch, tokens=own)
    assert_values_agree(autoregressive_loss(world, right), world.loss(right, torch.Generator())[0].detach())


def test_scheduled_sampling_rises_with_the_steps_of_a_run(tmp_path: Path) -> None:
    train(_world(tmp_path), tmp_path / "run")
    shares = [line["train/scheduled_sampling"] for line in _log(tmp_path / "run")]
    assert shares == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert not any("val/scheduled_sampling" in line for line in _log(tmp_path / "run"))


def test_a_run_ends_with_how_sure_its_world_should_be(tmp_path: Path) -> None:
    """Of the averaged weights, on its validation clips, in the best checkpoint too; first weights need not know it."""
    train(_world(tmp_path), tmp_path / "first")
    config = _world(tmp_path, init_from=tmp_path / "first", evaluate_every=1, keep_best="val/loss")
    config = replace(config, model=replace(config.model, calibrated=True))
    train(replace(config, steps=2), tmp_path / "run")
    chosen = stack([open_clips(config.data, "val")[i] for i in (0, 2, 3, 5)])
    for step in (1, 2):  # the first is better than none
        world, _ = load_world(RunDir(tmp_path / "run").checkpoint(step))
        found = world.sharpness.clone()
        assert (found != 1).any()
        world.calibrate([chosen])
        assert torch.equal(world.sharpness, found)
        of_figure = _log(tmp_path / "run")[step - 1]["val/autoregressive_loss"]
        world.sharpness.fill_(1.0)
        assert of_figure == pytest.approx(autoregressive_loss(world, chosen).item(), rel=1e-5)


def test_what_a_finished_run_measured_stays_when_it_goes_on(tmp_path: Path) -> None:
    """And is not averaged, step by step, towards what stood there before anything was measured."""
    config = _world(tmp_path, steps=2, checkpoint_every=1)
    config, run = replace(config, model=replace(config.model, calibrated=True)), tmp_path / "run"
    train(config, run)
    with pytest.raises(_Stop):
        train(replace(config, steps=4), run, resume=True, report=_stopping_at(3))
    ended, further = (load_tensors(RunDir(run).checkpoint(step) / "model.safetensors") for step in (2, 3))
    assert (ended["sharpness"] != 1).any()
    assert torch.equal(further["sharpness"], ended["sharpness"])


def test_validation_is_logged_where_it_was_done(tmp_path: Path) -> None:
    train(_world(tmp_path, steps=5, log_every=5), tmp_path / "run")
    assert {line["step"]: "val/loss" in line for line in _log(tmp_path / "run")} == {2: True, 4: True, 5: True}
    train(_world(tmp_path, steps=3, evaluate_every=3), tmp_path / "other")
    assert [("val/loss" in line) for line in _log(tmp_path / "other")] == [False, False, True]


def test_length_is_given_as_steps_or_as_epochs(tmp_path: Path) -> None:
    config = _world(tmp_path)
    assert replace(config, steps=0, epochs=2.5).total_steps(12) == 8
    for wrong in ({"steps": 0}, {"steps": 3, "epochs": 1.0}):
        with pytest.raises(UsageError, match="--steps or as --epochs"):
            replace(config, **wrong).total_steps(12)  # pyright: ignore[reportArgumentType]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_that_is_not_there_is_not_asked_for_in_silence() -> None:
    assert Ranks().device("auto") == CPU
    with pytest.raises(UsageError, match="--device cpu"):
        Ranks().device("cuda")


# --- checkpoints ---


def test_a_run_and_a_checkpoint_of_it_say_what_they_are(tmp_path: Path) -> None:
    train(_world(tmp_path), tmp_path / "run")
    latest = RunDir(tmp_path / "run").latest()
    assert latest is not None
    (world, card), (same, _) = load_world(tmp_path / "run"), load_world(latest)
    assert not world.training
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in world.state_dict().items())
    contract = card.promise
    assert contract.state_names == ("elbow", "gripper")
    assert contract.grid == TokenGrid(height=2, width=2, vocab_size=8)
    assert contract.pattern == FramePattern(window=34)
    assert (contract.fps, contract.source_kind, card.step) == (30.0, "1x-tokens", 4)


def test_statistics_of_the_training_data_travel_with_the_checkpoint(tmp_path: Path) -> None:
    config = _world(tmp_path, steps=1)
    train(config, tmp_path / "run")
    world, card = load_world(tmp_path / "run")
    clips = open_clips(replace(config.data, window_stride=34), "train")  # disjoint: every row once
    rows = torch.cat([clips[i].states for i in range(len(clips))])
    assert world.states is not None
    torch.testing.assert_close(world.states.mean, rows.mean(dim=0))
    torch.testing.assert_close(world.states.scale[0], rows[:, 0].std(correction=0))
    assert world.states.scale[1] == 1, "the gripper never moves"
    assert card.statistics is not None
    assert card.statistics.names == ("elbow", "gripper")


def test_worlds_are_used_in_float32_however_they_are_stored(tmp_path: Path) -> None:
    train(_world(tmp_path, steps=1), tmp_path / "run")
    latest = RunDir(tmp_path / "run").latest()
    assert latest is not None
    weights = load_tensors(latest / "model.safetensors")
    save_tensors(latest / "model.safetensors", {name: value.bfloat16() for name, value in weights.items()})
    world, _ = load_world(tmp_path / "run")
    assert {value.dtype for value in world.state_dict().values()} == {torch.float32}


def test_a_tokenizer_is_loaded_from_its_run(tmp_path: Path) -> None:
    config = _tokenizer(tmp_path)
    train(config, tmp_path / "run")
    latest = RunDir(tmp_path / "run").latest()
    assert latest is not None
    assert load_tokenizer(tmp_path / "run").config == config.model
    assert load_tokenizer(latest).config == config.model
    contract = read_json(latest / "model.json")["contract"]
    assert (contract["image_size"], contract["grid"]["vocab_size"]) == (16, 200)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(_world(tmp_path, steps=5, checkpoint_every=1, keep_checkpoints=2), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["step_0000004", "step_0000005"]


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: b"\xff" * len(data)])
def test_a_damaged_checkpoint_names_the_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    config = _world(tmp_path, steps=2)
    _interrupt(replace(config, checkpoint_every=1), tmp_path / "run", 1)
    latest = RunDir(tmp_path / "run").latest()
    assert latest is not None
    for name, use in (
        ("trainer", lambda: train(replace(config, checkpoint_every=1), tmp_path / "run", resume=True)),
        ("model", lambda: load_world(tmp_path / "run")),
    ):
        path = latest / f"{name}.safetensors"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError) as error:
            use()
        assert error.value.path == path


def test_a_missing_description_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.json"):
        load_world(tmp_path)


def test_training_begins_with_given_weights(tmp_path: Path) -> None:
    config = _world(tmp_path, steps=1, model=SMALL_WORLD)
    (tmp_path / "given").mkdir()
    world = small_world(seed=5, grid=replace(TOKEN_GRID, vocab_size=8))
    write_model(tmp_path / "given", ModelCard(config=world.config).to_json(), world.state_dict())
    still = replace(config, init_from=tmp_path / "given", optimizer=OptimizerConfig(lr=1e-30, warmup_steps=0))
    train(still, tmp_path / "run")
    loaded, _ = load_world(tmp_path / "run")
    assert all(torch.equal(p, dict(world.named_parameters())[name]) for name, p in loaded.named_parameters())
    with pytest.raises(UsageError, match=r"holds another model than is trained here, .* missing, .*blocks.2"):
        train(replace(still, model=replace(SMALL_WORLD, layers=3)), tmp_path / "deeper")
    with pytest.raises(UsageError, match="given was trained on states as they are, this run gives normalised states"):
        train(replace(still, model=replace(SMALL_WORLD, normalise_states=True)), tmp_path / "deeper")
    with pytest.raises(UsageError, match="run holds a world; a tokenizer is needed"):
        load_tokenizer(tmp_path / "run")
    assert not (tmp_path / "deeper").exists()


def test_another_decoder_is_trained_under_tokens_that_stay(tmp_path: Path) -> None:
    config = _tokenizer(tmp_path, steps=3)
    train(config, tmp_path / "first")
    wider = replace(SMALL_TOKENIZER, decoder_past=1, decoder_widths=(8, 24), keep_tokens=True)
    train(replace(config, model=wider, init_from=tmp_path / "first"), tmp_path / "kept")
    train(replace(config, model=replace(wider, keep_tokens=False), init_from=tmp_path / "first"), tmp_path / "moved")
    first, kept, moved = (
        dict(load_tokenizer(tmp_path / name).named_parameters()) for name in ("first", "kept", "moved")
    )
    encoder = [name for name in first if name.startswith("encoder.")]
    assert all(torch.equal(first[name], kept[name]) for name in encoder)
    assert not all(torch.equal(first[name], moved[name]) for name in encoder)
    assert kept["decoder.1.contract.weight"].shape == (24, 48)
    assert kept["decoder.1.contract.weight"].abs().max() > 0, "a new block is the identity until it is trained"
    with pytest.raises(UsageError, match=r"holds another model than is trained here, .*decoder"):
        train(replace(config, model=replace(SMALL_TOKENIZER, kernel=5), init_from=tmp_path / "first"), tmp_path / "no")
    with pytest.raises(UsageError, match="--init-from"):
        train(replace(config, model=wider), tmp_path / "no")


def test_a_decoder_that_sees_trains_on_pairs_of_blocks_and_is_judged_on_the_second(tmp_path: Path) -> None:
    config = _tokenizer(tmp_path, steps=3)
    train(config, tmp_path / "first")
    seeing = replace(SMALL_TOKENIZER, decoder_sees=True, keep_tokens=True)
    train(replace(config, model=seeing, init_from=tmp_path / "first"), tmp_path / "seeing")
    train(replace(config, init_from=tmp_path / "seeing"), tmp_path / "blind")  # what sees is left out again
    first, seen = (load_tokenizer(tmp_path / name) for name in ("first", "seeing"))
    frames = open_source(tmp_path / "raw").read(2, 0, 34).frames
    assert frames is not None
    tokens = seen.encode(frames[None, 17:])
    assert torch.equal(tokens, first.encode(frames[None, 17:]))
    made = seen.decode(tokens, frames[None, 16])
    assert not torch.equal(made, seen.decode(tokens)), "what sees was trained"
    row = evaluate(tmp_path / "seeing", EvaluateOptions(num_clips=None)).rows[0]
    error = (made[0].double() - frames[17:].double()).square().mean(dim=(1, 2, 3))
    expected = (10 * (255**2 / error).log10()).mean().item()
    assert (row.id, row.metrics["psnr_db_mean"].mean) == ("reconstruction", pytest.approx(expected, abs=1e-2))


def test_the_latents_of_a_vae_are_measured_where_it_is(tmp_path: Path) -> None:
    data = DataConfig(path=write_squares(tmp_path / "squares", 2, length=9), train_episodes="0", val_episodes="1")
    data = replace(data, pattern=FramePattern(window=9), window_stride=9)
    config = TrainConfig(model=SMALL_VAE, data=data, optimizer=OptimizerConfig(), batch_size=1, steps=1, device="cpu")
    made = prepare(config)
    made.kind.finish(made.model, made, replace(config, device="cuda:7"))  # each rank has a device of its own
    assert made.model.latents_mean.any()


def test_a_decoder_is_trained_under_latents_that_stay(tmp_path: Path) -> None:
    config = _tokenizer(tmp_path, steps=3)
    config = replace(config, model=SMALL_VAE, data=replace(config.data, pattern=FramePattern(window=9)))
    train(config, tmp_path / "first")
    keeping = replace(config, model=replace(SMALL_VAE, keep_latents=True))
    train(replace(keeping, init_from=tmp_path / "first"), tmp_path / "kept")
    first, kept = (load_tokenizer(tmp_path / name) for name in ("first", "kept"))
    assert isinstance(first, WanVAETokenizer)
    assert isinstance(kept, WanVAETokenizer)
    video = noise_frames(1, 9, 3, 16, 16)
    assert torch.equal(first.encode(video), kept.encode(video)), "encoder and statistics stay"
    latents = torch.randn(1, 3, 4, 2, 2)
    assert not torch.equal(first.video_of(latents), kept.video_of(latents))
    with pytest.raises(UsageError, match="--init-from"):
        train(keeping, tmp_path / "no")


def test_a_vae_that_sees_is_judged_with_the_first_frame_in_view(tmp_path: Path) -> None:
    config = _tokenizer(tmp_path, steps=3)
    data = replace(config.data, pattern=FramePattern(window=9), window_stride=9)
    config = replace(config, model=SMALL_VAE, data=data)
    train(config, tmp_path / "first")
    seeing = replace(SMALL_VAE, decoder_sees=True, keep_latents=True)
    train(replace(config, model=seeing, init_from=tmp_path / "first"), tmp_path / "seeing")
    train(replace(config, init_from=tmp_path / "seeing"), tmp_path / "blind")  # what sees is left out again
    first, seen = (load_tokenizer(tmp_path / name) for name in ("first", "seeing"))
    frames = open_source(tmp_path / "raw").read(2, 0, 9).frames
    assert frames is not None
    latents = seen.encode(frames[None])
    assert torch.equal(latents, first.encode(frames[None]))
    made = seen.decode(latents, frames[None, 0])
    assert not torch.equal(made, seen.decode(latents)), "what sees was trained"
    row = evaluate(tmp_path / "seeing", EvaluateOptions(num_clips=1)).rows[0]
    error = (made[0, 1:].double() - frames[1:].double()).square().mean(dim=(1, 2, 3))
    expected = (10 * (255**2 / error).log10()).mean().item()
    assert (row.id, row.metrics["psnr_db_mean"].mean) == ("reconstruction", pytest.approx(expected, abs=1e-2))


# --- worlds on frames ---


def _frame_world(tmp: Path, tokenizer: TrainConfig, **data: Any) -> TrainConfig:
    train(replace(tokenizer, steps=1), tmp / "tokenizer")
    source = replace(tokenizer.data, augment=AugmentConfig(), **{"window_stride": 17, **data})
    return replace(_world(tmp), data=source, tokenizer=tmp / "tokenizer", start_offsets=2, steps=2)


def test_a_world_on_frames_keeps_its_tokenizer_and_counts_its_tokens(tmp_path: Path) -> None:
    config = _frame_world(tmp_path, _tokenizer(tmp_path))
    train(config, tmp_path / "run")
    world, card = load_world(tmp_path / "run")
    frames = torch.randint(0, 256, (1, 17, 3, 16, 16), dtype=torch.uint8)
    kept, original = load_tokenizer(tmp_path / "run/tokenizer"), load_tokenizer(tmp_path / "tokenizer")
    assert torch.equal(kept.encode(frames), original.encode(frames))
    assert world.grid == GRID_200
    assert card.promise.image_size == 16
    # Two episodes of 51 frames; phase 0 gives two windows of 34, phase 1 (8 frames later) one; six grids of 2x2.
    assert np.load(tmp_path / "run/unigram.npy").sum() == 2 * (2 + 1) * 6 * 4


def test_tokens_are_made_once(tmp_path: Path) -> None:
    config = _frame_world(tmp_path, _tokenizer(tmp_path))
    train(config, tmp_path / "one")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("video_*.bin")}
    train(config, tmp_path / "two")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("video_*.bin")} == made
    assert _log(tmp_path / "one") == _log(tmp_path / "two")


def test_windows_of_tokens_begin_as_far_apart_as_asked_for(tmp_path: Path) -> None:
    config = _frame_world(tmp_path, _tokenizer(tmp_path))
    for stride, starts in ((17, [0, 17, 0]), (34, [0, 0]), (51, [0, 0])):  # 51 frames, and 34 from frame 8 on
        data = replace(config.data, window_stride=stride, train_episodes="0")
        made = prepare(replace(config, data=data))
        assert made.train.windows[:, 1].tolist() == starts
    for stride, fits in ((20, 17), (30, 34), (5, 17)):
        data = replace(config.data, window_stride=stride, cache=tmp_path / "untouched")
        with pytest.raises(UsageError, match=f"--data.window-stride {fits}"):
            train(replace(config, data=data), tmp_path / "run")
    assert not (tmp_path / "untouched").exists()


def test_augmentation_makes_every_pass_of_a_worlds_frames_another(tmp_path: Path) -> None:
    config = _frame_world(tmp_path, _tokenizer(tmp_path))
    augment = AugmentConfig(crop_scale=(0.6, 0.9), brightness=0.1)
    augmented = replace(config, data=replace(config.data, augment=augment))
    plain, crops = (prepare(one) for one in (config, augmented))
    assert not torch.equal(_all_tokens(plain.train), _all_tokens(crops.train))
    assert torch.equal(_all_tokens(plain.val), _all_tokens(crops.val)), "what is judged on is never augmented"
    assert all(torch.equal(a.states, b.states) for a, b in zip(plain.train, crops.train, strict=True))


def _all_tokens(clips: Clips) -> Tensor:
    return torch.stack([clip.tokens for clip in clips if clip.tokens is not None])


def test_a_world_may_be_conditioned_on_actions(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "robot", "v2.1")
    tokenizer = _tokenizer(tmp_path)
    data = replace(tokenizer.data, path=tmp_path / "robot", conditioning="state+action")
    train(_frame_world(tmp_path, replace(tokenizer, data=data)), tmp_path / "run")
    world, card = load_world(tmp_path / "run")
    assert world.state_dim == 4
    assert card.promise.conditioning == "state+action"


def test_blocks_of_another_length_give_samples_of_another_length(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path)
    short = replace(SMALL_TOKENIZER, patch=(4, 4), block_frames=9)
    train(_frame_world(tmp_path, replace(tokenizer, model=short), window_stride=9), tmp_path / "run")
    world, _ = load_world(tmp_path / "run")
    assert (world.grid.block, world.grid.temporal_stride) == (9, 4)
    assert world.states is not None
    assert world.states.num_frames == 18


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": None}, "--tokenizer"),
        (
            {"model": replace(SMALL_WORLD, context_grids=2, horizon_grids=4)},
            "no whole number of blocks, which have 3",
        ),
        ({"data": AugmentConfig(flip=0.5)}, "flip"),
    ],
)
def test_a_world_that_cannot_be_is_refused_before_the_first_step(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = _frame_world(tmp_path, _tokenizer(tmp_path))
    if "data" in change:
        change = {"data": replace(config.data, augment=change["data"])}
    with pytest.raises(UsageError, match=message):
        train(replace(config, **change), tmp_path / "run")


# --- learning ---


def _trained_cost(tmp: Path, *, unconditional: bool) -> Tensor:
    """Validation loss in nats of a small world after a short training on tokens that follow the states."""
    model = replace(
        SMALL_WORLD, width=32, layers=1, state_hidden=32, normalise_states=True, unconditional=unconditional
    )
    config = TrainConfig(
        model=model,
        data=DataConfig(path=tmp / "train", val_path=tmp / "val", window_stride=17),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=20, clip_norm=1.0),
        batch_size=16,
        steps=150,
        device="cpu",
        evaluate_every=1000,
        validation_clips=64,
    )
    return torch.tensor(train(config, tmp / f"run_{unconditional}").figures["val/loss"])


@pytest.mark.slow
def test_a_world_that_sees_the_states_beats_token_frequencies_and_its_blind_twin(tmp_path: Path) -> None:
    write_followed_tokens(tmp_path / "train", 40)
    write_followed_tokens(tmp_path / "val", 20, seed=1)
    seeing, unconditional = (_trained_cost(tmp_path, unconditional=flag) for flag in (False, True))
    counts = np.load(tmp_path / "run_False/unigram.npy")
    entropy = -(counts / counts.sum() * np.log(counts / counts.sum())).sum()
    assert entropy == pytest.approx(math.log(8), abs=0.05)
    assert seeing < 0.5 * entropy
    assert unconditional > entropy - 0.1, "nothing but the states tells what comes next"


@pytest.mark.parametrize(("major", "has"), [(7, False), (8, True)])
def test_bfloat16_is_taken_where_a_card_computes_in_it(monkeypatch: pytest.MonkeyPatch, major: int, has: bool) -> None:
    """Turing cards (7.5) emulate it, slowly."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    assert has_bfloat16(torch.device("cuda", 1)) is has
    assert not has_bfloat16(torch.device("cpu"))
