"""docs/add_your_own.md is true: its code blocks run as they stand, and what they add works."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SMALL_TOKENIZER, moving_square
from commands import FENCE, ROOT

from worldline.data.clips import DataConfig, open_clips
from worldline.data.info import inspect
from worldline.families.config import TrainConfig
from worldline.formats import open as formats
from worldline.nn.optimizer import OptimizerConfig
from worldline.training.loop import train

SECTIONS = re.split(r"^## ", (ROOT / "docs/add_your_own.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


def run(section: str) -> dict[str, Any]:
    """Run the Python blocks of a section, one after the other; what they define."""
    text = next(text for text in SECTIONS if text.startswith(f"{section}\n"))
    names: dict[str, Any] = {"__name__": "own"}
    for info, body in FENCE.findall(text):
        if info == "python":
            exec(compile(body, section, "exec"), names)
    return names


@pytest.fixture
def own_format(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(formats, "FORMATS", list(formats.FORMATS))
    return run("A data format")


def write_npz(root: Path, episodes: int) -> Path:
    root.mkdir()
    for number in range(episodes):
        frames, states = moving_square(40, seed=number)
        np.savez(root / f"{number}.npz", frames=frames, states=states)
    return root


def test_a_format_is_read_and_trained_on(own_format: dict[str, Any], tmp_path: Path) -> None:
    root = write_npz(tmp_path / "robot", 4)
    source = formats.open_source(root)
    assert isinstance(source, own_format["NpzSource"])
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
    result = train(config, tmp_path / "run")
    assert result.step == 2
    assert result.figures["val/psnr_db"] > 0
