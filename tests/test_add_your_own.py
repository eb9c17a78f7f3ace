"""docs/add_your_own.md and docs/add_a_model.md are true: their code blocks run as they are, and what they add works.

Rows and metrics: test_engine.py; a family: test_families.py.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import SMALL_TOKENIZER, SMALL_WORLD, moving_square, write_squares
from commands import FENCE, ROOT

import worldline
from worldline.contract import FramePattern
from worldline.data.clips import DataConfig, open_clips
from worldline.data.info import inspect
from worldline.evaluation.evaluate import EvaluateOptions, evaluate
from worldline.families import family
from worldline.families.config import TrainConfig
from worldline.formats import open as formats
from worldline.nn.optimizer import OptimizerConfig
from worldline.training.loop import train

LR = OptimizerConfig(lr=0.1, warmup_steps=0, schedule="constant", weight_decay=0.0)


def run(page: str, *sections: str) -> dict[str, Any]:
    """Run the Python blocks of some sections of a page, one after the other; what they define."""
    parts = re.split(r"^## ", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    names: dict[str, Any] = {"__name__": "own"}
    for section in sections:
        (text,) = (part for part in parts if part.startswith(f"{section}\n"))
        (block,) = (body for info, body in FENCE.findall(text) if info == "python")
        exec(compile(block, section, "exec"), names)
    return names


def write_npz(root: Path, episodes: int) -> Path:
    root.mkdir()
    for number in range(episodes):
        frames, states = moving_square(40, seed=number)
        np.savez(root / f"{number}.npz", frames=frames, states=states)
    return root


def test_a_format_is_read_inspected_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FORMATS", list(formats.FORMATS))
    own, root = run("add_your_own.md", "A data format"), write_npz(tmp_path / "robot", 4)
    source = formats.open_source(root)
    assert isinstance(source, own["NpzSource"])
    frames, states = moving_square(40, seed=2)
    clip = source.read(2, 10, 20)
    assert clip.frames is not None
    np.testing.assert_array_equal(clip.frames.permute(0, 2, 3, 1), frames[10:20])
    np.testing.assert_array_equal(clip.states, states[10:20])
    info = inspect(root)
    assert (info.kind, info.episodes, info.problems) == ("npz", 4, ())

    data = DataConfig(path=root, train_episodes=":-1", val_episodes="-1:", image_size=16, cache=tmp_path / "cache")
    assert len(open_clips(data, "train")) == 3
    config = TrainConfig(model=SMALL_TOKENIZER, data=data, optimizer=OptimizerConfig(), batch_size=2, steps=2)
    assert train(config, tmp_path / "run").step == 2


def test_a_tokenizer_and_a_world_train_forecast_and_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "KINDS", dict(family.KINDS))
    own = run("add_a_model.md", "A tokenizer", "A world")
    root = write_squares(tmp_path / "squares", 4, length=68)
    splits = {"train_episodes": ":-1", "val_episodes": "-1:"}
    data = DataConfig(path=root, image_size=16, window_stride=17, cache=tmp_path / "cache", **splits)
    block = replace(data, pattern=FramePattern(window=17))
    config = TrainConfig(model=own["GreyConfig"](spatial_stride=4), data=block, optimizer=LR, batch_size=4, steps=30)
    made = train(config, tmp_path / "tokenizer")
    assert made.figures["val/grey_error"] < 8.5, "half a step of 16 greys; the squares have two"

    losses = {}
    for steps in (1, 60):
        config = replace(config, model=own["LinearConfig"](), data=data, tokenizer=made.run, steps=steps)
        losses[steps] = train(config, tmp_path / f"world{steps}").figures["val/loss"]
    assert losses[60] < losses[1] / 2
    world = worldline.load(tmp_path / "world60")
    clip = worldline.open_data(root).read(3, 0, 68)
    assert clip.frames is not None
    frames, states = clip.frames[None], clip.states[None]
    forecast = world.forecast(frames[:, :17], states[:, :34])
    assert torch.equal(world.start(frames[:, :17], states[:, :17]).advance(states[:, 17:34]).video, forecast.video)
    rows = {row.id: row.metrics for row in evaluate(tmp_path / "world60", EvaluateOptions(num_clips=2)).rows}
    assert rows["reconstruction"]["psnr_db_last"].mean >= rows["forecast"]["psnr_db_last"].mean
    assert rows["forecast"]["full_ce"].mean < np.log(16)

    # The built-in kinds and new ones go together: an ST-Transformer over the new tokens.
    small = replace(SMALL_WORLD, layers=1)
    assert train(replace(config, model=small, steps=1), tmp_path / "other").step == 1
