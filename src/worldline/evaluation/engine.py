"""The one engine: every row and every metric over clips, batch by batch, each batch on one rank.

The scores of a batch depend on the batch alone, so the numbers do not depend on the number of processes or on
interruptions. It knows forecasters only; rows and metrics are entries of their tables.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, Int64
from torch import Tensor

from worldline.checks import Checked, Natural, Seed
from worldline.data.clips import Clips
from worldline.evaluation.held_out import evenly, foreign_states
from worldline.evaluation.parts import Parts
from worldline.evaluation.result import Comparison, DataSummary, Evaluation, Row, Split
from worldline.evaluation.rows import ROWS, Entry, Judged, NotComputed, Protocol, Scene, Setting, entry_of
from worldline.evaluation.tally import Tally
from worldline.files import write_npz
from worldline.forecasting.forecaster import Forecaster
from worldline.metrics.bootstrap import Interval, interval, intervals, paired_difference
from worldline.metrics.image import psnr
from worldline.metrics.table import METRICS
from worldline.process.noise import clip_seeds
from worldline.ranks import Ranks
from worldline.rundir import environment
from worldline.schema import Batch, TokenGrid, UsageError, stack

Progress = Callable[[int, int], None]
"""Called on rank 0 with (batches done, all batches) of its share."""
SHOWN_CLIPS = 6
"""Clips whose frames are kept for the report."""
SHOWN_ORDER = ("model", "baseline", "ceiling", "ablation")


@dataclass(frozen=True, kw_only=True)
class Amount(Checked):
    """How much is evaluated. Raises `UsageError` for impossible numbers."""

    num_clips: int | None = 128
    """Evenly chosen among the windows; None takes them all."""
    batch_size: int = 8
    means: tuple[int, ...] | None = None
    """Sampling protocol: sizes of smaller ensembles that are scored too; 5, if more samples are drawn."""
    condition_samples: Natural | None = None
    """Futures per clip given other states than its own (`shuffled_states`); 0 leaves such rows out, as many as the
    forecast if not given."""
    seed: Seed = 0

    def sizes(self, num_samples: int) -> tuple[int, ...]:
        """Numbers of samples whose mean is scored, largest first: all, those of `means` and of other conditions.

        Raises:
            UsageError: one of them is more than are drawn.
        """
        means = (5,) * (num_samples > 5) if self.means is None else self.means
        wanted = {num_samples, 1, *means, self.condition_samples or num_samples}
        if max(wanted) > num_samples:
            raise UsageError(
                f"{num_samples} samples are drawn (--num-samples), too few for a mean of {max(wanted)} "
                "(--means, --condition-samples)"
            )
        return tuple(sorted(wanted, reverse=True))


def score(
    judged: Judged,
    clips: Clips,
    amount: Amount,
    *,
    out: Path,
    split: Split = "not checked",
    key: str | None = None,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score every row of a protocol and write `metrics.json` and `forecasts.npz` into `out`.

    Args:
        split: what `split_of` said of the clips, for the record.
        key: of all that decides the numbers (`made_from`): what an evaluation of the same key left that was stopped is
            taken over.
        ranks: processes that share the clips; each returns the whole evaluation, and the first one writes it.

    Raises:
        UsageError: the data hold nothing to compare with, or the unconditional world forecasts something else.
    """
    refuse_incomparable(clips, judged.protocol)
    forecaster, other = judged.forecaster, judged.unconditional
    if other is not None and (other.times, other.token_grid) != (forecaster.times, forecaster.token_grid):
        raise UsageError("the unconditional world forecasts other times or tokens than the one it is compared with")
    began, ranks, chosen = time.monotonic(), ranks or Ranks(), evenly(len(clips), amount.num_clips)
    entries = entries_of(judged.protocol, amount.sizes(forecaster.num_samples))
    conditions = amount.condition_samples != 0 and any(entry.role == "ablation" for entry in entries)
    foreign, shown = foreign_states(clips, chosen) if conditions else None, set(evenly(len(chosen), SHOWN_CLIPS))
    scoring = _Scoring(judged, clips, amount, chosen, foreign, shown, entries)
    parts, begins = Parts.begun(out, key, ranks=ranks), range(0, len(chosen), amount.batch_size)
    done = parts.there.__contains__
    ranks.made(begins, lambda begin: parts.write(begin, vars(scoring.batch(begin))), done=done, progress=progress)
    if not ranks.writes:
        return ranks.agreed(None)
    tally = Tally.joined([Tally(**parts.read(begin)) for begin in begins])
    _write_forecasts(out / "forecasts.npz", tally, scoring)
    evaluation = Evaluation(
        protocol=judged.protocol,
        run=judged.run,
        data=_data(tally, clips, forecaster, split),
        tokenizer=judged.tokenizer,
        settings={**scoring.settings, **judged.settings, **tally.settings, **_usage(tally.totals)},
        environment=environment(),
        seconds=time.monotonic() - began,
        not_computed=tally.not_computed,
        **_averaged(tally, scoring),
    )
    evaluation.save(out / "metrics.json")
    parts.remove()
    return ranks.agreed(evaluation)


def entries_of(protocol: Protocol, sizes: Sequence[int]) -> tuple[Entry, ...]:
    """The rows of a protocol in their order. The first is the forecast that the others are compared with."""
    means = [entry_of(f"mean_{size}") for size in sizes if size > 1] if protocol == "sampling" else []
    return tuple(entry for entry in (*means, *ROWS.values()) if entry is not None and protocol in entry.protocols)


def refuse_incomparable(clips: Clips, protocol: Protocol) -> None:
    """Raise `UsageError` where the data hold nothing to compare a forecast with."""
    source = clips.source
    if source.context_only:
        raise UsageError(f"{source.path} holds no future: test samples can be forecast, not evaluated")
    if source.image_size is None and protocol != "compression":
        raise UsageError(f"{source.path} holds no frames to compare with; give data that do (--data)")


# --- batches ---


@dataclass(frozen=True, eq=False)
class _Scoring:
    """Every row of every clip that was chosen, batch by batch."""

    judged: Judged
    clips: Clips
    amount: Amount
    chosen: list[int]
    foreign: Float32[Tensor, "n t s"] | None
    """For each chosen clip the states of another one."""
    shown: set[int]
    """Places among the chosen clips whose frames are kept."""
    entries: tuple[Entry, ...]

    @property
    def condition_samples(self) -> int:
        asked = self.amount.condition_samples
        return self.judged.forecaster.num_samples if asked is None else asked

    @property
    def settings(self) -> dict[str, Setting]:
        """The requested amounts, for the record."""
        forecaster, grid = self.judged.forecaster, self.judged.forecaster.token_grid
        known: dict[str, Setting] = {} if grid is None else {"vocabulary": grid.vocab_size}
        if self.judged.protocol == "tokenizer":
            return known
        drawn = {"num_samples": forecaster.num_samples, "condition_samples": self.condition_samples}
        return {"seed": self.amount.seed, **drawn, **known}

    def batch(self, begin: int) -> Tally:
        """Score the batch that begins with this one of the chosen clips."""
        now = range(begin, min(begin + self.amount.batch_size, len(self.chosen)))
        batch, forecaster = stack([self.clips[self.chosen[i]] for i in now]), self.judged.forecaster
        scene = Scene(
            judged=self.judged,
            batch=batch if self.judged.protocol == "sampling" else forecaster.encoded(batch),
            seeds=clip_seeds(self.amount.seed, batch.origins),
            foreign=None if self.foreign is None else self.foreign[now.start : now.stop],
            condition_samples=self.condition_samples,
        )
        tally = Tally([origin.episode for origin in batch.origins])
        truth = None if batch.frames is None else batch.frames[:, list(forecaster.times)]
        if truth is None:
            tally.not_computed |= dict.fromkeys(("psnr_db", "ssim"), "the data hold tokens only, no frames")
        views = {"real": truth}
        for entry in self.entries:
            try:
                made = entry.make(scene)
            except NotComputed as reason:
                tally.not_computed[entry.id] = str(reason)
                continue
            if made is not None:
                tally.score(entry.id, made, truth)
                if entry.shown or entry is self.entries[0]:
                    views[entry.id] = made.frames
        if batch.frames is not None:
            tally.shown = self._kept(batch.frames, views, now)
        if self.judged.protocol == "tokenizer":
            tally.totals = _totals(scene.batch, forecaster.token_grid)
        return tally

    def _kept(self, frames: Tensor, views: Mapping[str, Tensor | None], now: range) -> dict[str, Tensor]:
        """Of some clips each row's frames behind those of the context; nothing where there is no context."""
        clips, seen = [i for i in range(len(now)) if now[i] in self.shown], self.judged.forecaster.shown_context
        found = {row: view for row, view in views.items() if view is not None and seen}
        return {row: torch.cat([frames[clips][:, seen], view[clips]], dim=1) for row, view in found.items()}


# --- from numbers per clip to an evaluation ---


def _averaged(tally: Tally, scoring: _Scoring) -> dict[str, Any]:
    """Rows, curves and comparisons, with intervals over episodes."""
    episodes = torch.tensor(tally.episodes)
    rows: dict[str, dict[str, Tensor]] = {}
    for (row, metric), numbers in tally.values.items():
        rows.setdefault(row, {})[metric] = numbers
    curves: dict[str, dict[str, list[Interval]]] = {}
    for (row, metric), numbers in tally.curves.items():
        curves.setdefault(metric, {})[row] = intervals(numbers, episodes)
    comparisons = [
        Comparison(
            metric=metric,
            better=better,
            than=than,
            difference=paired_difference(rows[better][metric], rows[than][metric], episodes),
        )
        for better, than, metric in _claims(scoring)
        if metric in rows.get(better, {}) and metric in rows.get(than, {})
    ]
    averaged = [
        Row(id=e.id, role=e.role, metrics=_means(rows[e.id], episodes)) for e in scoring.entries if e.id in rows
    ]
    return {"rows": tuple(averaged), "curves": curves, "comparisons": tuple(comparisons)}


def _means(values: Mapping[str, Tensor], episodes: Int64[Tensor, " n"]) -> dict[str, Interval]:
    """Average each metric over clips; of a sparse one over those that have a number."""
    found = {}
    for metric, numbers in values.items():
        known = ~numbers.isnan() if METRICS[metric].sparse else torch.ones_like(numbers).bool()
        if known.any():
            found[metric] = interval(numbers[known], episodes[known])
    return found


def _claims(scoring: _Scoring) -> list[tuple[str, str, str]]:
    """(better, than, metric): the forecast is better than every other row, a ceiling better than the forecast.

    A condition is compared with the mean of as many samples, made from the same noise.
    """
    first, samples = scoring.entries[0].id, scoring.condition_samples
    fewer = samples not in (0, scoring.judged.forecaster.num_samples)
    alike = first if not fewer else "sample" if samples == 1 else f"mean_{samples}"
    claims = []
    for entry in scoring.entries[1:]:
        ours = alike if entry.role == "ablation" else first
        pair = (entry.id, ours) if entry.role == "ceiling" else (ours, entry.id)
        claims += [(*pair, metric) for metric in entry.compared]
    return claims


def _data(tally: Tally, clips: Clips, forecaster: Forecaster, split: Split) -> DataSummary:
    source, size = clips.source, clips.image_size
    return DataSummary(
        name=source.path.resolve().name,
        kind=source.kind,
        num_clips=len(tally.episodes),
        num_episodes=len(set(tally.episodes)),
        image_size=(size, size) if size and source.image_size else source.image_size,
        horizon_frames=forecaster.horizon_frames,
        fps=source.fps / clips.pattern.stride,
        split=split,
    )


def _totals(batch: Batch, grid: TokenGrid | None) -> dict[str, Tensor]:
    """Counts of a tokenizer's tokens or latents."""
    if batch.tokens is not None and grid is not None:
        return {"tokens": torch.bincount(batch.tokens.flatten(), minlength=grid.vocab_size)}
    assert batch.latents is not None, "a tokenizer makes tokens or latents"
    values = batch.latents.double()
    return {"latents": torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])}


def _usage(totals: Mapping[str, Tensor]) -> dict[str, Setting]:
    """Of tokens those that occurred, and the perplexity of their frequencies (the number of tokens that an evenly used
    vocabulary of the same entropy would have); of latents mean and deviation over all channels, about 0 and 1.
    """
    if "latents" in totals:
        count, total, squares = totals["latents"].tolist()
        deviation = (squares / count - (total / count) ** 2) ** 0.5
        return {"latent_mean": round(total / count, 4), "latent_std": round(deviation, 4)}
    counts = totals.get("tokens", torch.zeros(0)).double()
    shares = counts[counts > 0] / counts.sum()
    perplexity = float((-(shares * shares.log()).sum()).exp())
    return {"tokens_used": len(shares), "token_perplexity": round(perplexity, 1)} if len(shares) else {}


def _write_forecasts(path: Path, tally: Tally, scoring: _Scoring) -> None:
    """Keep some clips' frames for the report: real ones, and each row's context + forecast, as `n t h w 3`."""
    if "real" not in tally.shown:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(scoring.entries, key=lambda entry: SHOWN_ORDER.index(entry.role))
    rows = [entry.id for entry in ordered if entry.id in tally.shown]
    arrays = {row: rearrange(clips, "n t c h w -> n t h w c").numpy() for row, clips in tally.shown.items()}
    content = {
        "real": arrays["real"],
        "rows": np.array(rows),
        "context": np.array(len(scoring.judged.forecaster.shown_context)),
        "psnr": psnr(tally.shown[rows[0]][:, -1], tally.shown["real"][:, -1]).numpy(),
        **{f"forecast_{i}": arrays[row] for i, row in enumerate(rows)},
    }
    write_npz(path, content)
