"""Finite scalar quantisation: index arithmetic of NVIDIA's Cosmos, every level reachable, gradients pass through."""

import itertools
import math

import pytest
import torch

from worldline.nn.fsq import FSQ

COSMOS = (8, 8, 8, 5, 5, 5)
ALL = torch.arange(64_000)


def test_all_64000_codes_come_back_exactly() -> None:
    quantiser = FSQ(COSMOS)
    codes = quantiser.codes(ALL)
    assert quantiser.vocab_size == 64_000
    assert torch.equal(quantiser.indices(codes), ALL)
    assert len(codes.unique(dim=0)) == 64_000
    assert torch.equal(quantiser.codes(quantiser.indices(codes)), codes)


def test_index_is_the_mixed_radix_number_of_the_digits() -> None:
    basis = (1, 8, 64, 512, 2560, 12800)
    digits = torch.tensor(list(itertools.product(*(range(level) for level in COSMOS))))
    expected = (digits * torch.tensor(basis)).sum(dim=1)
    half = torch.tensor([level // 2 for level in COSMOS])
    codes = (digits - half) / half  # digit = code * (L // 2) + L // 2
    assert torch.equal(FSQ(COSMOS).indices(codes), expected)
    assert torch.equal(FSQ(COSMOS).codes(expected), codes)


@pytest.mark.parametrize(
    ("index", "digits"),
    [
        (0, (0, 0, 0, 0, 0, 0)),
        (1, (1, 0, 0, 0, 0, 0)),
        (8, (0, 1, 0, 0, 0, 0)),
        (512, (0, 0, 0, 1, 0, 0)),
        (63_999, (7, 7, 7, 4, 4, 4)),
    ],
)
def test_known_indices(index: int, digits: tuple[int, ...]) -> None:
    codes = FSQ(COSMOS).codes(torch.tensor([index]))[0]
    expected = [(d - level // 2) / (level // 2) for d, level in zip(digits, COSMOS, strict=True)]
    assert codes.tolist() == pytest.approx(expected, abs=0)


@pytest.mark.parametrize("level", [2, 3, 4, 5, 7, 8])
def test_forward_reaches_every_level_and_no_other(level: int) -> None:
    quantiser = FSQ((level,))
    z = torch.linspace(-8, 8, 4001)[:, None]
    codes = quantiser(z)
    assert torch.equal(quantiser.indices(codes).unique(), torch.arange(level))
    assert torch.equal(quantiser.codes(quantiser.indices(codes)), codes)
    assert (codes.diff(dim=0) >= 0).all(), "a larger input never gives a lower level"
    assert codes.abs().max() <= 1


@pytest.mark.parametrize("level", [2, 3, 4, 5, 7, 8])
def test_zero_lies_in_the_middle_of_level_half(level: int) -> None:
    quantiser = FSQ((level,))
    around = torch.tensor([[-0.05], [0.0], [0.05]])
    assert quantiser.indices(quantiser(around)).tolist() == [level // 2] * 3


def test_forward_gives_codes_that_indices_understand() -> None:
    quantiser = FSQ(COSMOS)
    z = 3 * torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    codes = quantiser(z)
    indices = quantiser.indices(codes)
    assert indices.shape == (2, 3, 4)
    assert indices.dtype == torch.int64
    assert torch.equal(quantiser.codes(indices), codes)


@pytest.mark.parametrize("level", [5, 8])
def test_gradient_passes_straight_through_the_rounding(level: int) -> None:
    z = torch.linspace(-2, 2, 41).unsqueeze(1).requires_grad_()
    FSQ((level,))(z).sum().backward()
    # What is left is the slope of the bound: tanh(z + s) * half - offset, in units of L // 2.
    half, offset = (level - 1) * 1.001 / 2, 0.5 if level % 2 == 0 else 0.0
    slope = half * (1 - torch.tanh(z.detach() + math.atanh(offset / half)) ** 2) / (level // 2)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, slope)
    assert (z.grad > 0).all()


# --- hysteresis ---


def _still_but_noisy(steps: int = 400, noise: float = 0.6) -> torch.Tensor:
    """An input on the edge between two levels, shaken by less than a level: `1 t 1`, in units of FSQ((5,))'s levels."""
    generator = torch.Generator().manual_seed(0)
    levels = 0.5 + noise * (torch.rand(steps, generator=generator) - 0.5)
    return torch.atanh(levels / (4 * 1.001 / 2)).view(1, -1, 1)


def test_without_hold_codes_are_the_nearest() -> None:
    z = 3 * torch.randn(2, 7, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(FSQ(COSMOS).with_hysteresis(z, 0.0), FSQ(COSMOS)(z))


def test_noise_within_the_hold_changes_nothing() -> None:
    quantiser, z = FSQ((5,)), _still_but_noisy()
    assert (quantiser(z).diff(dim=1) != 0).float().mean() > 0.3, "the nearest level flickers"
    held = quantiser.with_hysteresis(z, 0.5)
    assert torch.equal(held, held[:, :1].expand_as(held))


def test_what_moves_further_than_the_hold_takes_the_nearest_level() -> None:
    levels = torch.tensor([0.0, 0.9, 1.1, 0.2, -0.4, -2.0])
    z = torch.atanh(levels / (4 * 1.001 / 2)).view(1, -1, 1)
    # within one level (0.5 + 0.5) of the last code it stays; beyond, it rounds
    assert (FSQ((5,)).with_hysteresis(z, 0.5) * 2).flatten().tolist() == [0, 0, 1, 1, 0, -2]


def test_a_token_is_kept_or_changed_as_a_whole() -> None:
    levels = torch.tensor([[0.0, 0.0], [0.6, 0.0], [0.6, 1.4]])
    z = torch.atanh(levels / (4 * 1.001 / 2)).unsqueeze(0)
    # the first channel stays at 0 while the token is kept, and rounds as soon as the second one leaves
    assert (FSQ((5, 5)).with_hysteresis(z, 0.3) * 2)[0].tolist() == [[0, 0], [0, 0], [1, 1]]


def test_a_code_with_hysteresis_depends_on_the_past_alone() -> None:
    z = torch.randn(1, 6, 3, 6, generator=torch.Generator().manual_seed(0))
    changed = z.clone()
    changed[:, 4] += 1
    before, after = FSQ(COSMOS).with_hysteresis(z, 0.75), FSQ(COSMOS).with_hysteresis(changed, 0.75)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4], after[:, 4])


def test_gradient_passes_through_a_kept_code_as_through_the_nearest() -> None:
    z = _still_but_noisy(20)
    gradients = []
    for code in (FSQ((5,)).forward, lambda x: FSQ((5,)).with_hysteresis(x, 0.5)):
        x = z.clone().requires_grad_()
        code(x).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_holds_no_parameters_and_nothing_to_save() -> None:
    quantiser = FSQ(COSMOS)
    assert list(quantiser.parameters()) == []
    assert quantiser.state_dict() == {}
