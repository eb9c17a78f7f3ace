"""The compression protocol: three grids of context, all states, three grids predicted from own predictions only.

Scores the forecast as tokens (top-500 code length, full cross-entropy) and as pixels (PSNR, SSIM), beside the
baselines that give the numbers a meaning: copying the last frame, token frequencies, a world blind to states, and
the world itself fed another clip's states. Definitions: docs/metrics.md.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline.data.clips import Clips
from worldline.evaluation.held_out import foreign_states, spread
from worldline.evaluation.result import Comparison, DataSummary, Evaluation, Role, Row
from worldline.files import atomic
from worldline.forecasting.forecaster import CopyLast, Loaded, TokenForecaster
from worldline.metrics.bootstrap import Interval, interval, intervals, paired_difference
from worldline.metrics.codes import per_clip, top_k_code_lengths
from worldline.metrics.image import MetricUnavailable, psnr, ssim
from worldline.rundir import environment
from worldline.schema import Batch, UsageError, stack
from worldline.worlds.world import GridStep

FORECAST, SHUFFLED, BLIND = "forecast", "forecast, states of another clip", "blind to states"
COPY, UNIGRAM, ROUND_TRIP = "copy last frame", "token frequencies", "tokenizer round trip"
ROLES: dict[str, Role] = {
    FORECAST: "model",
    SHUFFLED: "ablation",
    BLIND: "baseline",
    COPY: "baseline",
    UNIGRAM: "baseline",
    ROUND_TRIP: "ceiling",
}
CODE_NAMES = {  # field of CodeLengths -> metric of a forecast, metric of the teacher-forced bound
    "residual": ("top500_ce_residual", "teacher_forced_top500_ce"),
    "floor": ("top500_ce_floor", None),
    "hits_only": ("top500_ce_hits_only", None),
    "covered": ("top500_coverage", None),
    "full_ce": ("full_ce", "teacher_forced_ce"),
    "correct": ("token_accuracy", "teacher_forced_accuracy"),
}
COMPARED = (  # better, than, metric
    (FORECAST, COPY, "psnr_db_last"),
    (FORECAST, COPY, "psnr_db_mean"),
    (FORECAST, SHUFFLED, "psnr_db_last"),
    (FORECAST, SHUFFLED, "full_ce"),
    (FORECAST, BLIND, "psnr_db_last"),
    (FORECAST, BLIND, "full_ce"),
    (FORECAST, UNIGRAM, "full_ce"),
    (ROUND_TRIP, FORECAST, "psnr_db_last"),
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How much is evaluated. The protocol itself has no options."""

    num_clips: int | None = 128
    """Evenly spread over the held-out windows; None takes them all."""
    batch_size: int = 8
    shown_clips: int = 6
    """Clips whose frames are kept for the report."""
    seed: int = 0
    """For sampled roll-outs."""


@dataclass
class _Tally:
    """Numbers per clip, gathered batch by batch: `values[row][metric]` and `frames[metric][row]` are lists."""

    values: dict[str, dict[str, list[Tensor]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    curves: dict[str, dict[str, list[Tensor]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    shown: dict[str, list[UInt8[Tensor, "t 3 h w"]]] = field(default_factory=lambda: defaultdict(list))
    episodes: list[int] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)


def evaluate_compression(
    loaded: Loaded,
    clips: Clips,
    *,
    protocol: Protocol,
    out: Path,
    blind: Loaded | None = None,
    unigram: Int64[np.ndarray, " v"] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run the protocol and write `metrics.json` and `forecasts.npz` into `out`.

    Args:
        blind: a world trained without states on the same tokens, for the baseline.
        unigram: counts of the training tokens, for the frequency baseline.

    Raises:
        UsageError: the data hold no future to compare with, or `blind` speaks other tokens.
    """
    if clips.source.kind == "1x-test":
        raise UsageError(f"{clips.source.path} holds no future tokens: test samples can be forecast, not evaluated")
    if blind is not None and _speech(blind) != _speech(loaded):
        raise UsageError(f"the world in {blind.folder} speaks other tokens than the one in {loaded.folder}")
    began, generator = time.monotonic(), torch.Generator().manual_seed(protocol.seed)
    chosen = spread(len(clips), protocol.num_clips)
    others = foreign_states(clips, chosen)
    tally = _Tally()
    if others is None:
        tally.not_computed[SHUFFLED] = "the data hold one clip only"
    if blind is None:
        tally.not_computed[BLIND] = "no blind world was given (--blind RUN)"
    if unigram is None:
        tally.not_computed[UNIGRAM] = "the run folder has no token counts (unigram.npy)"
    shown = set(spread(len(chosen), protocol.shown_clips))
    for begin in range(0, len(chosen), protocol.batch_size):
        now = range(begin, min(begin + protocol.batch_size, len(chosen)))
        batch = stack([clips[chosen[i]] for i in now])
        keep = [i - begin for i in now if i in shown]
        foreign = None if others is None else others[now.start : now.stop]
        _score(tally, loaded.forecaster, batch, foreign, blind, unigram, generator, keep)
        if progress:
            progress(now.stop, len(chosen))
    _write_forecasts(out / "forecasts.npz", tally, loaded.forecaster.context_frames)
    evaluation = _summarise(tally, loaded, clips, protocol, seconds=time.monotonic() - began)
    evaluation.save(out / "metrics.json")
    return evaluation


# --- one batch ---


def _score(
    tally: _Tally,
    forecaster: TokenForecaster,
    batch: Batch,
    others: Float32[Tensor, "b t s"] | None,
    blind: Loaded | None,
    unigram: Int64[np.ndarray, " v"] | None,
    generator: torch.Generator,
    keep: list[int],
) -> None:
    tally.episodes += [origin.episode for origin in batch.origins]
    context = forecaster.world.context_grids
    tokens = batch.tokens if batch.tokens is not None else forecaster.tokenizer.encode(_frames(batch))
    past, future = tokens[:, :context], tokens[:, context:]
    frames: dict[str, UInt8[Tensor, "b t 3 h w"]] = {}
    worlds = [(FORECAST, forecaster, batch.states)]
    if others is not None:
        worlds.append((SHUFFLED, forecaster, others))
    if blind is not None:
        worlds.append((BLIND, blind.forecaster, batch.states))
    for name, one, states in worlds:
        scores = _CodeScores(future)
        forecast = one.from_tokens(past, states, generator=generator, watch=scores.add)
        frames[name] = forecast.frames[:, 0]
        scores.into(tally.values[name], 0)
    forced = _CodeScores(future)
    for index, step in enumerate(forecaster.world.teacher_forced(tokens, batch.states)):
        forced.add(index, step)
    forced.into(tally.values[FORECAST], 1)
    if unigram is not None:
        _score_unigram(tally, future, unigram)
    if batch.frames is None:
        tally.not_computed["psnr_db"] = tally.not_computed["ssim"] = "the data hold tokens only, no frames"
        return
    split = forecaster.context_frames
    frames[COPY] = _copy(forecaster, batch)
    frames[ROUND_TRIP] = forecaster.tokenizer.decode(future)
    truth = batch.frames[:, split : split + forecaster.horizon_frames]
    for name, predicted in frames.items():
        _score_frames(tally, name, predicted, truth)
        tally.shown[name] += [torch.cat([batch.frames[i, :split], predicted[i]]) for i in keep]
    tally.shown["real"] += [batch.frames[i, : split + forecaster.horizon_frames] for i in keep]


class _CodeScores:
    """Code lengths of the true tokens under each predicted grid's logits, which are dropped at once."""

    def __init__(self, future: Int64[Tensor, "b l h w"]) -> None:
        self.future = future
        self.grids: list[dict[str, Tensor]] = []

    def add(self, index: int, step: GridStep) -> None:
        logits = rearrange(step.logits, "b h w v -> (b h w) v")
        lengths = top_k_code_lengths(logits, self.future[:, index].flatten())
        self.grids.append(per_clip(lengths, len(self.future)))

    def into(self, values: dict[str, list[Tensor]], which: int) -> None:
        """Append the mean over grids under the names of forecasts (0) or of the teacher-forced bound (1)."""
        for name, names in CODE_NAMES.items():
            metric = names[which]
            if metric is not None:
                values[metric].append(torch.stack([grid[name] for grid in self.grids]).nanmean(dim=0))


def _score_unigram(tally: _Tally, future: Int64[Tensor, "b l h w"], counts: Int64[np.ndarray, " v"]) -> None:
    # One imagined count each (Laplace): a token never seen in training must not cost infinitely much.
    logits = torch.from_numpy(np.log(counts + 1.0)).float().log_softmax(dim=0)
    scores = _CodeScores(future)
    for index in range(future.shape[1]):
        scores.add(index, GridStep(future[:, index], logits.expand(*future[:, index].shape, -1)))
    scores.into(tally.values[UNIGRAM], 0)


def _score_frames(
    tally: _Tally, name: str, predicted: UInt8[Tensor, "b t 3 h w"], truth: UInt8[Tensor, "b t 3 h w"]
) -> None:
    for metric, measure in (("psnr_db", psnr), ("ssim", ssim)):
        try:
            values = measure(predicted, truth)
        except MetricUnavailable as reason:
            tally.not_computed[metric] = str(reason)
            continue
        tally.curves[metric][name].append(values)
        tally.values[name][f"{metric}_last"].append(values[:, -1])
        tally.values[name][f"{metric}_mean"].append(values.mean(dim=1))


def _copy(forecaster: TokenForecaster, batch: Batch) -> UInt8[Tensor, "b t 3 h w"]:
    copy = CopyLast(context_frames=forecaster.context_frames, horizon_frames=forecaster.horizon_frames)
    return copy.forecast(_frames(batch)[:, : copy.context_frames], batch.states).frames[:, 0]


def _frames(batch: Batch) -> UInt8[Tensor, "b t 3 h w"]:
    assert batch.frames is not None, "the caller checked for frames"
    return batch.frames


# --- all batches ---


def _summarise(tally: _Tally, loaded: Loaded, clips: Clips, protocol: Protocol, *, seconds: float) -> Evaluation:
    episodes = torch.tensor(tally.episodes)
    values = {row: {m: torch.cat(parts) for m, parts in metrics.items()} for row, metrics in tally.values.items()}
    rows = tuple(
        Row(name=name, role=role, metrics=_intervals(values[name], episodes))
        for name, role in ROLES.items()
        if name in values
    )
    comparisons = tuple(
        Comparison(
            name=f"{better} vs {than}",
            metric=metric,
            better=better,
            than=than,
            difference=paired_difference(values[better][metric], values[than][metric], episodes),
        )
        for better, than, metric in COMPARED
        if metric in values.get(better, {}) and metric in values.get(than, {})
    )
    forecaster, sampling = loaded.forecaster, loaded.forecaster.sampling
    return Evaluation(
        protocol="compression",
        run=loaded.folder.resolve().name,
        data=DataSummary(
            name=clips.source.path.resolve().name,
            kind=clips.source.kind,
            num_clips=len(episodes),
            num_episodes=len(episodes.unique()),
            image_size=clips[0].frames.shape[-2:] if clips[0].frames is not None else None,  # pyright: ignore
            horizon_frames=forecaster.horizon_frames,
            fps=clips.source.fps,
        ),
        rows=rows,
        curves={
            metric: {row: intervals(torch.cat(parts), episodes) for row, parts in by_row.items()}
            for metric, by_row in tally.curves.items()
        },
        comparisons=comparisons,
        not_computed=tally.not_computed,
        settings={
            "temperature": sampling.temperature,
            "decoding": "greedy" if sampling.temperature == 0 else "sampled",
            "seed": protocol.seed,
            "vocabulary": forecaster.grid.vocab_size,
        },
        environment=environment(),
        seconds=seconds,
    )


def _intervals(values: dict[str, Tensor], episodes: Int64[Tensor, " n"]) -> dict[str, Interval]:
    found = {}
    for metric, numbers in values.items():
        # A clip without a single hit has no cost of its hits; every other metric of it is a number.
        known = ~numbers.isnan() if metric == CODE_NAMES["hits_only"][0] else torch.ones_like(numbers).bool()
        if known.any():
            found[metric] = interval(numbers[known], episodes[known])
    return found


def _speech(loaded: Loaded) -> tuple[object, ...]:
    return loaded.forecaster.grid, loaded.tokenizer


def _write_forecasts(path: Path, tally: _Tally, context: int) -> None:
    """Keep some clips' frames for the report: real ones, and each row's context + forecast, as `n t h w 3`."""
    if "real" not in tally.shown:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: rearrange(torch.stack(clips), "n t c h w -> n t h w c") for name, clips in tally.shown.items()}
    names = [name for name in (FORECAST, COPY, ROUND_TRIP, SHUFFLED) if name in arrays]
    real = arrays["real"]
    quality = psnr(
        rearrange(arrays[FORECAST][:, -1:], "n t h w c -> n t c h w"),
        rearrange(real[:, -1:], "n t h w c -> n t c h w"),
    )
    content = {
        "real": real.numpy(),
        "rows": np.array(names),
        "context": np.array(context),
        "psnr": quality[:, 0].numpy(),
        **{f"forecast_{i}": arrays[name].numpy() for i, name in enumerate(names)},
    }
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **content)
