"""How long an optimizer step takes: the tiny world and tokenizer, and on CUDA the report's world. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py [--quick | --cuda] [--repeats 7] [--piece 8]

Random data, no loader: the step alone (forward, backward, AdamW). What dropout and what the chunks of the
cross-entropy cost is measured in turns with the same step without them. FLOPs are counted on shapes alone, without
recomputation; `fraction_of_matmul_peak` compares the step with a bfloat16 matrix product on the same card.
`tokens` are the positions the transformer reads: 5 grids of a clip of 6. On CUDA the variants are compared at half the
piece, because all five are in memory at once, one of them with all logits.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from common import (
    NO_CUDA,
    ONLY_CUDA,
    STATES,
    TINY_GRID,
    Parts,
    autocast,
    built_on,
    card_wanted,
    in_turns,
    matmul_peak,
    options,
    random_batch,
    ratio,
    spread,
)
from torch import nn

from worldline.families.config import TrainConfig
from worldline.nn.optimizer import build_optimizer
from worldline.planning.meter import follow
from worldline.recipes import compression_revontuli, compression_tiny, tokenizer_tiny
from worldline.schema import Batch, Origin, TokenGrid
from worldline.tokenizers.fsq_video import FSQVideoConfig
from worldline.worlds.st_transformer import ONEX_GRID, STTransformerConfig


def stepper(model: nn.Module, recipe: TrainConfig, batch: Batch, device: str = "cpu") -> Callable[[], None]:
    """One optimizer step on the same batch, again and again."""
    model = model.to(device).train()
    optimizer, generator = build_optimizer(recipe.optimizer, model), torch.Generator()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device):
            loss = model.loss(batch, generator)[0]
        loss.backward()
        optimizer.step()

    return step


def world_steps(
    recipe: TrainConfig, world: STTransformerConfig, size: int, repeats: int, grid: TokenGrid, device: str = "cpu"
) -> dict[str, Any]:
    """The recipe's step, and what dropout and the chunks of the cross-entropy cost."""
    return speed(recipe, world, size, repeats, grid, device) | variants(recipe, world, size, repeats, grid, device)


def speed(
    recipe: TrainConfig, world: STTransformerConfig, size: int, repeats: int, grid: TokenGrid, device: str = "cpu"
) -> dict[str, Any]:
    """The recipe's step alone."""
    tokens = size * (world.context_grids + world.horizon_grids - 1) * grid.height * grid.width
    model = built_on(device, lambda: world.build(grid, state_names=STATES))
    step = stepper(model, recipe, random_batch(world, size, device, grid), device)
    seconds, flops = in_turns({"recipe": step}, repeats=repeats)["recipe"], flops_per_clip(world, grid) * size
    return {
        "batch": size,
        "seconds_per_step": spread(seconds),
        "tokens_per_second": spread([tokens / s for s in seconds]),
        "tflop_per_second": spread([flops / s / 1e12 for s in seconds]),
    }


def variants(
    recipe: TrainConfig, world: STTransformerConfig, size: int, repeats: int, grid: TokenGrid, device: str = "cpu"
) -> dict[str, Any]:
    """The step with and without dropout, with the cross-entropy whole and in chunks, in turns."""
    batch = random_batch(world, size, device, grid)
    future = size * world.horizon_grids * grid.height * grid.width
    kinds = {
        "dropout_0": replace(world, dropout=0.0),
        "dropout_0.1": replace(world, dropout=0.1),
        "whole": replace(world, dropout=0.0, loss_chunk=future),
        "chunked": replace(world, dropout=0.0, loss_chunk=min(8192, math.ceil(future / 4))),
    }
    models = {name: built_on(device, partial(config.build, grid, state_names=STATES)) for name, config in kinds.items()}
    steps = {name: stepper(model, recipe, batch, device) for name, model in models.items()}
    seconds = in_turns(steps, repeats=repeats)
    return {
        "batch_of_the_variants": size,
        "dropout_0.1_to_0_ratio": ratio(seconds, "dropout_0.1", "dropout_0"),
        "chunked_to_whole_cross_entropy_ratio": ratio(seconds, "chunked", "whole"),
        "chunk_tokens": kinds["chunked"].loss_chunk,
    }


def flops_per_clip(world: STTransformerConfig, grid: TokenGrid = ONEX_GRID) -> float:
    """Floating-point operations of forward and backward for one clip, without a second pass of the loss's logits."""
    with torch.device("meta"):
        model = replace(world, dropout=0.0).build(grid, state_names=STATES)
    batch = random_batch(world, 1, "meta", grid)
    found = follow(lambda: model.loss(batch, torch.Generator())[0], model.parameters(), autocast=False)
    return float(found.forward_flop + found.backward_flop)


def tokenizer_steps(recipe: TrainConfig, config: FSQVideoConfig, size: int, repeats: int) -> dict[str, object]:
    """The tokenizer's step on noise."""
    side = recipe.data.image_size or 64
    shape = (size, config.clip_frames, 3, side, side)
    batch = Batch(
        frames=torch.randint(256, shape, dtype=torch.uint8),
        states=torch.zeros(size, config.clip_frames, 1),
        fps=30.0,
        origins=tuple(Origin(source="drawn", episode=i, start=0) for i in range(size)),
    )
    seconds = in_turns({"step": stepper(config.build(), recipe, batch)}, repeats=repeats)["step"]
    frames = size * config.block_frames
    return {
        "batch": size,
        "seconds_per_step": spread(seconds),
        "frames_per_second": spread([frames / s for s in seconds]),
    }


def report_speed(recipe: TrainConfig, piece: int | None, repeats: int) -> dict[str, Any]:
    """The report's world in bfloat16 autocast, a piece of its batch at a time."""
    found = speed(recipe, report_world(recipe), piece or usual_piece(), repeats, ONEX_GRID, "cuda")
    peak = matmul_peak(repeats)
    return {
        **found,
        "matmul_peak_tflop_per_second": round(peak, 1),
        "fraction_of_matmul_peak": {name: round(value / peak, 3) for name, value in found["tflop_per_second"].items()},
    }


def report_variants(recipe: TrainConfig, piece: int | None, repeats: int) -> dict[str, Any]:
    half = max(1, (piece or usual_piece()) // 2)
    return variants(recipe, report_world(recipe), half, repeats, ONEX_GRID, "cuda")


def report_world(recipe: TrainConfig) -> STTransformerConfig:
    assert isinstance(recipe.model, STTransformerConfig)
    return recipe.model


def usual_piece() -> int:
    """Clips at once that fit; loss_memory.py says what a piece needs."""
    return 8 if torch.cuda.get_device_properties(0).total_memory > 75e9 else 2


def on_cpu(parts: Parts, repeats: int, *, quick: bool) -> None:
    """The tiny models, and the FLOPs of the report's world, which are counted."""
    world, tokenizer = compression_tiny(), tokenizer_tiny()
    assert isinstance(world.model, STTransformerConfig)
    assert isinstance(tokenizer.model, FSQVideoConfig)
    size, layers = (1, 1) if quick else (world.batch_size, world.model.layers)
    config, frames, small = replace(world.model, layers=layers), tokenizer.model, min(size, tokenizer.batch_size)
    parts.add("compression_tiny", lambda: world_steps(world, config, size, repeats, TINY_GRID))
    parts.add("tokenizer_tiny", lambda: tokenizer_steps(tokenizer, frames, small, repeats))
    report = STTransformerConfig(layers=1 if quick else 24)
    count = {"layers": report.layers, "tflop_per_clip": round(flops_per_clip(report) / 1e12, 3)}
    parts.add("compression_revontuli", lambda: count)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--piece", type=int, default=None, help="clips at a time on CUDA; by the card if not given")
    given = parser.parse_args()
    card, parts = card_wanted(given), Parts()
    if given.cuda:
        parts.leave_out("compression_tiny", "tokenizer_tiny", "compression_revontuli", why=ONLY_CUDA)
    else:
        on_cpu(parts, 1 if given.quick else given.repeats, quick=given.quick)
    names = "compression_revontuli_on_cuda", "compression_revontuli_variants_on_cuda"
    if card:
        recipe = compression_revontuli()
        parts.add(names[0], lambda: report_speed(recipe, given.piece, given.repeats))
        parts.add(names[1], lambda: report_variants(recipe, given.piece, given.repeats))
    else:
        parts.leave_out(*names, why=NO_CUDA)
    parts.finish(quick=given.quick, torch_threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
