"""The sampling track's world: how long a training step and a forecast take, and on CUDA the 5B model's. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/sampling_world.py [--quick] [--repeats 3]

Random latents and random weights: what is in them changes no timing. On CUDA the report's model is built at full size
(bfloat16 backbone, LoRA and state conditioning in float32, gradient checkpointing) on latents of 512x512 clips; the
batch is doubled until memory ends, and the largest that fitted is timed. A forecast is 20 steps of one sample, and of
20 samples at once; the VAE is not part of it. FLOPs are counted by PyTorch on shapes, for one forward pass;
`fraction_of_matmul_peak` compares forward passes per second with a bfloat16 matrix product on the same card.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from common import in_turns, options, publish, spread
from training_step import matmul_peak

from worldline.families.config import TrainConfig
from worldline.nn.optimizer import build_optimizer
from worldline.process.flow import FlowSampling
from worldline.recipes import sampling_revontuli, sampling_tiny
from worldline.schema import Batch, LatentGrid, Origin
from worldline.worlds.wan import WanConfig, WanWorld

GRID_512 = LatentGrid(channels=48, height=32, width=32)
GRID_64 = LatentGrid(channels=12, height=8, width=8)


def random_batch(config: WanConfig, grid: LatentGrid, size: int, device: str) -> Batch:
    """Random latents and states of the shape a world is built for; on `meta`, their shapes alone."""
    frames = config.context_latents + config.horizon_latents
    return Batch(
        states=torch.randn(size, 77, 25, device=device),
        latents=torch.randn(size, frames, grid.channels, grid.height, grid.width, device=device),
        fps=7.5,
        origins=tuple(Origin(source="drawn", episode=i, start=0) for i in range(size)),
    )


def forward_flops(config: WanConfig, grid: LatentGrid) -> float:
    """Floating-point operations of one forward pass over one clip."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        world = replace(config, lora=None).build()
        batch = random_batch(config, grid, 1, "meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            assert batch.latents is not None
            world.velocity_of(batch.latents, torch.ones(1, device="meta"), world.modulation(batch.states))
    return float(counter.get_total_flops())


def stepper(world: WanWorld, recipe: TrainConfig, batch: Batch, device: str) -> Callable[[], None]:
    """One optimizer step on the same batch, again and again."""
    optimizer, generator = build_optimizer(recipe.optimizer, world.train()), torch.Generator()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16) if device == "cuda" else nullcontext():
            loss = world.loss(batch, generator)[0]
        loss.backward()
        optimizer.step()

    return step


def forecaster(world: WanWorld, batch: Batch, sampling: FlowSampling) -> Callable[[], None]:
    """One sample for every clip of a batch."""
    assert batch.latents is not None
    context = batch.latents[:, : world.context_latents]
    noise = batch.latents[:, world.context_latents :]

    def forecast() -> None:
        world.eval().forecast(context, batch.states, noise, sampling=sampling)

    return forecast


def largest_batch(world: WanWorld, recipe: TrainConfig, config: WanConfig) -> int:
    """The largest power of two of 512x512 clips whose training step fits the card."""
    size = 1
    while True:
        try:
            stepper(world, recipe, random_batch(config, GRID_512, 2 * size, "cuda"), "cuda")()
        except torch.cuda.OutOfMemoryError:
            world.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return size
        size *= 2


def tiny(repeats: int, *, quick: bool) -> dict[str, object]:
    """The tiny recipe's step and forecast."""
    recipe = sampling_tiny()
    assert isinstance(recipe.model, WanConfig)
    config = replace(recipe.model, backbone=replace(recipe.model.backbone, num_layers=1)) if quick else recipe.model
    size, steps = (1, 1) if quick else (recipe.batch_size, 20)
    world, batch = config.build(), random_batch(config, GRID_64, size, "cpu")
    seconds = in_turns({"step": stepper(world, recipe, batch, "cpu")}, repeats=repeats)
    seconds |= in_turns({"forecast": forecaster(world, batch, FlowSampling(steps=steps))}, repeats=repeats)
    return {
        "batch": size,
        "seconds_per_step": spread(seconds["step"]),
        "forecast_steps": steps,
        "seconds_per_sample": spread([s / size for s in seconds["forecast"]]),
        "gflop_forward_per_clip": round(forward_flops(config, GRID_64) / 1e9, 3),
    }


def on_cuda(repeats: int) -> dict[str, object]:
    """The report's model at full size, with random weights."""
    recipe = sampling_revontuli()
    assert isinstance(recipe.model, WanConfig)
    config = recipe.model
    with torch.device("cuda"):
        world = config.build(backbone=config.backbone.build(torch.bfloat16))
    size = largest_batch(world, recipe, config)
    torch.cuda.reset_peak_memory_stats()
    step = stepper(world, recipe, random_batch(config, GRID_512, size, "cuda"), "cuda")
    training = in_turns({"step": step}, repeats=repeats)["step"]
    peak_bytes, flops, peak = torch.cuda.max_memory_allocated(), forward_flops(config, GRID_512), matmul_peak(repeats)
    samplers = {
        str(count): forecaster(world, random_batch(config, GRID_512, count, "cuda"), FlowSampling(steps=20))
        for count in (1, 20)
    }
    with torch.autocast("cuda", dtype=torch.bfloat16):
        sampling = in_turns(samplers, repeats=repeats)
    passes = [20 * 20 * flops / s / 1e12 for s in sampling["20"]]
    return {
        "batch": size,
        "seconds_per_step": spread(training),
        "peak_memory_gb": round(peak_bytes / 1e9, 2),
        "seconds_for_20_steps_of_1_sample": spread(sampling["1"]),
        "seconds_for_20_steps_of_20_samples": spread(sampling["20"]),
        "tflop_forward_per_clip": round(flops / 1e12, 3),
        "matmul_peak_tflop_per_second": round(peak, 1),
        "fraction_of_matmul_peak_sampling": spread([p / peak for p in passes]),
        "fraction_of_matmul_peak_training_forward_alone": spread([size * flops / s / 1e12 / peak for s in training]),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    figures: dict[str, object] = {
        "torch_threads": torch.get_num_threads(),
        "sampling_tiny": tiny(1 if arguments.quick else arguments.repeats, quick=arguments.quick),
        "sampling_revontuli_on_cuda": None,
    }
    if torch.cuda.is_available() and not arguments.quick:
        figures["sampling_revontuli_on_cuda"] = on_cuda(arguments.repeats)
    publish(figures, quick=arguments.quick)


if __name__ == "__main__":
    main()
