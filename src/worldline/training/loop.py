"""The one training loop. Every model trains here; it knows `loss(batch, generator)` and nothing else of them."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from worldline.data.loader import Loader
from worldline.families.config import TrainConfig, read_config, resumed, write_config
from worldline.families.family import Prepared, refuse_unread
from worldline.families.prepare import prepare
from worldline.files import write_json
from worldline.formats.states import StateStats
from worldline.identity import Identity, hash_of
from worldline.nn.load import changing_state, load_changing
from worldline.nn.optimizer import MovingAverage, build_optimizer
from worldline.ranks import Ranks, gathered
from worldline.rundir import Best, RunDir, environment, to_json
from worldline.schema import Batch, Origin, UsageError
from worldline.training.checkpoint import TrainState, best_so_far, better, restore, save_checkpoint
from worldline.training.identify import checked_identity, refuse_absent
from worldline.training.termination import termination
from worldline.training.validate import sample_strip, validate

Report = Callable[[str, int, int, dict[str, float]], None]
"""Called with (what is being done, done, total, figures to show)."""


STOPPED = "stopped"
"""Among the figures of a step, the one that is not logged."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; names the step and the clips of its batch."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    run: Path
    step: int
    total_steps: int
    seconds: float
    """Training time over all resumptions, preparation excluded."""
    figures: dict[str, float]
    """The last logged and validated figures."""
    left_out: tuple[str, ...]
    """What the data set lists but does not have (only with `allow_missing`)."""
    stopped: bool = False
    """Whether SIGTERM ended it, with a checkpoint of its last step."""


def train(
    config: TrainConfig,
    path: Path,
    *,
    resume: bool = False,
    ranks: Ranks | None = None,
    report: Report | None = None,
) -> TrainResult:
    """Train a model into a run folder; with `resume`, go on from its latest checkpoint as if never stopped.

    A run that was stopped before its first checkpoint begins again at step 0. SIGTERM ends it with a checkpoint of the
    step that is running. Over several ranks every process calls this with the same arguments and its own `ranks`; rank
    0 alone writes and reports.

    Raises:
        UsageError: the folder holds a run already, or another run than the one to resume, or is in use; what the run is
            made with is another than it must be; or the batch does not divide among the ranks.
        DataError: data or weights are not what they should be.
        NonFiniteLossError: the loss is no longer a number.
    """
    refuse_unread(config)
    ranks = ranks or Ranks()
    _check_pieces(ranks.share(config.batch_size), config.accumulate)
    with ranks.owning(path):
        return _train(config, RunDir(path), resume, ranks, report if report and ranks.writes else lambda *_: None)


def _train(config: TrainConfig, run: RunDir, resume: bool, ranks: Ranks, report: Report) -> TrainResult:
    """Train in a folder that is ours. It stays empty until all that can be refused has been checked."""
    keep = _begin(run, config, resume)
    if resume and run.checkpoints():
        config = replace(config, init_from=run.latest())  # it knows what the run's first weights were trained on
    device, share = ranks.device(config.device), ranks.share(config.batch_size)
    with ranks.first():
        identity = checked_identity(config, run, resume=resume) if ranks.writes else Identity()
    made = prepare(config, lambda what, done, total: report(what, done, total, {}), ranks)
    if made.kind.normalises(config.model) and made.card.statistics:
        identity = replace(identity, statistics=hash_of(to_json(StateStats, made.card.statistics)))
    made = replace(made, card=replace(made.card, identity=identity))
    total = config.total_steps(len(made.train))
    model = ranks.place(made.model, device).train()
    optimizer = build_optimizer(config.optimizer, model)
    decay = config.optimizer.ema_decay
    state = TrainState(model, optimizer, MovingAverage(model, decay) if decay else None)
    if resume:
        if run.checkpoints():
            restore(run, state)
        if total < state.step:
            raise UsageError(f"{run.path} is at step {state.step} already; a length of {total} steps cannot be reached")
        if ranks.writes:
            run.forget_after(state.step)
    else:
        _check_figure(config, state, made, device)
        if ranks.writes:
            made.keep(run)
            write_json(run.path / "environment.json", environment())
    if ranks.writes:
        write_json(run.identity, identity.to_json())
        write_config(run, keep)  # last: with it, the folder holds a run
    loader = Loader(made.train, share, config.seed, ranks.rank, ranks.world_size, config.workers, config.accumulate)
    figures, stopped = _steps(config, run, made, state, total, loader, device, ranks, report)
    ranks.everyones(None)  # when any rank returns, the last checkpoint is written
    return TrainResult(
        run=run.path,
        step=state.step,
        total_steps=total,
        seconds=state.seconds,
        figures=figures,
        left_out=made.left_out,
        stopped=stopped,
    )


def _steps(
    config: TrainConfig,
    run: RunDir,
    made: Prepared,
    state: TrainState,
    total: int,
    loader: Loader,
    device: torch.device,
    ranks: Ranks,
    report: Report,
) -> tuple[dict[str, float], bool]:
    """Go on from the state's step to the last; give the last figures, and whether SIGTERM ended it before."""
    board = SummaryWriter(str(run.path / "tensorboard"), purge_step=state.step) if ranks.writes else None
    best = ranks.agreed(best_so_far(run, config.keep_best) if config.keep_best and ranks.writes else None)
    figures: dict[str, float] = {}
    began, before, stopped = time.monotonic(), state.seconds, False
    pieces = loader.iterate(state.step, total)
    with termination() as asked:
        while state.step < total and not stopped:
            rate = config.optimizer.learning_rate(state.step, total)
            if hasattr(state.model, "progress"):
                state.model.progress = state.step / total  # pyright: ignore[reportArgumentType]
            now = _step(state, islice(pieces, config.accumulate), config, rate, device, ranks, made.ready, asked)
            stopped = now.pop(STOPPED) > 0
            state.step += 1
            state.seconds = before + time.monotonic() - began
            out_of_time = config.max_minutes is not None and ranks.agreed(
                time.monotonic() - began > 60 * config.max_minutes
            )
            last = state.step == total or out_of_time
            validates = last or state.step % config.evaluate_every == 0
            found = None

            if validates:  # on every rank, on the same clips: a sharded model is run by all or by none
                with evaluated(state):
                    now |= validate(state.model, made, num_clips=config.validation_clips, device=device)
                    strip = sample_strip(made, device=device)
                if board and strip is not None:
                    board.add_image("real above forecast", strip, state.step)
                if config.keep_best:
                    found = Best(metric=config.keep_best, step=state.step, value=now[config.keep_best])
                    best = better(best, found)
            if board and (validates or state.step % config.log_every == 0):
                run.log({"step": state.step, "seconds": round(state.seconds, 3), **now})
                for name, value in now.items():
                    board.add_scalar(name, value, state.step)
            if last:
                _finish(state, made.finish)
            if last or stopped or (found and best is found) or state.step % config.checkpoint_every == 0:
                keep = config.keep_checkpoints
                save_checkpoint(run, state, made.card, keep=keep, best=best, writes=ranks.writes)
            figures |= now
            report("training", state.step, total, figures)
            if last:
                break

    if board:
        board.close()
    return figures, stopped and state.step < total


def _step(
    state: TrainState,
    pieces: Iterable[Batch],
    config: TrainConfig,
    rate: float,
    device: torch.device,
    ranks: Ranks,
    ready: Callable[[Batch], Batch],
    asked: Callable[[], bool],
) -> dict[str, float]:
    """One optimizer step; its figures are means over the ranks. All randomness is a function of (seed, step, rank).

    Among them is the share of ranks that are asked to stop, so that all learn of it in the same step.
    """
    seed = _mix(config.seed, state.step, ranks.rank)
    torch.manual_seed(seed)  # dropout
    generator = torch.Generator().manual_seed(seed + 1)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    figures = {"train/loss": 0.0}
    origins: tuple[Origin, ...] = ()
    for number, piece in enumerate(pieces, start=1):
        share, origins = len(piece) / ranks.share(config.batch_size), origins + piece.origins
        ranks.sum_gradients(state.model, now=number == config.accumulate)
        with _precision(config, device):
            loss, extra = state.model.loss(ready(piece.to(device)), generator)  # pyright: ignore[reportCallIssue]
        (loss * share).backward()
        for name, value in {"loss": loss.item(), **extra}.items():
            figures[f"train/{name}"] = figures.get(f"train/{name}", 0.0) + value * share
    mean = ranks.mean({**figures, STOPPED: float(asked())})
    if not math.isfinite(mean["train/loss"]):
        _refuse(ranks.everyones((figures["train/loss"], origins)), state.step)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.clip_norm or torch.inf)
    state.optimizer.step()
    if state.average:
        state.average.update(state.model, state.step)
    steered = {"train/gradient_norm": gathered(norm).item(), "train/learning_rate": rate}
    return {"train/loss": mean["train/loss"], **steered, **mean}


def _refuse(found: list[tuple[float, tuple[Origin, ...]]], step: int) -> NoReturn:
    """Stop every rank with the same message, on the first rank whose loss is no number."""
    loss, origins = next((loss, origins) for loss, origins in found if not math.isfinite(loss))
    raise NonFiniteLossError(
        f"loss is {loss} at step {step}, in the batch of clips {origins}. Lower --optimizer.lr, "
        "set --optimizer.clip-norm, or look at these clips with `worldline data info`."
    )


def _finish(state: TrainState, finish: Callable[[], None]) -> None:
    """Let the trained model measure what it needs; what it measures are buffers, and belongs to the moving average."""
    with evaluated(state):
        finish()
        if state.average:
            for name in state.average.weights.keys() & {name for name, _ in state.model.named_buffers()}:
                state.average.weights[name] = state.model.get_buffer(name).detach().float().clone()


class evaluated:  # noqa: N801 - reads as a verb: `with evaluated(state):`
    """Inside, the model is in evaluation mode and holds its moving average, if there is one."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.raw: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        if self.state.average:
            self.raw = {name: value.clone() for name, value in changing_state(self.state.model).items()}
            load_changing(self.state.model, self.state.average.weights)
        self.state.model.eval()

    def __exit__(self, *_: object) -> None:
        if self.state.average:
            load_changing(self.state.model, self.raw)
        self.state.model.train()


def _check_figure(config: TrainConfig, state: TrainState, made: Prepared, device: torch.device) -> None:
    """Raise `UsageError` where validation has no figure of the name in `keep_best`: asked of a single clip."""
    if config.keep_best:
        with evaluated(state):
            found = validate(state.model, made, num_clips=1, device=device)
        if config.keep_best not in found:
            raise UsageError(f"validation has no figure {config.keep_best!r} (--keep-best); it has {', '.join(found)}")


def _check_pieces(clips: int, pieces: int) -> None:
    if pieces > clips:
        raise UsageError(f"a batch of {clips} clips cannot be cut into {pieces} pieces; lower --accumulate")


def _precision(config: TrainConfig, device: torch.device) -> torch.autocast | nullcontext[None]:
    if config.autocast and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()  # a CPU without bfloat16 units is slower with autocast, and exactness is worth more there


def _mix(seed: int, step: int, rank: int) -> int:
    """An even seed. CPU generators read 32 bits of it; the factor, of the golden ratio, keeps ranks apart in those."""
    return (seed * 1_000_003 + step + rank * 2_654_435_769) * 2


def _begin(run: RunDir, config: TrainConfig, resume: bool) -> TrainConfig:
    """Check that the folder is free, or that the one to resume is of the same configuration; give the one to keep."""
    if resume:
        kept = resumed(read_config(run), config, run)
        refuse_absent(config, run)
        return kept
    if run.config.exists():
        raise UsageError(
            f"{run.path} holds a run already; go on with `worldline train --resume {run.path}`, or choose another "
            "folder (--out)"
        )
    return config
