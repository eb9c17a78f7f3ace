"""What may differ between calls of different shapes, threads, ranks or processors, and by how much.

A processor's kernels choose by shape in which order they add, so float32 results of two shapes agree to a few units in
the last place, not to the bit, and what is rounded or chosen from them may fall the other way at a near tie. Equality
to the bit is asked only of the same program run twice on the same shapes, and of what is copied.
"""

import torch
from torch import Tensor


def assert_values_agree(found: Tensor, expected: Tensor) -> None:
    """Float32 of order one: a hundred units in the last place. A wrong neighbour or step differs by over 1e-3."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def assert_pixels_agree(found: Tensor, expected: Tensor) -> None:
    """Frames that were rounded to uint8: at most one grey level."""
    assert found.dtype == expected.dtype == torch.uint8
    assert found.shape == expected.shape
    assert (found.int() - expected.int()).abs().max() <= 1


def assert_tokens_agree(found: Tensor, expected: Tensor) -> None:
    """Tokens that were rounded or chosen from floats: at most one in a hundred, and never more than one of a few."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert (found != expected).sum() <= max(1, found.numel() // 100)


def assert_whole_agrees(found: Tensor, expected: Tensor, *, share: float) -> None:
    """Weights after optimizer steps, by the norm of their difference, not number by number.

    AdamW divides a gradient by its own size, so where it is rounding noise around zero that noise becomes a full step.
    """
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert (found - expected).norm() <= share * expected.norm()
