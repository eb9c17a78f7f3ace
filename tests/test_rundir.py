"""Files of a run: models that are defined later are known; weights in eight bits cost little and are read as others."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from builders import SMALL_WORLD

from worldline.contract import ModelConfig
from worldline.families.card import ModelCard
from worldline.nn.optimizer import OptimizerConfig, build_optimizer
from worldline.rundir import RunDir, from_json, in_eight_bits, load_tensors, save_tensors, to_json
from worldline.training.checkpoint import TrainState, save_checkpoint


def test_a_model_that_is_defined_after_others_were_read_is_known(tmp_path: Path) -> None:
    before = ModelCard(config=SMALL_WORLD)
    assert from_json(ModelCard, before.to_json(), tmp_path) == before

    @dataclass(frozen=True, kw_only=True)
    class LateConfig(ModelConfig):
        kind: Literal["late"] = "late"
        size: int = 3

    late = to_json(ModelCard, ModelCard(config=LateConfig(size=5)))
    assert late["config"] == {"kind": "late", "size": 5}
    assert from_json(ModelCard, late, tmp_path).config == LateConfig(size=5)


def test_the_checkpoint_of_ten_million_steps_follows_those_of_fewer(tmp_path: Path) -> None:
    run, model = RunDir(tmp_path), torch.nn.Linear(1, 1)
    state = TrainState(model, build_optimizer(OptimizerConfig(), model), average=None)
    (tmp_path / "checkpoints" / "step_0000500_as_it_was").mkdir(parents=True)
    for state.step in (9_999_000, 9_999_500, 10_000_000):
        save_checkpoint(run, state, ModelCard(config=SMALL_WORLD), keep=2)
    assert [folder.name for folder in run.checkpoints()] == ["step_9999500", "step_10000000"]
    assert run.latest() == run.checkpoint(10_000_000)
    assert (tmp_path / "checkpoints" / "step_0000500_as_it_was").exists(), "it is not ours"


def test_eight_bits_are_off_by_half_a_step_of_their_row_and_take_half_of_float16(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-6, 3, 96)[:, None]
    whole = {
        "matrix": scales * torch.randn(96, 200, generator=generator),
        "kernel": torch.randn(64, 8, 3, 3, generator=generator),
        "nothing": torch.zeros(80, 80),
        "bias": torch.randn(96, generator=generator),
        "small": torch.randn(4, 4, generator=generator),
        "count": torch.arange(3),
    }
    save_tensors(tmp_path / "eight", in_eight_bits(whole))
    save_tensors(tmp_path / "half", {name: value.half() for name, value in whole.items()})
    found = load_tensors(tmp_path / "eight")
    assert found.keys() == whole.keys()
    for name in ("matrix", "kernel", "nothing"):
        off = (found[name] - whole[name]).flatten(1).abs().amax(dim=1)
        assert (off <= whole[name].flatten(1).abs().amax(dim=1) / 253).all(), name
    for name in ("bias", "small", "count"):
        assert torch.equal(found[name], whole[name].half() if name != "count" else whole[name]), name
    eight, half = ((tmp_path / name).stat().st_size for name in ("eight", "half"))
    assert eight < 0.6 * half
