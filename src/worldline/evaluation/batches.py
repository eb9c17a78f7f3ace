"""Go over the chosen clips batch by batch, each batch on one rank, and put together what was found, in clip order.

Every protocol's loop is this one. What a batch scores depends on the batch alone, so the numbers are those of one
process that was never stopped, however many there are and however often they were.
"""

from collections.abc import Callable, Sequence

from worldline.data.clips import Clips
from worldline.evaluation.parts import Parts
from worldline.evaluation.tally import Tally
from worldline.ranks import Ranks
from worldline.schema import Batch, UsageError, stack

Progress = Callable[[int, int], None]
"""Called on rank 0 with (batches done, all batches) of its share."""


def check_sizes(*, num_clips: int | None, batch_size: int, seed: int = 0, shown_clips: int = 1) -> None:
    """Refuse numbers by which nothing, or nothing twice, can be evaluated. Raises `UsageError`."""
    if num_clips is not None and num_clips < 1:
        raise UsageError(f"{num_clips} clips are too few to judge anything by; give --num-clips 1 or more, or None")
    if batch_size < 1:
        raise UsageError(f"a batch of {batch_size} clips evaluates nothing; give --batch-size 1 or more")
    if seed < 0:
        raise UsageError(f"a seed of {seed} makes no noise; give --seed 0 or more")
    if shown_clips < 1:
        raise UsageError(f"{shown_clips} shown clips leave the report without pictures; give 1 or more")


def tallied(
    clips: Clips,
    chosen: Sequence[int],
    score: Callable[[Batch, range], Tally],
    *,
    batch_size: int,
    parts: Parts,
    ranks: Ranks,
    progress: Progress | None,
) -> Tally | None:
    """Score every batch on one of the ranks, and give all of it to the first of them; to the others None.

    Args:
        score: given a batch and the places of its clips among the chosen ones.
        parts: where each batch's numbers are kept; those that are there are not scored again.
    """
    begins = range(0, len(chosen), batch_size)

    def make(begin: int) -> None:
        now = range(begin, min(begin + batch_size, len(chosen)))
        parts.write(begin, score(stack([clips[chosen[i]] for i in now]), now))

    ranks.made(begins, make, done=parts.there.__contains__, progress=progress)
    if not ranks.writes:
        return None
    whole = Tally()
    for begin in begins:
        whole.add(parts.read(begin))
    return whole
