"""How long three grids take to generate, with and without the cache of keys and values. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--quick | --cuda] [--repeats 7]

Greedy, fp32 (as the report infers), random weights and contexts: neither changes the time. Both ways are run in
turns, and their logits are compared, so that a fast but wrong cache does not pass.
"""

from dataclasses import replace

import torch
from common import (
    NO_CUDA,
    ONLY_CUDA,
    STATES,
    TINY_GRID,
    Parts,
    built_on,
    card_wanted,
    in_turns,
    options,
    random_batch,
    ratio,
    spread,
)

from worldline.process.categorical import Sampling
from worldline.recipes import compression_tiny
from worldline.schema import TokenGrid
from worldline.worlds.st_transformer import ONEX_GRID, STTransformerConfig


def generation(
    config: STTransformerConfig, size: int, repeats: int, grid: TokenGrid, device: str = "cpu"
) -> dict[str, object]:
    """Roll one world forward both ways."""
    world = built_on(device, lambda: config.build(grid, state_names=STATES)).eval()
    batch = random_batch(config, size, device, grid)
    assert batch.tokens is not None
    context, states = batch.tokens[:, : config.context_grids], batch.states

    def roll(*, cached: bool) -> list[torch.Tensor]:
        return [step.logits for step in world.forecast(context, states, sampling=Sampling(), cached=cached)]

    seconds = in_turns({"cached": lambda: roll(cached=True), "uncached": lambda: roll(cached=False)}, repeats=repeats)
    # The first grid comes of the same computation; later ones may differ by a token where two logits nearly tie.
    pairs = list(zip(roll(cached=True), roll(cached=False), strict=True))
    return {
        "clips": size,
        "grid": f"{grid.height}x{grid.width}",
        "cached_seconds_per_forecast": spread(seconds["cached"]),
        "uncached_seconds_per_forecast": spread(seconds["uncached"]),
        "clips_per_second": spread([size / s for s in seconds["cached"]]),
        "uncached_to_cached_ratio": ratio(seconds, "uncached", "cached"),
        "largest_logit_difference_of_second_grid": float(f"{(pairs[1][0] - pairs[1][1]).abs().max().item():.3g}"),
        "share_of_equal_tokens": round(
            sum((a.argmax(-1) == b.argmax(-1)).float().mean().item() for a, b in pairs) / len(pairs), 6
        ),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    card, parts, tiny = card_wanted(given), Parts(), compression_tiny().model
    assert isinstance(tiny, STTransformerConfig)
    if given.cuda:
        parts.leave_out("compression_tiny", why=ONLY_CUDA)
    elif given.quick:
        parts.add("compression_tiny", lambda: generation(replace(tiny, layers=1), 1, 1, TINY_GRID))
    else:
        parts.add("compression_tiny", lambda: generation(tiny, 8, given.repeats, TINY_GRID))
    if card:
        report = STTransformerConfig()
        parts.add("compression_revontuli", lambda: generation(report, 4, given.repeats, ONEX_GRID, "cuda"))
    else:
        parts.leave_out("compression_revontuli", why=NO_CUDA)
    parts.finish(quick=given.quick, torch_threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
