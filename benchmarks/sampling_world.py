"""The sampling track's world: how long a training step and a forecast take, and on CUDA the 5B model's. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/sampling_world.py [--quick | --cuda] [--repeats 3] [--clips 8]

Random latents and random weights: what is in them changes no timing. On CUDA the report's model is built at full size
(bfloat16 backbone, LoRA and state conditioning in float32, gradient checkpointing) on latents of 512x512 clips. A step
of `--clips` clips is timed. Then one step is made of as many clips as `worldline plan` says that the card holds, or of
fewer until it fits; at both the allocator's peak stands beside the plan's number, without the VAE, which is not here.
A forecast is as `worldline forecast` makes it, without autocast and without decoding: 20 steps of one sample, and of 20
samples at once `MEASURED` steps, of which 20 take ten times as long (each step is one pass of the backbone). FLOPs are
counted by PyTorch on shapes, for one forward pass; `fraction_of_matmul_peak` compares forward passes per second with a
bfloat16 matrix product on the same card.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from common import (
    NO_CUDA,
    ONLY_CUDA,
    STATES,
    Parts,
    autocast,
    beside,
    card_wanted,
    fits,
    in_turns,
    matmul_peak,
    options,
    peak_of,
    random_states,
    spread,
)

from worldline.families.config import TrainConfig
from worldline.nn.optimizer import build_optimizer
from worldline.planning.footprint import Footprint
from worldline.planning.plan import RESERVE, memory
from worldline.process.flow import FlowSampling
from worldline.recipes import sampling_revontuli, sampling_tiny
from worldline.schema import Batch, LatentGrid, Origin
from worldline.worlds.wan import WanConfig, WanWorld

GRID_512 = LatentGrid(channels=48, height=32, width=32)
GRID_64 = LatentGrid(channels=12, height=8, width=8)
STEPS, MEASURED = 20, 2
"""Of a forecast, and of the one of 20 samples that is timed."""


def random_batch(config: WanConfig, grid: LatentGrid, size: int, device: str) -> Batch:
    """Random latents and plausible states of the shape a world is built for; on `meta`, their shapes alone."""
    frames = config.context_latents + config.horizon_latents
    return Batch(
        states=random_states(size, 77, device),
        latents=torch.randn(size, frames, grid.channels, grid.height, grid.width, device=device),
        fps=7.5,
        origins=tuple(Origin(source="drawn", episode=i, start=0) for i in range(size)),
    )


def forward_flops(config: WanConfig, grid: LatentGrid) -> float:
    """Floating-point operations of one forward pass over one clip."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        world = replace(config, lora=None).build(names=STATES, grid=grid)
        batch = random_batch(config, grid, 1, "meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            assert batch.latents is not None
            world.velocity_of(batch.latents, torch.ones(1, device="meta"), world.modulation(batch.states))
    return float(counter.get_total_flops())


def stepper(world: WanWorld, recipe: TrainConfig, device: str) -> Callable[[Batch], None]:
    """An optimizer step on a batch. Of one that failed no gradient is left."""
    optimizer, generator = build_optimizer(recipe.optimizer, world.train()), torch.Generator()

    def step(batch: Batch) -> None:
        world.train()
        try:
            with autocast(device):
                loss = world.loss(batch, generator)[0]
            loss.backward()
            optimizer.step()
        finally:
            optimizer.zero_grad(set_to_none=True)

    return step


def forecaster(world: WanWorld, batch: Batch, sampling: FlowSampling) -> Callable[[], None]:
    """One sample for every clip of a batch."""
    assert batch.latents is not None
    context = batch.latents[:, : world.context_latents]
    noise = batch.latents[:, world.context_latents :]

    def forecast() -> None:
        world.eval().forecast(context, batch.states, noise, sampling=sampling)

    return forecast


def tiny(repeats: int, *, quick: bool) -> dict[str, Any]:
    """The tiny recipe's step and forecast."""
    recipe = sampling_tiny()
    assert isinstance(recipe.model, WanConfig)
    config = replace(recipe.model, backbone=replace(recipe.model.backbone, num_layers=1)) if quick else recipe.model
    size, steps = (1, 1) if quick else (recipe.batch_size, STEPS)
    world, batch = config.build(names=STATES, grid=GRID_64), random_batch(config, GRID_64, size, "cpu")
    step = stepper(world, recipe, "cpu")
    seconds = in_turns({"step": lambda: step(batch)}, repeats=repeats)
    seconds |= in_turns({"forecast": forecaster(world, batch, FlowSampling(steps=steps))}, repeats=repeats)
    return {
        "batch": size,
        "seconds_per_step": spread(seconds["step"]),
        "forecast_steps": steps,
        "seconds_per_sample": spread([s / size for s in seconds["forecast"]]),
        "gflop_forward_per_clip": round(forward_flops(config, GRID_64) / 1e9, 3),
    }


# --- the report's model on a card; `device` is another one in tests alone ---


def counted(recipe: TrainConfig, clips: tuple[int, int]) -> tuple[int, int]:
    """Bytes of a step that `worldline plan` counts for two numbers of clips, without the VAE."""
    run = Footprint(recipe)
    held = [memory(run, gpus=1, accumulate=1, clips=count, checkpointing=run.checkpoints) for count in clips]
    first, second = (sum(one.values()) - one["tokenizer"] for one in held)
    return first, second


def built(recipe: TrainConfig, device: str) -> WanWorld:
    """The recipe's world with random weights, of the types that a pretrained one has."""
    assert isinstance(recipe.model, WanConfig)
    with torch.device(device):
        return recipe.model.build(backbone=recipe.model.backbone.build(torch.bfloat16))


def training(
    world: WanWorld,
    step: Callable[[Batch], None],
    grid: LatentGrid,
    clips: int,
    repeats: int,
    plan: Callable[[], tuple[int, int]],
) -> dict[str, Any]:
    """Steps of some clips: seconds, and memory beside the plan's first number."""
    device = next(world.parameters()).device.type
    batch = random_batch(world.config, grid, clips, device)
    seconds = in_turns({"step": lambda: step(batch)}, repeats=repeats)["step"]
    peak = peak_of(lambda: step(batch), device)
    return {
        "clips": clips,
        "seconds_per_step": spread(seconds),
        "clips_per_second": spread([clips / s for s in seconds]),
        "memory": beside(peak, plan()[0]),
    }


def fitting(
    world: WanWorld, step: Callable[[Batch], None], grid: LatentGrid, room: int, line: tuple[float, float]
) -> dict[str, Any]:
    """One step of as many clips as are planned to fit `room` bytes, or of an eighth less, until one fits.

    `line`: planned bytes of no clip and of each. The step is the first of this size, so its time has no spread.
    """
    device = next(world.parameters()).device.type
    planned = clips = max(1, int((room * (1 - RESERVE) - line[0]) / line[1]))
    failed: list[int] = []
    while clips:
        batch = random_batch(world.config, grid, clips, device)
        began = time.perf_counter()
        fitted, peak = fits(lambda batch=batch: step(batch), device)
        if fitted:
            took = round(time.perf_counter() - began, 2)
            shown = {
                "clips": clips,
                "seconds_of_one_step": took,
                "memory": beside(peak, int(line[0] + clips * line[1])),
            }
            return {"room_gb": round(room / 1e9, 2), "clips_planned": planned, "too_many_clips": failed, **shown}
        failed.append(clips)
        clips = clips * 7 // 8
    return {"room_gb": round(room / 1e9, 2), "clips_planned": planned, "too_many_clips": failed, "clips": 0}


def sampling(world: WanWorld, grid: LatentGrid, repeats: int, samples: int = 20) -> dict[str, Any]:
    """Forecasts of one sample and of several at once, and of one under autocast."""
    device = next(world.parameters()).device.type
    one, many = (random_batch(world.config, grid, count, device) for count in (1, samples))
    plain = forecaster(world, one, FlowSampling(steps=STEPS))

    def cast() -> None:
        with autocast(device):
            plain()

    calls = {"one": plain, "one_autocast": cast, "many": forecaster(world, many, FlowSampling(steps=MEASURED))}
    for warm in (one, many):
        forecaster(world, warm, FlowSampling(steps=1))()
    seconds = in_turns(calls, repeats=repeats, warm=False)
    flops, whole = forward_flops(world.config, grid), [STEPS / MEASURED * s for s in seconds["many"]]
    return {
        f"seconds_for_{STEPS}_steps_of_1_sample": spread(seconds["one"]),
        f"seconds_for_{STEPS}_steps_of_1_sample_in_autocast": spread(seconds["one_autocast"]),
        "samples_at_once": samples,
        f"seconds_for_{MEASURED}_steps_of_these_samples": spread(seconds["many"]),
        f"seconds_for_{STEPS}_steps_of_these_samples_by_{MEASURED}": spread(whole),
        "tflop_forward_per_sample": round(flops / 1e12, 3),
        "tflop_per_second": spread([samples * MEASURED * flops / s / 1e12 for s in seconds["many"]]),
    }


def on_card(
    parts: Parts, recipe: TrainConfig, repeats: int, clips: int, grid: LatentGrid = GRID_512, device: str = "cuda"
) -> None:
    """All parts of the report's world. The plan is made beside them, in a process of its own."""
    name, made = "sampling_revontuli_on_cuda", []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        plan = pool.submit(counted, recipe, (clips, 2 * clips)).result

        def build() -> dict[str, Any]:
            world = built(recipe, device)
            made.extend((world, stepper(world, recipe, device)))
            return {"weights_gb": round(sum(weight.nbytes for weight in world.parameters()) / 1e9, 2)}

        if "failed" in parts.add(f"{name}_built", build):
            return
        world, step = made
        parts.add(name, lambda: training(world, step, grid, clips, repeats, plan))
        if device == "cuda":
            parts.add("matmul_on_cuda", lambda: {"tflop_per_second": round(matmul_peak(repeats), 1)})
        parts.add(f"{name}_forecast", lambda: sampling(world, grid, repeats))

        def full() -> dict[str, Any]:
            first, second = plan()
            each = (second - first) / clips
            room = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else 2 * first
            return fitting(world, step, grid, room, (first - clips * each, each))

        parts.add(f"{name}_full", full)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clips", type=int, default=8, help="in a timed training step of the 5B model")
    given = parser.parse_args()
    card, parts = card_wanted(given), Parts()
    if given.cuda:
        parts.leave_out("sampling_tiny", why=ONLY_CUDA)
    else:
        parts.add("sampling_tiny", lambda: tiny(1 if given.quick else given.repeats, quick=given.quick))
    if card:
        on_card(parts, sampling_revontuli(), given.repeats, given.clips)
    else:
        parts.leave_out("sampling_revontuli_on_cuda", why=NO_CUDA)
    parts.finish(quick=given.quick, torch_threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
