"""Metrics against known answers: hand-computed offsets, another library, a slow float64 reference."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from worldline.evaluation.result import Row, best_rows
from worldline.metrics import bootstrap, image, tokens
from worldline.metrics.bootstrap import Interval
from worldline.metrics.table import METRICS, NotComputed
from worldline.metrics.tokens import Guesses, grid_costs, guesses_of, kept_guesses, shared_guesses, token_costs


def _random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- image.py ---


@pytest.mark.parametrize("offset", [1, 5, 64, 255])
def test_psnr_of_a_constant_offset(offset: int) -> None:
    real = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    expected = 20 * math.log10(255 / offset)
    torch.testing.assert_close(image.psnr(real + offset, real), torch.full((2,), expected))


def test_psnr_is_per_image_over_any_leading_shape() -> None:
    real = torch.zeros(2, 5, 3, 8, 8, dtype=torch.uint8)
    forecast = real.clone()
    forecast[1, 3] = 10
    values = image.psnr(forecast, real)
    assert values.shape == (2, 5)
    assert values[1, 3] == pytest.approx(20 * math.log10(25.5), abs=1e-4)
    assert (values == image.MAX_PSNR_DB).sum() == 9
    assert image.psnr(forecast[1, 3], real[1, 3]).shape == ()


def test_psnr_on_uint8_equals_the_challenge_formula_on_minus_one_to_one() -> None:
    forecast, real = _random_images(4, 3, 32, 32), _random_images(4, 3, 32, 32, seed=1)
    x, y = (2 * images.double() / 255 - 1 for images in (forecast, real))
    expected = 10 * torch.log10(2**2 / (x - y).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(image.psnr(forecast, real).double(), expected, rtol=0, atol=1e-4)


def test_psnr_of_almost_identical_images_is_finite_and_ordered() -> None:
    real = torch.full((3, 64, 64), 100, dtype=torch.uint8)
    almost = real.clone()
    almost[0, 0, 0] += 1
    one_off = real + 1
    same, near, off = (float(image.psnr(forecast, real)) for forecast in (real, almost, one_off))
    assert same == pytest.approx(58.92, abs=0.01)
    assert same >= near > off == pytest.approx(48.13, abs=0.01)


def _moving_bar(step: int, frames: int = 6) -> torch.Tensor:
    """A bar, drawn in place and then moved by so many pixels a frame: context and future, `1 t 3 8 64`."""
    video = torch.full((1, frames, 3, 8, 64), 30, dtype=torch.uint8)
    for time in range(frames):
        video[0, time, ..., 8 + step * time : 16 + step * time] = 210
    return video


def test_motion_is_0_of_a_frozen_clip_1_of_the_truth_and_2_of_one_twice_as_fast() -> None:
    (before, slow), fast = _moving_bar(2).tensor_split([1], dim=1), _moving_bar(4)[:, 1:]
    frozen = before.expand_as(slow)
    found = [image.motion(made, slow, before[:, 0]).item() for made in (frozen, slow, fast)]
    assert found == pytest.approx([0, 1, 2])
    # Only the first of five steps is made: without the frame before it, nothing would move.
    jumped = slow[:, :1].expand_as(slow)
    assert image.motion(jumped, slow, before[:, 0]).item() == pytest.approx(1 / 5)
    assert image.motion(jumped, slow, None).item() == 0
    assert image.motion(slow, slow, None).item() == pytest.approx(1)


def test_nothing_is_measured_against_a_truth_that_stands_still() -> None:
    still = torch.cat([_moving_bar(0), _moving_bar(1)])
    noisy = still.clone()
    noisy[:, 1::2] += 5
    values = image.motion(noisy[:, 1:], still[:, 1:], still[:, 0])
    assert values.isnan().tolist() == [True, False]
    with pytest.raises(NotComputed, match="no context before it"):
        image.motion(still[:, :1], still[:, :1], None)


def test_where_there_is_a_right_amount_no_row_is_called_the_best() -> None:
    moved = (
        {"motion": _plain(1.01), "psnr_db_last": _plain(15.0)},
        {"motion": _plain(0.9), "psnr_db_last": _plain(20.0)},
    )
    wrong, right = (Row(id=f"mean_{i}", role="model", metrics=metrics) for i, metrics in enumerate(moved))
    assert best_rows([wrong, right], "psnr_db_last") == [right]
    assert best_rows([wrong, right], "motion") == []
    assert METRICS["motion"].best == "→ 1"


def _plain(mean: float) -> Interval:
    return Interval(mean=mean, low=math.nan, high=math.nan, num_clips=1, num_episodes=1)


def test_ssim_agrees_with_scikit_image() -> None:
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    pytest.importorskip("torchmetrics")
    real = _random_images(2, 2, 3, 24, 40) // 8 + torch.arange(40, dtype=torch.uint8) * 5
    noise = torch.randint(-25, 26, real.shape, generator=torch.Generator().manual_seed(2))
    forecast = (real.int() + noise).clamp(0, 255).to(torch.uint8)
    values = image.ssim(forecast, real)
    assert values.shape == (2, 2)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        expected = structural_similarity(
            forecast[i, j].numpy(),
            real[i, j].numpy(),
            channel_axis=0,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(values[i, j]) == pytest.approx(expected, abs=1e-5)
    assert float(image.ssim(real[0, 0], real[0, 0])) == pytest.approx(1.0)


def test_ssim_says_why_it_cannot_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(image.NotComputed, match="11x11"):
        image.ssim(_random_images(3, 10, 10), _random_images(3, 10, 10))
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(image.NotComputed, match=r"pip install worldline\[metrics\]"):
        image.ssim(_random_images(3, 16, 16), _random_images(3, 16, 16))


# --- tokens.py ---


def _costs(guesses: Guesses) -> dict[str, torch.Tensor]:
    return {name.removeprefix("top500_"): cost for name, cost in token_costs(guesses).items()}


def _reference(logits: np.ndarray, target: int, k: int) -> dict[str, float | bool]:
    """One token, float64, by sorting; shares no step with the implementation."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    inside = order[:k]
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    outside = [token for token in range(len(p)) if token not in set(inside)]
    covered = target in inside
    residual = p[target] if covered else p[outside].sum() / len(outside)
    floor = -math.log(p[target] / p[inside].sum()) if covered else math.log(1e6)
    return {
        "ce_residual": -math.log(residual),
        "ce_floor": floor,
        "ce_hits_only": floor if covered else math.nan,
        "full_ce": -math.log(p[target]),
        "coverage": covered,
        "token_accuracy": order[0] == target,
    }


@pytest.mark.parametrize("kind", ["smooth", "many ties", "confident"])
def test_token_costs_agree_with_a_slow_float64_reference(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 60, generator=generator) * 2
    if kind == "many ties":
        logits = logits.round()
    if kind == "confident":
        logits[:, 7] += 25
    target = torch.randint(0, 60, (40,), generator=generator)
    costs = _costs(guesses_of(logits, target, k=11))
    for n in range(40):
        expected = _reference(logits[n].numpy(), int(target[n]), 11)
        assert costs.keys() == expected.keys()
        for name, value in expected.items():
            assert float(costs[name][n]) == pytest.approx(float(value), rel=1e-4, abs=1e-5, nan_ok=True)


def test_truth_at_rank_500_is_inside_and_at_rank_501_outside() -> None:
    vocab_size = 1000
    logits = -torch.arange(vocab_size, dtype=torch.float32)[None].repeat(2, 1) / 100
    costs = _costs(guesses_of(logits, torch.tensor([499, 500])))
    p = np.exp(-np.arange(vocab_size) / 100)
    p /= p.sum()
    assert costs["coverage"].tolist() == [1, 0]
    assert float(costs["ce_residual"][0]) == pytest.approx(-math.log(p[499]), rel=1e-5)
    assert float(costs["ce_residual"][1]) == pytest.approx(-math.log(p[500:].sum() / 500), rel=1e-5)
    assert float(costs["ce_floor"][0]) == pytest.approx(-math.log(p[499] / p[:500].sum()), rel=1e-5)
    assert float(costs["ce_floor"][1]) == pytest.approx(math.log(1e6), rel=1e-6)


def test_ties_at_the_last_rank_are_settled_by_the_lower_id() -> None:
    logits = torch.zeros(1000)
    logits[900] = 1.0
    every = guesses_of(logits.repeat(1000, 1), torch.arange(1000))
    assert every.covered.sum() == 500
    assert every.covered.nonzero().flatten().tolist() == [*range(499), 900]
    assert (every.rank == 0).nonzero().flatten().tolist() == [900]
    tied_first = guesses_of(torch.zeros(3, 4), torch.tensor([0, 1, 3]), k=2)
    assert tied_first.rank.tolist() == [0, 1, 3]
    assert tied_first.covered.tolist() == [True, True, False]


@pytest.mark.parametrize("vocab_size", [3, 499, 500])
def test_a_vocabulary_of_at_most_k_gives_the_full_cross_entropy(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(20, vocab_size, generator=generator)
    target = torch.randint(0, vocab_size, (20,), generator=generator)
    costs = _costs(guesses_of(logits, target))
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert costs["coverage"].all()
    for name in ("ce_residual", "ce_floor", "full_ce", "ce_hits_only"):
        torch.testing.assert_close(costs[name], expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_residual_is_a_code_length(scale: float) -> None:
    logits = (torch.randn(700, generator=torch.Generator().manual_seed(5)) * scale).repeat(700, 1)
    residual = _costs(guesses_of(logits, torch.arange(700)))["ce_residual"]
    assert float(residual.double().neg().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_a_confident_miss_keeps_its_digits() -> None:
    logits = torch.full((1, 1000), -40.0)
    logits[0, :500] = 0.0
    residual = _costs(guesses_of(logits, torch.tensor([999])))["ce_residual"]
    assert float(residual[0]) == pytest.approx(40 + math.log(500), rel=1e-6)


def test_chunks_and_half_precision_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(50, 900, generator=generator).bfloat16()
    target = torch.randint(0, 900, (50,), generator=generator)
    whole = _costs(guesses_of(logits.float(), target))
    monkeypatch.setattr(tokens, "CHUNK", 3)
    parts = _costs(guesses_of(logits, target))
    torch.testing.assert_close(parts["ce_residual"], whole["ce_residual"])
    assert parts["ce_residual"].dtype == torch.float32
    assert torch.equal(parts["coverage"], whole["coverage"])


@pytest.mark.parametrize(("vocab_size", "k"), [(900, 500), (900, 1), (3, 500), (500, 500), (501, 500)])
def test_one_distribution_for_all_tokens_costs_what_it_costs_row_by_row(vocab_size: int, k: int) -> None:
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(7)).mul(4).round()  # with many ties
    target = torch.randint(0, vocab_size, (300,), generator=torch.Generator().manual_seed(8))
    found = token_costs(shared_guesses(logits.log_softmax(dim=0), target, k=k))
    for name, expected in token_costs(guesses_of(logits.expand(300, -1), target, k=k)).items():
        torch.testing.assert_close(found[name], expected, equal_nan=True, msg=name)


def _dense(prior: torch.Tensor, kept: int, changed: float) -> torch.Tensor:
    """The distribution that is meant, written out."""
    others = prior.index_fill(0, torch.tensor(kept), 0)
    return (changed * others / others.sum()).index_fill(0, torch.tensor(kept), 1 - changed)


@pytest.mark.parametrize("changed", [0.02, 0.5, 0.9, 0.999, 1 - 1e-6])
@pytest.mark.parametrize(("vocab_size", "k"), [(40, 7), (40, 39), (40, 40), (900, 500), (3, 1)])
def test_keeping_tokens_costs_what_the_distribution_written_out_says(changed: float, vocab_size: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    prior = torch.rand(vocab_size, generator=generator, dtype=torch.float64).pow(4) + 1e-4
    prior = prior / prior.sum()
    kept, target = torch.randint(vocab_size, (2, 300), generator=generator)
    target[:60] = kept[:60]
    rows = torch.stack([_dense(prior, int(token), changed) for token in kept])
    assert rows.sum(dim=1).sub(1).abs().max() < 1e-12, "a proper distribution"
    found = kept_guesses(prior, kept, target, changed=changed, k=k)
    expected = guesses_of(rows.log(), target, k=k)
    assert torch.equal(found.covered, expected.covered)
    assert torch.equal(found.rank == 0, expected.rank == 0)
    costs = token_costs(found)
    for name, cost in token_costs(expected).items():
        torch.testing.assert_close(costs[name], cost, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)


def test_costs_of_a_grid_average_its_tokens_and_leave_misses_out_of_hits_only() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 3.0]]).repeat(2, 1)
    guesses = guesses_of(logits.view(2, 1, 2, 3), torch.tensor([0, 0, 2, 2]).view(2, 1, 2), k=1)
    costs, means = _costs(guesses), {name.removeprefix("top500_"): cost for name, cost in grid_costs(guesses).items()}
    assert means["coverage"].tolist() == [0.5, 0.5]
    assert means["token_accuracy"].tolist() == [0.5, 0.5]
    assert means["ce_hits_only"].tolist() == [0.0, 0.0]
    torch.testing.assert_close(means["full_ce"], costs["full_ce"].reshape(2, 2).mean(dim=1))


# --- bootstrap.py ---


def test_the_mean_is_the_plain_mean_over_clips() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    result = bootstrap.interval(values, torch.tensor([0, 0, 0, 7]))
    assert result.mean == 4.0
    assert (result.num_clips, result.num_episodes) == (4, 2)
    assert (result.low, result.high) == (2.0, 10.0)


def test_interval_of_independent_values_matches_theory() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    result = bootstrap.interval(values, torch.arange(400))
    half = 1.96 * float(values.std(correction=0)) / 20
    assert result.high - result.mean == pytest.approx(half, rel=0.08)
    assert result.mean - result.low == pytest.approx(half, rel=0.08)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    samples = torch.randn(40, 500, generator=torch.Generator().manual_seed(8))
    results = bootstrap.intervals(samples, torch.arange(40))
    covered = np.mean([result.low <= 0.0 <= result.high for result in results])
    assert 0.91 <= covered <= 0.97


def test_clips_of_one_episode_do_not_count_as_independent() -> None:
    generator = torch.Generator().manual_seed(9)
    episodes = torch.arange(30).repeat_interleave(20)
    values = torch.randn(30, generator=generator)[episodes] + 0.1 * torch.randn(600, generator=generator)
    clustered = bootstrap.interval(values, episodes)
    naive = bootstrap.interval(values, torch.arange(600))
    assert clustered.mean == naive.mean
    assert clustered.high - clustered.low > 3 * (naive.high - naive.low)


def test_pairing_removes_what_both_share() -> None:
    generator = torch.Generator().manual_seed(10)
    hardness = 5 * torch.randn(50, generator=generator)
    a = hardness + 1 + 0.1 * torch.randn(50, generator=generator)
    difference = bootstrap.interval(a - hardness, torch.arange(50))
    assert 0.9 < difference.low < difference.mean < difference.high < 1.1
    assert bootstrap.interval(a, torch.arange(50)).low < 0.9


def test_columns_share_one_draw_and_equal_single_calls() -> None:
    values = torch.randn(30, 3, generator=torch.Generator().manual_seed(11))
    episodes = torch.arange(30) // 3
    together = bootstrap.intervals(values, episodes)
    assert together[2] == bootstrap.interval(values[:, 2], episodes)


def test_one_episode_has_no_interval_and_says_so_in_json() -> None:
    result = bootstrap.interval(torch.tensor([1.0, 3.0]), torch.tensor([4, 4]))
    assert result.mean == 2.0
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    adapter = TypeAdapter(bootstrap.Interval)
    assert json.loads(adapter.dump_json(result))["low"] is None
    assert math.isnan(adapter.validate_json(adapter.dump_json(result)).high)
    assert result.said("dB") == "2.00 [one episode] dB"
    assert replace(result, mean=math.nan, num_episodes=12).said() == "not defined"


def test_values_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of 3 clips have a value that is not finite, the first is clip 1"):
        bootstrap.interval(torch.tensor([1.0, math.nan, math.inf]), torch.arange(3))
    with pytest.raises(ValueError, match="no clips"):
        bootstrap.interval(torch.zeros(0), torch.arange(0))
