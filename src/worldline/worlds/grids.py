"""What every world over token grids refuses: tokens of another tokenizer, and grids of another size."""

import math

from torch import Tensor

from worldline.schema import TokenGrid, UsageError


def refuse_other_levels(levels: tuple[int, ...], grid: TokenGrid) -> None:
    """Raise `UsageError` where codes of these FSQ levels are not the vocabulary of the tokens."""
    if (coded := math.prod(levels)) != grid.vocab_size:
        made = f"code levels {levels} make {coded} tokens"
        raise UsageError(f"{made}, but the tokens have {grid.vocab_size}; give the tokenizer's --model.code-levels")


def refuse_other_grids(tokens: Tensor, grid: TokenGrid) -> None:
    """Raise `UsageError` for tokens `b t h w` of other height or width."""
    if (found := tokens.shape[2:]) != (expected := (grid.height, grid.width)):
        raise UsageError("this world reads grids of {}x{}, but these are {}x{}".format(*expected, *found))
