"""What each of two processes does for test_ranks.py: `python ranks_worker.py FOLDER JOB...`, results as JSON there."""

import os
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from builders import GRID_200, SMALL_WORLD, TOKEN_GRID, Means, small_tokenizer, small_world
from commands import parse
from latent_builders import SMALL_BACKBONE, SMALL_VAE
from torch import Tensor, nn

from worldline.contract import FramePattern
from worldline.data.cache import cached_frames
from worldline.data.clips import Clips, source_windows
from worldline.encoding.encode import Made, convert, encode, tokenize
from worldline.evaluation.engine import Amount, score
from worldline.evaluation.evaluate import Autoencoder, evaluate
from worldline.evaluation.result import Evaluation
from worldline.evaluation.rows import Judged
from worldline.families.card import ModelCard
from worldline.families.config import TrainConfig, read_config
from worldline.families.load import prepare
from worldline.files import read_json, write_json
from worldline.forecasting.tokens import TokenForecaster
from worldline.forecasts import forecast
from worldline.formats.open import open_source
from worldline.nn.optimizer import MovingAverage, OptimizerConfig, build_optimizer
from worldline.nn.states import StateOptions
from worldline.nn.weights import changing_state
from worldline.process.categorical import Sampling
from worldline.process.flow import FlowConfig, FlowSampling
from worldline.ranks import OtherRankError, Ranks, gathered
from worldline.rundir import RunDir, from_json, to_json
from worldline.schema import Batch, Origin, TokenGrid, UsageError
from worldline.training.checkpoint import TrainState, restore, save_checkpoint
from worldline.training.loop import NonFiniteLossError, train
from worldline.worlds.causal import CausalConfig
from worldline.worlds.wan import WanConfig

CPU = torch.device("cpu")


class AdaptedBlock(nn.Module):
    """A frozen bfloat16 layer with a trainable low-rank term in float32: one block, two types. One weight is empty."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width, dtype=torch.bfloat16).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(3, width) * 0.1)
        self.up = nn.Parameter(torch.randn(width, 3) * 0.1)
        self.nothing = nn.Parameter(torch.zeros(0, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.base(x.bfloat16()).float() + x @ self.down.T @ self.up.T + self.nothing.sum()


class Adapted(nn.Module):
    """A stack of them, under a trainable layer of its own, with a buffer and a weight that only large rows touch."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.blocks = nn.ModuleList(AdaptedBlock(width) for _ in range(3))
        self.rare = nn.Parameter(torch.ones(5))
        self.register_buffer("scale", torch.full((2,), 0.5))

    def loss(self, x: Tensor) -> Tensor:
        large = x.amax(dim=-1, keepdim=True) > 4
        rare = large * self.rare.sum() if large.any() else 0.0
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return ((x + rare) * self.scale[0]).square().mean()


def adapted(ranks: Ranks) -> TrainState:
    torch.manual_seed(0)
    model = ranks.place(Adapted(), CPU)
    return TrainState(model, build_optimizer(OptimizerConfig(lr=1e-2), model), MovingAverage(model, 0.5))


def adapt(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Train it for three steps on rows of which rank 0 alone sees a large one, and write a checkpoint."""
    state, figures = adapted(ranks), []
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    rows[0, 0] = 5.0
    for step in range(3):
        state.optimizer.zero_grad()
        loss = state.model.loss(rows.chunk(ranks.world_size)[ranks.rank])  # pyright: ignore[reportCallIssue]
        loss.backward()
        norm = gathered(nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)).item()
        state.optimizer.step()
        assert state.average is not None
        state.average.update(state.model, step)
        losses = ranks.everyones(loss.item())
        figures.append({"loss": sum(losses) / len(losses), "norm": norm})
    save_checkpoint(
        RunDir(folder / f"adapted_{ranks.world_size}"),
        state,
        ModelCard(config=SMALL_WORLD),
        keep=1,
        writes=ranks.writes,
    )
    return {"figures": figures}


def adapted_again(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Read the checkpoint that one process wrote, and write it again."""
    state = adapted(ranks)
    restore(RunDir(folder / "adapted_1"), state)
    save_checkpoint(RunDir(folder / "adapted_again"), state, ModelCard(config=SMALL_WORLD), keep=1, writes=ranks.writes)
    return {}


def learn(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Train from the beginning, and go on from the checkpoint of one process."""
    config = from_json(TrainConfig, read_json(folder / "config.json"), folder)
    result = train(config, folder / "two", ranks=ranks)
    train(config, folder / "one_then_two", resume=True, ranks=ranks)
    return {"figures": result.figures}


def terminated(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """SIGTERM reaches one process only; both save the same step, and go on from it."""
    config, pids = from_json(TrainConfig, read_json(folder / "config.json"), folder), ranks.everyones(os.getpid())

    def report(done: int, *_: object) -> None:
        if done == 1:
            os.kill(pids[1], signal.SIGTERM)
            time.sleep(0.2)

    stopped = train(config, folder / "terminated", ranks=ranks, report=report)
    went_on = train(config, folder / "terminated", resume=True, ranks=ranks)
    return {"stopped": stopped.stopped, "at": stopped.step, "end": went_on.step}


def shares(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """How much of each parameter is here."""
    config = from_json(TrainConfig, read_json(folder / "config.json"), folder)
    model = ranks.place(config.model.build(TOKEN_GRID, 2), CPU)
    found = {}
    for name, value in model.state_dict().items():
        here = value.to_local().numel() if hasattr(value, "to_local") else None
        found[name] = [here, value.numel()]
    return {"shares": found}


def agree(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """What ranks tell each other: each its own, one's word, and that rank 0 failed."""
    everyones = ranks.everyones(ranks.rank)
    told = ranks.agreed(f"from {ranks.rank}")
    try:
        with ranks.first():
            if ranks.rank == 0:
                raise UsageError("no such data")
        failed = ""
    except (UsageError, OtherRankError) as error:
        failed = str(error)
    with ranks.first():
        order = len(list(folder.glob("was_here.*")))
        (folder / f"was_here.{ranks.rank}").touch()
    return {
        "everyones": everyones,
        "told": told,
        "failed": failed,
        "there_before": order,
    }


def data(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """All that is made of frames, by all ranks together; then another job's settings are refused, to all."""
    source, out = open_source(folder / "squares"), folder / f"made_by_{ranks.world_size}"
    shared: dict[str, Any] = {"fingerprint": "-", "episodes": range(3), "ranks": ranks}

    def tokens(start_offsets: int) -> Made:
        return tokenize(source, small_tokenizer(), out / "tokens", start_offsets=start_offsets, **shared)

    converted, blocks = convert(source, out / "raw", size=8, ranks=ranks).counts["episodes"], tokens(2).counts["blocks"]
    cached_frames(source, size=8, folder=out / "frames", ranks=ranks)
    pattern = FramePattern(window=17, stride=4)
    latents = encode(source, Means(), out / "latents", pattern=pattern, window_stride=8, **shared).counts["windows"]
    config = from_json(TrainConfig, read_json(folder / "on_frames.json"), folder)
    made = prepare(replace(config, data=replace(config.data, cache=out / "cache")), ranks)
    try:
        tokens(3)
    except (UsageError, OtherRankError) as error:
        refused = str(error)
    counts = [converted, blocks, latents, len(made.train), len(made.val)]
    return {"made": counts, "reused": tokens(2).counts["reused"], "refused": refused}


def diverge(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Train until the loss is no number."""
    config = from_json(TrainConfig, read_json(folder / "diverging.json"), folder)
    try:
        train(config, folder / "diverged", ranks=ranks)
    except NonFiniteLossError as error:
        return {"message": str(error)}
    return {"message": None}


def wan(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Adapters on a frozen bfloat16 Wan with checkpointed blocks; every rank is given the same clips and noise."""
    del folder
    torch.manual_seed(0)
    sizes = replace(SMALL_BACKBONE, patch_size=(1, 2, 2), num_layers=2)
    config = WanConfig(
        backbone=sizes,
        lora=3,
        states=StateOptions(hidden=16, null=True),
        drop_states=0.5,
        text_length=4,
        flow=FlowConfig(shortcut=0.5),
        gradient_checkpointing=True,
    )
    world = ranks.place(config.build(backbone=sizes.build(torch.bfloat16)), CPU).train()
    latents = torch.randn(2, 6, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    states = torch.randn(2, 77, 25, generator=torch.Generator().manual_seed(2))
    clips = Batch(latents=latents, states=states, fps=7.5, origins=(Origin(source="drawn", episode=0, start=0),) * 2)
    figures = steps(world, clips, peak=3e-2)
    made = world.eval().forecast(latents[:, :2], states, latents[:, 2:], sampling=FlowSampling(steps=2, guidance=2.0))
    return {"figures": figures, "made": made.flatten()[:50].tolist(), "saved": sorted(changing_state(world))}


def driven(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A small driven world on true grids, on its own roll-outs, and as validation calls it; always the same clips."""
    del folder
    made: dict[str, Any] = {}
    grid = TokenGrid(height=4, width=4, vocab_size=12, block=1, temporal_stride=1)
    tokens = torch.randint(0, 12, (2, 7, 4, 4), generator=torch.Generator().manual_seed(1))
    states = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(2))
    clips = Batch(tokens=tokens, states=states, fps=15.0, origins=(Origin(source="drawn", episode=0, start=0),) * 2)
    for name, own_from, halved in (("true", 1.0, False), ("own", 0.0, False), ("own_halved", 0.0, True)):
        torch.manual_seed(0)
        config = CausalConfig(
            context_grids=4,
            horizon_grids=3,
            width=16,
            heads=2,
            layers=2,
            state_hidden=8,
            code_levels=(4, 3),
            own_from=own_from,
        )
        world = ranks.place(config.build(grid, ("LEFT", "RIGHT")), CPU).train()
        made[name] = steps(world, clips, peak=1e-2, precision=ranks.autocast(CPU, enabled=halved))
        if halved:
            continue
        world.eval()
        with torch.no_grad():
            made[f"{name}_validated"] = [world.own_loss(clips).item(), world.loss(clips, torch.Generator())[0].item()]
            made[f"{name}_rolled"] = world.roll_out(clips).flatten().tolist()
    return made


def vae(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A small Wan VAE, whose blocks hand each other lists that they write into; the same clips on every rank."""
    del folder
    torch.manual_seed(0)
    model = ranks.place(SMALL_VAE.build(), CPU).train()
    frames = torch.randint(0, 256, (2, 5, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    origins = (Origin(source="drawn", episode=0, start=0),) * 2
    clips = Batch(frames=frames, states=torch.zeros(2, 5, 1), fps=30.0, origins=origins)
    figures = steps(model, clips, peak=1e-3)
    model.eval().measure_statistics([clips])
    made = model.encode(frames)
    return {"figures": figures, "made": made.flatten()[:50].tolist(), "saved": sorted(changing_state(model))}


def judge(folder: Path, ranks: Ranks, *, by: int | None = None) -> dict[str, Any]:
    """Put a small world through every protocol, five clips in batches of two; go on where another was stopped."""
    source, out = open_source(folder / "squares"), folder / f"judged_{by or ranks.world_size}"
    tokenizer = small_tokenizer()
    forecaster = TokenForecaster(
        tokenizer=tokenizer,
        world=small_world(grid=GRID_200),
        grid=tokenizer.grid(16, 16),
        sampling=Sampling(temperature=1.0),
    )
    grid, times = tokenizer.grid(16, 16), tuple(range(17))
    alone = Autoencoder(context_frames=0, times=times, chunk_frames=0, tokenizer=tokenizer, grid=grid)
    amount = Amount(num_clips=5, batch_size=2)
    pair, block = (
        Clips(source, source_windows(source, window=window, stride=17), pattern=FramePattern(window=window))
        for window in (34, 17)
    )
    judged = {
        "compression": score(
            Judged(forecaster=forecaster, protocol="compression", run=folder.name),
            pair,
            amount,
            out=out / "compression",
            key="this very evaluation",
            ranks=ranks,
        ),
        "sampling": score(
            Judged(forecaster=replace(forecaster, num_samples=3), protocol="sampling", run=folder.name),
            pair,
            replace(amount, condition_samples=0),
            out=out / "sampling",
            ranks=ranks,
        ),
        "tokenizer": score(
            Judged(forecaster=alone, protocol="tokenizer", run=folder.name),
            block,
            amount,
            out=out / "tokenizer",
            ranks=ranks,
        ),
    }
    return {name: to_json(Evaluation, evaluation) for name, evaluation in judged.items()}


def evaluated(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Judge what one process trained by the command's own code, one clip at a time; not on what it was trained on."""

    def judged(out: str, *words: str) -> None:
        run = [str(folder / "one"), *words, "--batch-size", "1", "--device", "cpu", "--out", str(folder / out)]
        job = parse(["evaluate", *run])
        evaluate(job.run, job, ranks=ranks)

    judged(f"evaluated_by_{ranks.world_size}")
    try:
        judged("refused", "--data", str(folder / "tokens/train"))
    except (UsageError, OtherRankError) as error:
        return {"refused": str(error)}
    return {"refused": None}


def tokenizer(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Go on with a tokenizer's training where one process left it."""
    run = RunDir(folder / "tokenizer_by_2")
    return {"step": train(read_config(run), run.path, resume=True, ranks=ranks).step}


def forecasts(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Three clips by the command's own code, two roll-outs of each, one clip at a time."""
    out = folder / f"forecast_by_{ranks.world_size}"
    words = "--clips 5 0 2 --num-samples 2 --temperature 1 --rows 2 --format png --device cpu --out"
    job = parse(["forecast", "compression-tiny", *words.split(), str(out)])
    return {"files": [path.name for path in forecast(job.run, job, ranks=ranks)]}


def steps(
    model: Any, clips: Batch, *, peak: float, precision: AbstractContextManager[Any] | None = None
) -> list[list[float]]:
    """Loss and gradient norm of three optimizer steps on the same clips and noise."""
    optimizer, figures = build_optimizer(OptimizerConfig(lr=peak), model), []
    for _ in range(3):
        optimizer.zero_grad()
        with precision or nullcontext():
            loss, _ = model.loss(clips, torch.Generator().manual_seed(0))
        loss.backward()
        norm = gathered(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        figures.append([loss.item(), norm.item()])
    return figures


MODELS = (adapt, adapted_again, learn, terminated, shares, tokenizer, diverge, wan, vae, driven)
JOBS = {job.__name__: job for job in (*MODELS, agree, data, judge, evaluated, forecasts)}


def main(target: str, *names: str) -> None:
    """In a function, so that the group is gone, with its threads, before Python ends."""
    torch.set_num_threads(1)
    with Ranks.start("cpu") as group:
        for name in names:
            result = JOBS[name](Path(target), group)
            write_json(Path(target) / f"{name}.{group.rank}.json", result)


if __name__ == "__main__":
    main(*sys.argv[1:])
