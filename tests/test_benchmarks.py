"""The benchmarks run, print what they promise, and count bytes as one would by hand."""

import importlib
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest
import torch

from worldline.schema import Batch, Origin, TokenGrid

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a script by name, as it is imported when it is run."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def named(name: str) -> ModuleType:
        return importlib.import_module(name)

    return named


APART = {"data_loading", "driven_latents", "loss_memory", "run_all", "sampling_world", "threads"}
"""Scripts that start processes, measure their own or change it for good. Others are run in that of the tests, which has
loaded the libraries already."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """Run a script with `--quick`, and give what it prints."""

    def here(name: str, *arguments: str) -> dict:
        if name in APART:
            return _apart(name, *arguments)
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / f"{name}.py"), "--quick", *arguments])
        monkeypatch.syspath_prepend(BENCHMARKS)
        capsys.readouterr()
        assert not _exit_code(sys.argv[0])
        return json.loads(capsys.readouterr().out)

    return here


def _exit_code(script: str) -> object:
    """Run a script; one of parts exits with whether any failed."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


def _apart(name: str, *arguments: str) -> dict:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- every script ---


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("generation", "compression_tiny"),
        pytest.param("driven_world", "driven-tiny_on_cpu", marks=pytest.mark.slow),
        pytest.param("sampling_world", "sampling_tiny", marks=pytest.mark.slow),
        pytest.param("loss_memory", "step", marks=pytest.mark.slow),
        pytest.param("training_step", "tokenizer_tiny", marks=pytest.mark.slow),
        pytest.param("threads", "busy", marks=pytest.mark.slow),
        pytest.param("data_loading", "cached_clips_per_second", marks=pytest.mark.slow),
        pytest.param("twin_rendering", "frames_per_second", marks=pytest.mark.slow),
        pytest.param("tasks", "push", marks=pytest.mark.slow),
        pytest.param("audit", "compression-tiny", marks=pytest.mark.slow),
        pytest.param("driven_latents", "rows", marks=pytest.mark.slow),
        pytest.param("viewer", "compression-tiny", marks=pytest.mark.slow),
        pytest.param("environments", "compression-tiny", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_prints_one_json_object_with_its_origin(name: str, figure: str, quick) -> None:
    printed = quick(name)
    assert printed["benchmark"] == name
    assert printed["environment"]["commit"]
    assert printed["environment"]["command"].startswith(f"{name}.py --quick")
    if "skipped" not in printed:
        assert printed[figure]


@pytest.mark.slow
def test_the_suite_writes_one_file_named_after_machine_and_day(tmp_path: Path) -> None:
    said = _apart("run_all", "--only", "generation", "--out", str(tmp_path))
    (written,) = tmp_path.iterdir()
    assert Path(said["file"]) == written
    content = json.loads(written.read_text(encoding="utf-8"))
    assert content["results"]["generation"]["compression_tiny"]["share_of_equal_tokens"] > 0.99


def test_every_script_is_in_the_suite(load) -> None:
    helpers, suite = {"common", "run_all"}, load("run_all")
    assert {path.stem for path in BENCHMARKS.glob("*.py")} - helpers == set(suite.SUITE)
    assert suite.ON_CUDA.keys() <= set(suite.SUITE)


# --- on a card: what can be tried without one ---


def test_a_part_that_fails_says_so_and_loses_no_other(load, capsys: pytest.CaptureFixture[str]) -> None:
    parts, suite = load("common").Parts(), load("run_all")

    def broken() -> dict:
        raise RuntimeError("expected all tensors on one device")

    parts.add("before", lambda: {"figure": 1})
    parts.add("broken", broken)
    parts.add("after", lambda: {"figure": 2})
    with pytest.raises(SystemExit) as ended:
        parts.finish(quick=False)
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert ended.value.code == 1
    assert (printed["before"]["figure"], printed["after"]["figure"]) == (1, 2)
    assert printed["broken"]["failed"] == "RuntimeError: expected all tensors on one device"
    assert suite.failures("generation", printed) == ["generation: broken"]
    assert suite.parts_of(said.err).keys() == {"before", "broken", "after"}, "told as they end"


def test_a_benchmark_that_takes_too_long_is_ended_and_keeps_its_parts(load, tmp_path: Path, monkeypatch) -> None:
    suite = load("run_all")
    told = json.dumps({"part": "first", "figures": {"seconds": 1}})
    (tmp_path / "endless.py").write_text(
        f"import sys, time\nprint({told!r}, file=sys.stderr, flush=True)\ntime.sleep(60)"
    )
    monkeypatch.setattr(suite, "__file__", str(tmp_path / "run_all.py"))
    found = suite.run("endless", size="--cuda", limit=1.0)
    assert found["first"] == {"seconds": 1}
    assert found["failed"] == ["it took more than 1 s"]
    assert found["wall_seconds"] < 10


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_card")
def test_the_figures_of_a_card_are_skipped_where_there_is_none(load, capsys: pytest.CaptureFixture[str]) -> None:
    from argparse import Namespace

    card_wanted = load("common").card_wanted
    assert not card_wanted(Namespace(cuda=False, quick=False))
    with pytest.raises(SystemExit):
        card_wanted(Namespace(cuda=True, quick=False))
    assert "no CUDA device" in json.loads(capsys.readouterr().out)["skipped"]


@pytest.mark.usefixtures("no_card")
def test_the_largest_piece_is_looked_for_from_what_is_counted(load, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, made = load("loss_memory"), []
    room = 100_000_000

    def step(config, piece: int, device: str) -> None:
        made.append(piece)
        if memory.sum_of(config, piece) > room:
            raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(memory, "two_steps", step)
    found = memory.measured(64, (1, 2, 4, 8, 16, 32, 64), room, memory.SMALL, "cpu")
    largest = found["largest_piece_that_fits"]
    assert memory.sum_of(memory.SMALL, largest) <= room < memory.sum_of(memory.SMALL, 2 * largest)
    assert len(made) <= 4


@pytest.mark.slow
@pytest.mark.usefixtures("no_card")
def test_the_large_models_parts_run_at_a_small_size(load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that a card runs: adapters on a frozen bfloat16 backbone, checkpointing, autocast, the plan beside."""
    from worldline.recipes import sampling_revontuli
    from worldline.schema import LatentGrid
    from worldline.worlds.wan_weights import BackboneConfig

    sampling, common = load("sampling_world"), load("common")
    monkeypatch.setattr(sampling, "autocast", lambda _: torch.autocast("cpu", dtype=torch.bfloat16))
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 64, "num_layers": 2}
    backbone = BackboneConfig(text_dim=16, freq_dim=64, **sizes)
    recipe = sampling_revontuli()
    model, data = replace(recipe.model, backbone=backbone, text_length=8), replace(recipe.data, image_size=64)
    recipe, parts = replace(recipe, model=model, data=data), common.Parts()
    sampling.on_card(parts, recipe, 1, 2, LatentGrid(channels=48, height=4, width=4), "cpu")
    assert [name for name, part in parts.found.items() if "failed" in part] == []
    name = "sampling_revontuli_on_cuda"
    assert parts.found[name]["memory"]["counted_gb"] > 0
    assert parts.found[f"{name}_full"]["clips"] == parts.found[f"{name}_full"]["clips_planned"] > 2
    assert parts.found[f"{name}_forecast"]["samples_at_once"] == 20


@pytest.mark.slow
def test_forecasts_on_one_device_agree_with_themselves(load) -> None:
    driven = load("driven_world")
    found = driven.agreement("driven-tiny", 1, "cpu")
    assert found["exact"]["equal_tokens_share"] == found["tf32"]["equal_pixels_share"] == 1.0
    here = driven.forecast("driven-tiny", 1, "cpu")
    other = here[0].clone(), here[1].clone()
    other[1][:, :, 0, 0, 0] += 1
    other[0][:, :, -1] += 1
    off = driven.compared(here, other)
    assert off["equal_tokens_of_first_grid_share"] == pytest.approx(1 - 1 / 256)
    assert off["psnr_between_last_frames_db"] == pytest.approx(48.13, abs=0.05) or off["largest_pixel_difference"] > 1


def test_results_are_named_after_the_accelerator_or_the_processor(load) -> None:
    name = load("run_all").file_name
    day = datetime(2026, 11, 22, tzinfo=UTC)
    assert name({"device": "NVIDIA H200", "cpu": "Some CPU, 2 cores"}, day) == "nvidia-h200-2026-11-22.json"
    assert name({"device": "cpu", "cpu": "Some CPU, 2 cores"}, day) == "some-cpu-2-cores-2026-11-22.json"


# --- figures ---


def test_spread_and_ratio_of_known_numbers(load) -> None:
    common = load("common")
    assert common.spread([3.0, 1.0, 2.0, 10.0]) == {"min": 1.0, "median": 2.5, "max": 10.0}
    seconds = {"slow": [4.0, 9.0, 2.0], "fast": [2.0, 3.0, 2.0]}
    assert common.ratio(seconds, "slow", "fast") == {"min": 1.0, "median": 2.0, "max": 3.0}


def test_calls_are_made_in_turns_after_a_warm_up(load) -> None:
    made: list[str] = []
    seconds = load("common").in_turns({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, repeats=2)
    assert made == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_a_naive_head_saves_what_one_counts_by_hand(load) -> None:
    memory = load("loss_memory")
    config = memory.SMALL
    n, d, v = 4 * 3 * 64, config.width, memory.SMALL_GRID.vocab_size
    found = memory.head_memory(config, 4, "naive")
    by_hand = 4 * n * v + 2 * n * d + 2 * v * d  # log-probabilities in fp32; features and embedding in bfloat16
    assert by_hand <= found.saved <= by_hand + 8  # and a scalar
    assert found.peak > 3 * 4 * n * v


def test_heads_in_chunks_hold_no_logits_between_forward_and_backward(load) -> None:
    memory = load("loss_memory")
    config = replace(memory.SMALL, loss_chunk=96)  # an eighth of the tokens
    n, v = 4 * 3 * 64, memory.SMALL_GRID.vocab_size
    inputs = 2 * (n + v) * config.width  # in bfloat16
    for name in ("worldline", "checkpointed"):
        found = memory.head_memory(config, 4, name)
        assert found.held < inputs + 8 * n, name
        assert found.peak < 4 * n * v, name
    whole = memory.head_memory(replace(config, loss_chunk=n), 4, "worldline")
    assert whole.held < inputs + 8 * n, "nor in one chunk"


def test_all_heads_give_the_same_loss_and_gradients(load) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 8, generator=generator).requires_grad_() for rows in (30, 50))
    target = torch.randint(50, (30,), generator=generator)
    found = []
    for head in load("loss_memory").heads(7).values():
        loss = head(hidden, weight, target)
        found.append([loss.detach(), *torch.autograd.grad(loss, (hidden, weight))])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_the_counts_agree_with_each_other_and_with_real_tensors(load) -> None:
    memory = load("loss_memory")
    meta, weights = memory.world_memory(memory.SMALL, 2)
    real, _ = memory.world_memory(memory.SMALL, 2, "cpu")
    assert weights == 4 * sum(p.numel() for p in memory.SMALL.build(memory.SMALL_GRID).parameters())
    assert 0 <= meta.held - meta.saved <= 64, "what autograd saved is what is alive between forward and backward"
    for name in ("saved", "held"):
        assert abs(getattr(meta, name) - getattr(real, name)) < 256, "CUDA's kernels keep their random state, too"
    assert meta.peak == pytest.approx(real.peak, rel=0.01), "a CPU adds gradients up in float32"


def test_flops_of_a_clip_are_six_per_weight_and_token_and_the_attention(load) -> None:
    from worldline.schema import TokenGrid
    from worldline.worlds.st_transformer import STTransformerConfig

    config = STTransformerConfig(width=64, heads=2, layers=2, dropout=0.0)
    grid = TokenGrid(height=8, width=8, vocab_size=500)
    tokens, future, d, t, s = 5 * 64, 3 * 64, config.width, 5, 64
    matrices = config.layers * 16 * d * d * tokens + grid.vocab_size * d * future  # qkv + out twice, MLP 8; the head
    attention = config.layers * 2 * (s + t) * d * tokens  # scores and values, within grids and along time
    expected = 6 * matrices + 7 * attention  # flash attention makes its scores again in the backward pass
    assert load("training_step").flops_per_clip(config, grid) == pytest.approx(expected, rel=0.02)


def test_random_states_show_the_robot_that_a_map_draws(load) -> None:
    from worldline.nn.kinematics import NEAR, Silhouette
    from worldline.twin.skeleton import twin_skeleton

    common = load("common")
    places, depth = Silhouette(twin_skeleton("room"), common.STATES, 8).projected(common.random_states(1, 99)[0])
    seen = (places.abs() < 1).all(dim=-1) & (depth > NEAR)
    assert seen.float().mean() > 0.5, "of 99 wholly random states a twelfth"
    assert common.random_states(2, 3, "meta").shape == (2, 3, 25)


# --- the driven world over latents ---


def _driven(load, form: str) -> torch.nn.Module:
    trial = load("driven_latents")
    config = trial.TrialConfig(form=form, width=16, heads=2, layers=1, context_grids=4, horizon_grids=2, state_hidden=8)
    torch.manual_seed(0)
    return config.build(TokenGrid(height=4, width=4, vocab_size=4096, block=1), ("a", "b")).eval()


@pytest.mark.parametrize("form", ["regression", "flow"])
def test_a_past_of_clean_latents_gives_what_one_pass_over_all_gives(load, form: str) -> None:
    world = _driven(load, form)
    told, latents = world.conditions(torch.randn(2, 6, 2)), torch.randn(2, 5, 4, 4, 4)
    at_once, past = world.features(latents, told)[0], None
    for t in range(5):
        one, past = world.features(latents[:, t : t + 1], told[t : t + 1], past)
        torch.testing.assert_close(one[:, 0], at_once[:, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_a_flow_whose_head_knows_the_change_ends_there_in_any_number_of_calls(load, calls: int) -> None:
    world, change = _driven(load, "flow"), torch.randn(1, 4, 16)
    world.write.forward = lambda features, noised, sigma: change.expand_as(noised)
    found = world.changed(torch.randn(3, 4, 16), calls, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, change.expand(3, -1, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["regression", "flow"])
def test_forms_over_latents_learn_where_states_say_what_changes(load, form: str) -> None:
    world = _driven(load, form).train()
    states = torch.randn(8, 6, 2, generator=torch.Generator().manual_seed(1)).cumsum(dim=1)
    latents = (0.05 * states[:, :, :1, None, None]).expand(-1, -1, 4, 4, 4)
    world.measure([*latents])
    origins = tuple(Origin(source="drawn", episode=i, start=0) for i in range(8))
    batch = Batch(states=states, latents=latents, fps=15.0, origins=origins)
    optimizer = torch.optim.AdamW(world.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        world.loss(batch, torch.Generator().manual_seed(0))[0].backward()
        optimizer.step()
    true, told = world.eval().standard(latents), world.conditions(states)
    made = world.rolled(true[:, :4], told, calls=1, generator=torch.Generator().manual_seed(0))
    copied = (true[:, 4:] - true[:, 3:4]).square().mean()
    assert (made[:, 4:] - true[:, 4:]).square().mean() < 0.3 * copied
