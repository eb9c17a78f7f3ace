"""The one training loop. Every model trains here; it knows `loss(batch, generator)` and nothing else of them."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor, nn

from worldline.builtin import stored
from worldline.data.clips import evenly, open_split
from worldline.data.loader import Loader
from worldline.families.card import Identity
from worldline.families.config import TrainConfig, read_config, resumed
from worldline.families.family import Prepared, refuse_idle
from worldline.families.load import checked_identity, prepare, refuse_absent
from worldline.files import hash_of, write_json
from worldline.formats.states import StateStats
from worldline.metrics.image import psnr
from worldline.nn.optimizer import MovingAverage, build_optimizer
from worldline.ranks import Ranks, gathered, has_bfloat16
from worldline.rundir import Best, RunDir, environment, to_json
from worldline.schema import Batch, Origin, UsageError, stack
from worldline.training.checkpoint import TrainState, best_so_far, better, evaluated, restore, save_checkpoint

if TYPE_CHECKING:  # slow to import, and most jobs train nothing
    from torch.utils.tensorboard import SummaryWriter

Report = Callable[[int, int, dict[str, float]], None]
"""Called after every step with (steps done, all steps, the newest figures)."""


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became NaN or infinite; names the step and the clips of its batch."""


@runtime_checkable
class Paced(Protocol):
    """A model whose loss changes while it is trained."""

    progress: float
    """Share of the training that is done; 1 where it is over."""


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
    """Episodes that the data set lists but does not have (only with `allow_missing`)."""
    stopped: bool = False
    """Whether SIGTERM ended it, with a checkpoint of its last step."""


def train(
    config: TrainConfig, path: Path, *, resume: bool = False, ranks: Ranks | None = None, report: Report | None = None
) -> TrainResult:
    """Train a model into a run folder; with `resume`, continue from its latest checkpoint as if never stopped.

    SIGTERM ends it with a checkpoint of the step that is running. Each of several processes calls this with its own
    `ranks`; rank 0 writes and reports.

    Raises:
        UsageError: the folder holds another run or is in use, what the run is made with is another than it must be, or
            the batch does not divide among the ranks.
        DataError: data or weights are not what they should be.
        NonFiniteLossError: the loss or its gradient is no longer a number.
    """
    refuse_idle(config, replace(config, tokenizer=None, weights=None, text=None))
    ranks, run = ranks or Ranks(), RunDir(path)
    ranks.share(config.batch_size, config.accumulate)
    with ranks.owning(path):
        return _Training(config, run, resume, ranks, report if report and ranks.writes else lambda *_: None).go_on()


class _Training:
    """A run at work."""

    def __init__(self, config: TrainConfig, run: RunDir, resume: bool, ranks: Ranks, report: Report) -> None:
        """Begin in a folder that is ours, which stays empty until all that can be refused has been checked."""
        kept = config
        if resume:
            kept = resumed(read_config(run), config, run)
            if run.checkpoints():
                config = replace(config, init_from=run.latest())  # it knows what the first weights were trained on
        elif run.config.exists():
            fix = f"continue with `worldline train --resume {run.path}`, or choose another folder (--out)"
            raise UsageError(f"{run.path} holds a run already; {fix}")
        refuse_absent(config)
        with ranks.first():
            identity = checked_identity(config, run, resume=resume) if ranks.writes else Identity()
        made = prepare(config, ranks)
        if made.kind.normalises(config.model) and made.card.statistics:
            identity = replace(identity, statistics=hash_of(to_json(StateStats, made.card.statistics)))
        self.made = replace(made, card=replace(made.card, identity=identity))
        self.config, self.run, self.ranks, self.report = config, run, ranks, report
        self.device, self.total = ranks.device(config.device), config.total_steps(len(made.train))
        model, decay = ranks.place(made.model, self.device).train(), config.optimizer.ema_decay
        optimizer = build_optimizer(config.optimizer, model)
        self.state = TrainState(model, optimizer, MovingAverage(model, decay) if decay else None)
        if resume:
            self.restore()
        else:
            self.check_keep_best()
            if ranks.writes:
                write_json(run.path / "environment.json", environment())
        if ranks.writes:
            if not resume or config.allow_different:  # then what stands beside the world must be of what it has now
                made.keep(run)
            write_json(run.identity, identity.to_json())
            # Last: with it, the folder holds a run. Its paths stay valid after a move.
            write_json(run.config, to_json(TrainConfig, stored(kept, run.path)))
        found = best_so_far(run, config.keep_best) if config.keep_best and ranks.writes else None
        self.best: Best | None = ranks.agreed(found)

    def go_on(self) -> TrainResult:
        """Train from the state's step to the last, or until SIGTERM or `max_minutes` ends it."""
        config, state, total, ranks = self.config, self.state, self.total, self.ranks
        mine = (ranks.share(config.batch_size), config.seed, ranks.rank, ranks.world_size)
        pieces = Loader(self.made.train, *mine, config.workers, config.accumulate).iterate(state.step, total)
        board = _board(self.run, state.step) if ranks.writes else None
        figures: dict[str, float] = {}  # the newest of each
        began, before, last, stopped = time.monotonic(), state.seconds, state.step >= total, False
        with _terminable() as asked:
            while not (last or stopped):
                now, stopped = self.step(islice(pieces, config.accumulate), asked)
                state.step += 1
                spent = time.monotonic() - began
                state.seconds = before + spent
                late = config.max_minutes is not None and ranks.agreed(spent > 60 * config.max_minutes)
                last = state.step == total or late
                validates = last or state.step % config.evaluate_every == 0
                improved = validates and self.validate(now, board)
                if board and (validates or state.step % config.log_every == 0):
                    self.run.log({"step": state.step, "seconds": round(state.seconds, 3), **now})
                    for name, value in now.items():
                        board.add_scalar(name, value, state.step)
                if last or improved:  # both are checkpoints to load
                    self.finish()
                if last or stopped or improved or state.step % config.checkpoint_every == 0:
                    keep, writes = config.keep_checkpoints, ranks.writes
                    save_checkpoint(self.run, state, self.made.card, keep=keep, best=self.best, writes=writes)
                    ranks.everyones(None)  # with patience: in a step, NCCL waits ten minutes for rank 0 to have written
                figures |= now
                self.report(state.step, total, figures)
        if board:
            board.close()
        return TrainResult(
            run=self.run.path,
            step=state.step,
            total_steps=total,
            seconds=state.seconds,
            figures=figures,
            left_out=open_split(self.config.data, "train")[0].left_out,
            stopped=stopped and state.step < total,
        )

    def step(self, pieces: Iterable[Batch], asked: Callable[[], bool]) -> tuple[dict[str, float], bool]:
        """One optimizer step: its figures, means over the ranks, and whether any of these is asked to stop."""
        config, state, ranks = self.config, self.state, self.ranks
        rate = config.optimizer.learning_rate(state.step, self.total)
        if isinstance(state.model, Paced):
            state.model.progress = state.step / self.total
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        figures, origins = self.gradients(pieces)
        everyones = ranks.everyones((figures, asked()))
        losses = [theirs["train/loss"] for theirs, _ in everyones]
        if broken := [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]:
            raise self.no_number(f"loss is {losses[broken[0]]}", ranks.everyones(origins)[broken[0]])
        norm = gathered(nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.clip_norm or torch.inf))
        if not math.isfinite(norm.item()):  # the step would spoil all weights, and a checkpoint may come before a loss
            raise self.no_number(f"the gradient's norm is {norm.item()}", sum(ranks.everyones(origins), ()))
        state.optimizer.step()
        if state.average:
            state.average.update(state.model, state.step)
        steered = {"train/gradient_norm": norm.item(), "train/learning_rate": rate}
        mean = {name: sum(theirs[name] for theirs, _ in everyones) / len(everyones) for name in figures}
        return {"train/loss": mean["train/loss"], **steered, **mean}, any(stop for _, stop in everyones)

    def no_number(self, found: str, clips: tuple[Origin, ...]) -> NonFiniteLossError:
        """The error that says so of the step at work."""
        return NonFiniteLossError(
            f"{found} at step {self.state.step}, in the batch of clips {clips}. Lower --optimizer.lr, set "
            "--optimizer.clip-norm, or look at these clips with `worldline data info`."
        )

    def gradients(self, pieces: Iterable[Batch]) -> tuple[dict[str, float], tuple[Origin, ...]]:
        """Add up the gradients of the pieces of a batch; their mean figures, and the clips they are of."""
        config, state, ranks = self.config, self.state, self.ranks
        # All randomness is of (seed, step, rank). CPU generators read 32 bits of a seed; the rank's factor, of the
        # golden ratio, keeps ranks apart in those.
        seed = (config.seed * 1_000_003 + state.step + ranks.rank * 2_654_435_769) * 2
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed + 1)
        autocast = config.autocast and has_bfloat16(self.device)
        figures, origins = {"train/loss": 0.0}, ()
        for number, piece in enumerate(pieces, start=1):
            share, origins = len(piece) / ranks.share(config.batch_size), origins + piece.origins
            if ranks.world_size > 1:  # only the last piece's backward pass has to sum gradients over ranks
                state.model.set_requires_gradient_sync(number == config.accumulate)  # pyright: ignore[reportCallIssue]
            with ranks.autocast(self.device, enabled=autocast):
                batch = self.made.ready(piece.to(self.device))
                loss, extra = state.model.loss(batch, generator)  # pyright: ignore[reportCallIssue]
            (loss * share).backward()
            for name, value in {"loss": loss.item(), **extra}.items():
                figures[f"train/{name}"] = figures.get(f"train/{name}", 0.0) + value * share
        return figures, origins

    def validate(self, now: dict[str, float], board: "SummaryWriter | None") -> bool:
        """Add validation's figures to those of a step, show samples; whether this is the best step so far."""
        state, metric = self.state, self.config.keep_best
        with evaluated(state):  # by every rank, on the same clips: a sharded model is run by all or by none
            now |= validate(state.model, self.made, num_clips=self.config.validation_clips, device=self.device)
            strip = sample_strip(self.made, device=self.device)
        if board and strip is not None:
            board.add_image("real above forecast", strip, state.step)
        before = self.best
        if metric:
            found = better(before, Best(metric=metric, step=state.step, value=now[metric]))
            self.best = self.ranks.agreed(found)  # figures of two GPUs may differ in their last bit
        return self.best != before

    def finish(self) -> None:
        """Let the model that is kept measure what it needs: buffers, which belong to the moving average, too.

        The model that is trained on has them then as well: else later steps would average them back to what it has.
        """
        model, average = self.state.model, self.state.average
        with evaluated(self.state):
            self.made.kind.finish(model, self.made, self.config)
            measured = {name: value.clone() for name, value in model.named_buffers()}
        if average:
            average.weights |= {name: value.float() for name, value in measured.items() if name in average.weights}
            for name, value in model.named_buffers():
                value.copy_(measured[name])

    def restore(self) -> None:
        """Take the state of the run's newest checkpoint, if it has one, and drop what is logged after it."""
        restore(self.run, self.state)
        if self.total < (at := self.state.step):
            raise UsageError(f"{self.run.path} is at step {at} already; a length of {self.total} cannot be reached")
        if self.ranks.writes:
            self.run.forget_after(self.state.step)

    def check_keep_best(self) -> None:
        """Raise `UsageError` where validation of a single clip has no figure of the name in `keep_best`."""
        if wanted := self.config.keep_best:
            with evaluated(self.state):
                found = validate(self.state.model, self.made, num_clips=1, device=self.device)
            if wanted not in found:
                raise UsageError(f"validation has no figure {wanted!r} (--keep-best); it has {', '.join(found)}")


def _board(run: RunDir, step: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.path / "tensorboard"), purge_step=step)


@contextmanager
def _terminable() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM ends nothing, so that what is running is finished and saved; the function says whether it came.

    Outside the main thread, where Python takes no signals, it never does.
    """
    came: list[int] = []
    hears = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number)) if hears else None
    try:
        yield lambda: bool(came)
    finally:
        if hears:
            signal.signal(signal.SIGTERM, before)


# --- figures and pictures from held-out clips: quick, and always of the same clips ---


@torch.no_grad()
def validate(
    model: nn.Module, made: Prepared, *, num_clips: int, device: torch.device, batch_size: int = 8
) -> dict[str, float]:
    """Mean loss and figures over evenly spread validation clips, as `val/...`. The model is in evaluation mode.

    What a loss draws (noise, paces) is drawn anew for every clip, and is the same at every validation.
    """
    chosen, totals = evenly(len(made.val), num_clips), dict[str, float]()
    generator = torch.Generator().manual_seed(0)
    for part in np.array_split(chosen, max(1, len(chosen) // batch_size)):
        batch = _batch(made, part, device)
        loss, figures = model.loss(batch, generator)  # pyright: ignore[reportCallIssue]
        measured = {name: value.item() for name, value in made.kind.figures(model, batch).items()}
        for name, value in {"loss": loss.item(), **figures, **measured}.items():
            totals[name] = totals.get(name, 0.0) + value * len(part) / len(chosen)
    scored = made.kind.psnr_clips
    if scored and (shown := made.kind.shown(made, _batch(made, evenly(len(made.val), scored), device))):
        totals["psnr_db"] = psnr(shown[1][:, -1:], shown[0][:, -1:]).mean().item()
    return {f"val/{name}": value for name, value in totals.items()}


@torch.no_grad()
def sample_strip(made: Prepared, *, device: torch.device) -> UInt8[Tensor, "3 h w"] | None:
    """An image of two clips for TensorBoard: real frames above the model's; None if nothing can be shown."""
    if (shown := made.kind.shown(made, _batch(made, evenly(len(made.val), 2), device))) is None:
        return None
    times = torch.linspace(0, shown[0].shape[1] - 1, 6).round().long()
    pairs = torch.stack([frames[:, times].cpu() for frames in shown], dim=1)
    return rearrange(pairs, "b two t c h w -> c (b two h) (t w)")


def _batch(made: Prepared, numbers: list[int] | np.ndarray, device: torch.device) -> Batch:
    return made.ready(stack([made.val[int(i)] for i in numbers]).to(device))
