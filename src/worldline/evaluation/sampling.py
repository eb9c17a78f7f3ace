"""The sampling protocol: 17 frames and 77 states in, the picture two seconds ahead out, judged by PSNR and SSIM.

Knows forecasters only, so both tracks and every baseline can be put through it. From one set of samples it scores a
single one, the means of several, and the medoid (report, table 2); beside them the baselines that give the numbers a
meaning: copying the last frame, the older blur and histogram matching, another clip's states, a world blind to states.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.data.clips import Clips
from worldline.evaluation.held_out import foreign_states, spread
from worldline.evaluation.result import Evaluation, Role
from worldline.evaluation.summary import summarise, write_forecasts
from worldline.evaluation.tally import Tally
from worldline.forecasting import ensemble
from worldline.forecasting.forecaster import CopyLast, Forecaster, shown_context
from worldline.forecasting.postprocess import blur_and_match
from worldline.process.noise import clip_seeds
from worldline.schema import Batch, UsageError, stack

SINGLE, MEDOID, BLURRED = "one sample", "medoid", "one sample, blurred and matched"
SHUFFLED, BLIND = "states of another clip", "blind to states"
COPY, COPY_BLURRED, ROUND_TRIP = "copy last frame", "copy, blurred", "tokenizer round trip"
NOT_COMPUTED = {
    "lpips": "needs learned weights that are not part of worldline",
    "fid": "needs the standard Inception weights, and far more images than a laptop's evaluation has",
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SamplingProtocol:
    """How much is evaluated."""

    num_clips: int | None = 64
    """Evenly spread over the held-out windows; None takes them all."""
    means: tuple[int, ...] = (5,)
    """Sizes of smaller ensembles that are scored beside the whole one."""
    blur_px: float | None = None
    """Deviation of the Gaussian blur; None takes 1/64 of the picture's width."""
    batch_size: int = 4
    shown_clips: int = 6
    """Clips whose frames are kept for the report."""
    seed: int = 0


def mean_of(count: int) -> str:
    """Name of the row of an ensemble mean."""
    return SINGLE if count == 1 else f"mean of {count}"


def evaluate_sampling(
    forecaster: Forecaster,
    clips: Clips,
    *,
    protocol: SamplingProtocol,
    run: Path,
    out: Path,
    settings: dict[str, str | int | float | bool],
    blind: Forecaster | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run the protocol and write `metrics.json` and `forecasts.npz` into `out`.

    Sample k of a clip is made from the same noise in every row, so rows differ by what they are, not by luck.

    Args:
        settings: how the forecaster samples, to be kept with the numbers.
        blind: a forecaster trained without states, for the baseline.

    Raises:
        UsageError: the data hold no frames, or `blind` forecasts other times.
    """
    if clips[0].frames is None:
        raise UsageError(f"{clips.source.path} holds no frames to compare a forecast with; give data that do (--data)")
    if blind is not None and blind.times != forecaster.times:
        raise UsageError("the blind world forecasts other times than the one it is compared with")
    began = time.monotonic()
    chosen = spread(len(clips), protocol.num_clips)
    others = foreign_states(clips, chosen)
    tally = Tally(not_computed=dict(NOT_COMPUTED))
    if others is None:
        tally.not_computed[SHUFFLED] = "the data hold one clip only"
    if blind is None:
        tally.not_computed[BLIND] = "no blind world was given (--blind RUN)"
    shown = set(spread(len(chosen), protocol.shown_clips))
    count = 0
    for begin in range(0, len(chosen), protocol.batch_size):
        now = range(begin, min(begin + protocol.batch_size, len(chosen)))
        batch = stack([clips[chosen[i]] for i in now])
        foreign = None if others is None else others[now.start : now.stop]
        pictures, count = _forecasts(forecaster, batch, foreign, blind, protocol)
        _score(tally, pictures, forecaster, batch, keep=[i - begin for i in now if i in shown])
        if progress:
            progress(now.stop, len(chosen))
    full = mean_of(count)
    roles = _roles(count, protocol.means)
    write_forecasts(
        out / "forecasts.npz",
        tally,
        rows=(full, SINGLE, COPY, ROUND_TRIP, SHUFFLED) if count > 1 else (SINGLE, COPY, ROUND_TRIP, SHUFFLED),
        context=len(shown_context(forecaster)),
    )
    evaluation = summarise(
        tally,
        clips,
        protocol="sampling",
        run=run,
        roles=roles,
        compared=_compared(full, roles),
        horizon_frames=forecaster.horizon_frames,
        settings={"num_samples": count, "seed": protocol.seed, **settings},
        seconds=time.monotonic() - began,
    )
    evaluation.save(out / "metrics.json")
    return evaluation


def _roles(count: int, means: tuple[int, ...]) -> dict[str, Role]:
    models = {mean_of(size): "model" for size in sorted({1, count, *(m for m in means if m < count)}, reverse=True)}
    medoid = {MEDOID: "model"} if count > 2 else {}
    others: dict[str, Role] = {
        BLURRED: "baseline",
        SHUFFLED: "ablation",
        BLIND: "baseline",
        COPY: "baseline",
        COPY_BLURRED: "baseline",
        ROUND_TRIP: "ceiling",
    }
    return {**models, **medoid, **others}  # pyright: ignore[reportReturnType]


def _compared(full: str, roles: dict[str, Role]) -> list[tuple[str, str, str]]:
    metric = "psnr_db_last"
    rivals = [name for name in (COPY, COPY_BLURRED, SINGLE, MEDOID, BLURRED, SHUFFLED, BLIND) if name != full]
    pairs = [(full, name, metric) for name in rivals if name in roles]
    return [*pairs, (full, COPY, "psnr_db_mean"), (full, COPY, "ssim_last"), (ROUND_TRIP, full, metric)]


def _forecasts(
    forecaster: Forecaster,
    batch: Batch,
    others: Float32[Tensor, "b t s"] | None,
    blind: Forecaster | None,
    protocol: SamplingProtocol,
) -> tuple[dict[str, UInt8[Tensor, "b f 3 h w"]], int]:
    """What every row shows at the forecaster's times, and how many samples were drawn."""
    frames = _frames(batch)
    context = frames[:, : forecaster.context_frames]
    last, sigma = context[:, -1], protocol.blur_px or frames.shape[-1] / 64
    seeds = clip_seeds(protocol.seed, batch.origins)
    samples = forecaster.forecast(context, batch.states, seeds=seeds).frames
    count = samples.shape[1]
    single = ensemble.combine(samples, "single")
    copy = CopyLast.beside(forecaster).forecast(context, batch.states).frames[:, 0]
    made = {
        mean_of(size): ensemble.combine(samples[:, :size], "mean") for size in (count, *protocol.means) if size <= count
    }
    made |= {SINGLE: single, BLURRED: blur_and_match(single, last, sigma)}
    made |= {COPY: copy, COPY_BLURRED: blur_and_match(copy, last, sigma), ROUND_TRIP: forecaster.round_trip(frames)}
    if count > 2:
        made[MEDOID] = ensemble.combine(samples, "medoid")
    if others is not None:
        shuffled = forecaster.forecast(context, others, seeds=seeds).frames
        made[SHUFFLED] = ensemble.combine(shuffled, "mean")
    if blind is not None:
        unseeing = blind.forecast(context, batch.states, seeds=seeds).frames
        made[BLIND] = ensemble.combine(unseeing, "mean")
    return made, count


def _score(
    tally: Tally,
    pictures: dict[str, UInt8[Tensor, "b f 3 h w"]],
    forecaster: Forecaster,
    batch: Batch,
    *,
    keep: list[int],
) -> None:
    tally.episodes += [origin.episode for origin in batch.origins]
    frames, seen = _frames(batch), shown_context(forecaster)
    truth = frames[:, list(forecaster.times)]
    for name, predicted in pictures.items():
        tally.add_frames(name, predicted, truth)
        tally.shown[name] += [torch.cat([frames[i, seen], predicted[i]]) for i in keep]
    tally.shown["real"] += [torch.cat([frames[i, seen], truth[i]]) for i in keep]


def _frames(batch: Batch) -> UInt8[Tensor, "b t 3 h w"]:
    assert batch.frames is not None, "the caller checked for frames"
    return batch.frames
