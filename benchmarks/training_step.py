"""How long an optimizer step takes: the tiny world and tokenizer, and on CUDA the report's world. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py [--quick] [--repeats 7] [--piece 8]

Random data, no loader: the step alone (forward, backward, AdamW). What dropout and what the chunks of the
cross-entropy cost is measured in turns with the same step without them. FLOPs are counted on shapes alone, without
recomputation; `fraction_of_matmul_peak` compares the step with a bfloat16 matrix product on the same card.
`tokens` are the positions the transformer reads: 5 grids of a clip of 6.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from common import TINY_GRID, in_turns, options, publish, random_batch, ratio, spread
from torch import nn

from worldline.families.config import TrainConfig
from worldline.nn.optimizer import build_optimizer
from worldline.planning.meter import follow
from worldline.recipes import compression_revontuli, compression_tiny, tokenizer_tiny
from worldline.schema import Batch, Origin, TokenGrid
from worldline.tokenizers.fsq_video import FSQVideoConfig
from worldline.worlds.st_transformer import ONEX_GRID, STTransformerConfig

MATMUL = 8192


def stepper(model: nn.Module, recipe: TrainConfig, batch: Batch, device: str = "cpu") -> Callable[[], None]:
    """One optimizer step on the same batch, again and again."""
    model = model.to(device).train()
    optimizer, generator = build_optimizer(recipe.optimizer, model), torch.Generator()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16) if device == "cuda" else nullcontext():
            loss = model.loss(batch, generator)[0]
        loss.backward()
        optimizer.step()

    return step


def world_steps(
    recipe: TrainConfig, world: STTransformerConfig, size: int, repeats: int, grid: TokenGrid, device: str = "cpu"
) -> dict:
    """The recipe's step, with and without dropout, with the cross-entropy whole and in chunks."""
    batch = random_batch(world, size, device, grid)
    tokens = size * (world.context_grids + world.horizon_grids - 1) * grid.height * grid.width
    future = size * world.horizon_grids * grid.height * grid.width
    variants = {
        "recipe": world,
        "dropout_0": replace(world, dropout=0.0),
        "dropout_0.1": replace(world, dropout=0.1),
        "whole": replace(world, dropout=0.0, loss_chunk=future),
        "chunked": replace(world, dropout=0.0, loss_chunk=min(8192, math.ceil(future / 4))),
    }
    steps = {name: stepper(config.build(grid), recipe, batch, device) for name, config in variants.items()}
    seconds = in_turns(steps, repeats=repeats)
    flops = flops_per_clip(world, grid) * size
    return {
        "batch": size,
        "seconds_per_step": spread(seconds["recipe"]),
        "tokens_per_second": spread([tokens / s for s in seconds["recipe"]]),
        "tflop_per_second": spread([flops / s / 1e12 for s in seconds["recipe"]]),
        "dropout_0.1_to_0_ratio": ratio(seconds, "dropout_0.1", "dropout_0"),
        "chunked_to_whole_cross_entropy_ratio": ratio(seconds, "chunked", "whole"),
        "chunk_tokens": variants["chunked"].loss_chunk,
    }


def flops_per_clip(world: STTransformerConfig, grid: TokenGrid = ONEX_GRID) -> float:
    """Floating-point operations of forward and backward for one clip, without a second pass of the loss's logits."""
    with torch.device("meta"):
        model = replace(world, dropout=0.0).build(grid)
    batch = random_batch(world, 1, "meta", grid)
    found = follow(lambda: model.loss(batch, torch.Generator())[0], model.parameters(), autocast=False)
    return float(found.forward_flop + found.backward_flop)


def tokenizer_steps(recipe: TrainConfig, config: FSQVideoConfig, size: int, repeats: int) -> dict[str, object]:
    """The tokenizer's step on noise."""
    side = recipe.data.image_size or 64
    shape = (size, config.block_frames, 3, side, side)
    batch = Batch(
        frames=torch.randint(256, shape, dtype=torch.uint8),
        states=torch.zeros(size, config.block_frames, 1),
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


def matmul_peak(repeats: int) -> float:
    """TFLOP/s of a large bfloat16 matrix product on the card: what its fastest repetition reached."""
    a, b = torch.randn(2, MATMUL, MATMUL, device="cuda", dtype=torch.bfloat16)
    seconds = in_turns({"product": lambda: [a @ b for _ in range(20)]}, repeats=repeats)["product"]
    return 20 * 2 * MATMUL**3 / min(seconds) / 1e12


def on_cuda(piece: int | None, repeats: int) -> dict[str, object]:
    """The report's world in bfloat16 autocast, a piece of its batch at a time."""
    recipe = compression_revontuli()
    assert isinstance(recipe.model, STTransformerConfig)
    large = torch.cuda.get_device_properties(0).total_memory > 75e9
    piece = piece or (8 if large else 2)  # loss_memory.py says what a piece needs
    found, peak = world_steps(recipe, recipe.model, piece, repeats, ONEX_GRID, "cuda"), matmul_peak(repeats)
    reached = found["tflop_per_second"]
    return {
        **found,
        "matmul_peak_tflop_per_second": round(peak, 1),
        "fraction_of_matmul_peak": {name: round(value / peak, 3) for name, value in reached.items()},
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--piece", type=int, default=None, help="clips at a time on CUDA; by the card if not given")
    arguments = parser.parse_args()
    world, tokenizer = compression_tiny(), tokenizer_tiny()
    assert isinstance(world.model, STTransformerConfig)
    assert isinstance(tokenizer.model, FSQVideoConfig)
    repeats, size, layers = (1, 1, 1) if arguments.quick else (arguments.repeats, world.batch_size, world.model.layers)
    report = STTransformerConfig(layers=1 if arguments.quick else 24)
    figures = {
        "torch_threads": torch.get_num_threads(),
        "compression_tiny": world_steps(world, replace(world.model, layers=layers), size, repeats, TINY_GRID),
        "tokenizer_tiny": tokenizer_steps(tokenizer, tokenizer.model, min(size, tokenizer.batch_size), repeats),
        "compression_revontuli": {"layers": report.layers, "tflop_per_clip": round(flops_per_clip(report) / 1e12, 3)},
        "compression_revontuli_on_cuda": None,
    }
    if torch.cuda.is_available() and not arguments.quick:
        figures["compression_revontuli_on_cuda"] = on_cuda(arguments.piece, arguments.repeats)
    publish(figures, quick=arguments.quick)


if __name__ == "__main__":
    main()
