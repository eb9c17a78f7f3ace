"""The categorical process: cross-entropy in chunks, drawing tokens, scheduled sampling."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.planning.meter import follow
from worldline.process.categorical import Sampling, cross_entropy, draw, scheduled, sharpened_costs
from worldline.schema import UsageError

N, V, D = 60, 50, 8


def _problem(n: int = N, v: int = V) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, D, generator=generator).requires_grad_()
    weight = torch.randn(v, D, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(v, (n,), generator=generator)


# --- cross-entropy ---


@pytest.mark.parametrize("chunk", [1, 7, 20, N - 1, N, N + 1, 10_000])
def test_value_and_gradients_are_those_of_the_plain_loss(chunk: int) -> None:
    hidden, weight, target = _problem()
    expected, wanted = _plain(hidden, weight, target)
    loss = cross_entropy(hidden, weight, target, chunk=chunk)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(torch.autograd.grad(loss, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [800, 10_000])
def test_under_autocast_products_are_bfloat16_and_the_mean_is_float32(chunk: int) -> None:
    hidden, weight, target = _problem(n=3000)
    expected, wanted = _plain(hidden.bfloat16(), weight.bfloat16(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(hidden, weight, target, chunk=chunk)
    assert loss.dtype == torch.float32
    # Each cost is rounded to eight bits, but not their mean: it is a hundred times nearer than bfloat16 could tell.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for one, other in zip(torch.autograd.grad(loss, (hidden, weight)), wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 1e-2 * other.norm()


def _plain(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All logits at once, in float64: the loss and its gradients."""
    inputs = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    loss = F.cross_entropy(inputs[0] @ inputs[1].T, target)
    return loss.detach(), torch.autograd.grad(loss, inputs)


def test_uniform_logits_cost_the_log_of_the_vocabulary() -> None:
    _, weight, target = _problem()
    loss = cross_entropy(torch.zeros(N, D), weight, target, chunk=7)
    torch.testing.assert_close(loss, torch.tensor(V).float().log())


def test_costs_are_summed_in_float32_whatever_the_features_are() -> None:
    hidden, weight, target = _problem()
    loss = cross_entropy(hidden.bfloat16(), weight.bfloat16(), target, chunk=7)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("chunk", [16, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chunk_of_logits_exists_and_none_waits_for_the_backward_pass(dtype: torch.dtype, chunk: int) -> None:
    n, v = 256, 500
    hidden, weight, target = _problem(n, v)
    given = [hidden.detach().to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_(), target]
    found = follow(lambda: cross_entropy(*given, chunk=chunk), given, autocast=False, device="cpu", native=True)
    both = 4 * (n + v) * D  # as large as the two gradients
    per_token = 16 * n
    logits = min(chunk, n) * v * (4 if dtype == torch.float32 else 4 + 4)  # and a copy
    assert found.held <= both + per_token < 4 * n * v
    assert logits / 2 <= found.peak <= logits + 3 * both + per_token


def test_the_measurement_sees_logits_that_are_kept() -> None:
    hidden, weight, target = given = _problem(256, 500)
    plain = follow(
        lambda: F.cross_entropy(F.linear(hidden, weight), target), given, autocast=False, device="cpu", native=True
    )
    assert plain.held >= 4 * 256 * 500


# --- drawing ---


@pytest.mark.parametrize("size", [5, 1000, 64_000])
def test_greedy_ties_go_to_the_lower_id(size: int) -> None:
    logits = torch.zeros(3, size)
    logits[1, [size // 2, size - 1]] = 2.0
    logits[2, [1, 2, 3]] = 1.0
    assert draw(logits, Sampling()).tolist() == [0, size // 2, 1]


def _drawn(logits: Tensor, sampling: Sampling, count: int = 20_000) -> Tensor:
    """How often each token is drawn."""
    (tokens,) = draw(logits.expand(1, count, -1), sampling, [torch.Generator().manual_seed(0)])
    return torch.bincount(tokens, minlength=len(logits))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -3.0])
    counts = _drawn(logits, Sampling(temperature=temperature))
    expected = 20_000 * (logits / temperature).softmax(dim=0)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # Once in a million with five degrees of freedom: builds of PyTorch draw exponential noise by other streams.
    assert chi_square < 35.9


@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_never_draws_another_token(k: int) -> None:
    logits = torch.tensor([0.0, 0.3, 0.1, -0.2, 0.2])
    counts = _drawn(logits, Sampling(temperature=1.0, top_k=k))
    assert set(counts.nonzero().flatten().tolist()) == set(logits.topk(k).indices.tolist())


def test_top_k_keeps_k_tokens_also_where_they_tie() -> None:
    counts = _drawn(torch.zeros(8), Sampling(temperature=1.0, top_k=3))
    assert (counts > 0).sum() == 3


def test_top_p_keeps_the_fewest_tokens_that_reach_p() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    for p, kept in ((0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        counts = _drawn(logits, Sampling(temperature=1.0, top_p=p))
        assert set(counts.nonzero().flatten().tolist()) == kept, p


def test_the_likeliest_token_survives_any_top_p() -> None:
    counts = _drawn(torch.tensor([0.0, 5.0, 1.0]), Sampling(temperature=1.0, top_p=1e-6))
    assert counts.tolist() == [0, 20_000, 0]


def test_kept_tokens_keep_their_proportions() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    counts = _drawn(logits, Sampling(temperature=1.0, top_k=2))
    assert counts[1] / 20_000 == pytest.approx(4 / 7, abs=0.02)


def test_top_k_of_more_than_the_vocabulary_changes_nothing() -> None:
    logits = torch.tensor([0.0, 0.3, 0.1])
    assert torch.equal(_drawn(logits, Sampling(temperature=1.0, top_k=9)), _drawn(logits, Sampling(temperature=1.0)))


def test_the_same_generator_draws_the_same() -> None:
    logits = torch.randn(1, 3, 4, 50, generator=torch.Generator().manual_seed(1))
    one, same, other = (draw(logits, Sampling(temperature=1.0), [torch.Generator().manual_seed(s)]) for s in (1, 1, 2))
    assert one.shape == (1, 3, 4)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_every_row_is_drawn_from_its_own_generator() -> None:
    logits = torch.randn(1, 30, 50, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1)
    rows = draw(logits, Sampling(temperature=1.0), [torch.Generator().manual_seed(s) for s in (5, 6, 5)])
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    with pytest.raises(ValueError, match="zip"):
        draw(logits, Sampling(temperature=1.0), [torch.Generator()])


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-3])
def test_a_temperature_near_nothing_is_greedy(temperature: float) -> None:
    logits = 50 * torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(2))
    cold = draw(logits, Sampling(temperature=temperature), [torch.Generator().manual_seed(s) for s in (0, 1)])
    assert torch.equal(cold, logits.argmax(dim=-1))


def test_logits_that_differ_in_the_last_digits_draw_the_same_tokens() -> None:
    logits = torch.randn(1, 2000, 3000, generator=torch.Generator().manual_seed(0))
    tilted = logits + 1e-4 * torch.linspace(-1, 1, 3000)  # errors of one sign add up in sums of probabilities
    one, other = (draw(x, Sampling(temperature=1.0), [torch.Generator().manual_seed(0)]) for x in (logits, tilted))
    assert (one != other).float().mean() < 2e-3


def test_a_token_without_probability_is_never_drawn_however_many_there_are() -> None:
    logits = torch.full((1, 4000, 9), -torch.inf)
    logits[..., [2, 5]] = 0.0
    tokens = draw(logits, Sampling(temperature=1.0), [torch.Generator().manual_seed(0)])
    assert set(tokens.unique().tolist()) == {2, 5}


def test_sampling_without_a_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="generator"):
        draw(torch.zeros(2, 3), Sampling(temperature=0.7))


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_impossible_choices_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)


# --- how sure ---


def test_costs_of_other_temperatures_are_those_of_the_plain_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, factors = torch.randn(3, 5, 7, 11, generator=generator), torch.tensor([0.25, 1.0, 2.0])
    target = torch.randint(11, (3, 5, 7), generator=generator)
    expected = [F.cross_entropy(logits.flatten(0, 2) * f, target.flatten(), reduction="sum") for f in (0.25, 1.0, 2.0)]
    for rows in (1, 64, 1000):
        torch.testing.assert_close(sharpened_costs(logits, target, factors, rows=rows), torch.stack(expected))


# --- scheduled sampling ---


def test_scheduled_sampling_swaps_nothing_everything_or_its_share() -> None:
    truth, predicted = torch.zeros(4, 3, 16, 16).long(), torch.ones(4, 3, 16, 16).long()
    none, some, every = (
        scheduled(truth, predicted, p, torch.Generator().manual_seed(0)).float().mean() for p in (0.0, 0.3, 1.0)
    )
    assert none == 0
    assert some == pytest.approx(0.3, abs=0.05)
    assert every == 1
