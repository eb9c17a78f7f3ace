"""The compression protocol: three grids of context, all states, three grids predicted from own predictions only.

Scores the forecast as tokens (top-500 code length, full cross-entropy) and as pixels (PSNR, SSIM), beside the
baselines that give the numbers a meaning: copying the last frame, token frequencies, a world blind to states, and
the world itself fed another clip's states. Definitions: docs/metrics.md.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline.data.clips import Clips
from worldline.evaluation.held_out import foreign_states, spread
from worldline.evaluation.result import Evaluation, Role
from worldline.evaluation.summary import summarise, write_forecasts
from worldline.evaluation.tally import CodeScores, Tally
from worldline.forecasting.forecaster import CopyLast
from worldline.forecasting.load import Loaded
from worldline.forecasting.tokens import Rollout, TokenForecaster
from worldline.process.noise import clip_seeds
from worldline.schema import Batch, UsageError, stack
from worldline.worlds.world import GridStep

FORECAST, SHUFFLED, BLIND = "forecast", "forecast, states of another clip", "blind to states"
WORDS = "forecast, likeliest words"
COPY, UNIGRAM, ROUND_TRIP = "copy last frame", "token frequencies", "tokenizer round trip"
KEPT = "tokenizer round trip, seen parts kept"
ROLES: dict[str, Role] = {
    FORECAST: "model",
    WORDS: "ablation",
    SHUFFLED: "ablation",
    BLIND: "baseline",
    COPY: "baseline",
    UNIGRAM: "baseline",
    ROUND_TRIP: "ceiling",
    KEPT: "ceiling",
}
COMPARED = (  # better, than, metric
    (FORECAST, COPY, "psnr_db_last"),
    (FORECAST, COPY, "psnr_db_mean"),
    (FORECAST, WORDS, "psnr_db_last"),
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
    began, forecaster = time.monotonic(), loaded.over_tokens()
    chosen = spread(len(clips), protocol.num_clips)
    others = foreign_states(clips, chosen)
    tally = Tally()
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
        _score(tally, forecaster, batch, foreign, blind, unigram, protocol.seed, keep)
        if progress:
            progress(now.stop, len(chosen))
    write_forecasts(
        out / "forecasts.npz",
        tally,
        rows=(FORECAST, COPY, ROUND_TRIP, SHUFFLED),
        context=forecaster.context_frames,
    )
    sampling = forecaster.sampling
    evaluation = summarise(
        tally,
        clips,
        protocol="compression",
        run=loaded.folder,
        roles=ROLES,
        compared=COMPARED,
        horizon_frames=forecaster.horizon_frames,
        settings={
            "temperature": sampling.temperature,
            "decoding": "greedy" if sampling.temperature == 0 else "sampled",
            "pictures": forecaster.pictures,
            "keep_seen": forecaster.keep_seen,
            "seed": protocol.seed,
            "vocabulary": forecaster.grid.vocab_size,
        },
        seconds=time.monotonic() - began,
    )
    evaluation.save(out / "metrics.json")
    return evaluation


# --- one batch ---


def _score(
    tally: Tally,
    forecaster: TokenForecaster,
    batch: Batch,
    others: Float32[Tensor, "b t s"] | None,
    blind: Loaded | None,
    unigram: Int64[np.ndarray, " v"] | None,
    seed: int,
    keep: list[int],
) -> None:
    tally.episodes += [origin.episode for origin in batch.origins]
    context = forecaster.world.context_grids
    tokens = batch.tokens if batch.tokens is not None else forecaster.encode(_frames(batch))
    past, future = tokens[:, :context], tokens[:, context:]
    rollouts: dict[str, Rollout] = {}
    worlds = [(FORECAST, forecaster, batch.states)]
    if others is not None:
        worlds.append((SHUFFLED, forecaster, others))
    if blind is not None:
        worlds.append((BLIND, blind.over_tokens(), batch.states))
    for name, one, states in worlds:
        scores = CodeScores(future)
        rollouts[name] = one.rollout(past, states, seeds=clip_seeds(seed, batch.origins), watch=scores.add)
        scores.into(tally.values[name], 0)
    forced = CodeScores(future)
    for index, step in enumerate(_teacher_forced(forecaster, tokens, batch)):
        forced.add(index, step)
    forced.into(tally.values[FORECAST], 1)
    if unigram is not None:
        _score_unigram(tally, future, unigram)
    if batch.frames is None:
        tally.not_computed["psnr_db"] = tally.not_computed["ssim"] = "the data hold tokens only, no frames"
        return
    split = forecaster.context_frames
    seen = batch.frames[:, :split]
    frames = {name: forecaster.show(rollout, seen) for name, rollout in rollouts.items()}
    if forecaster.pictures == "mean" or forecaster.keep_seen:
        frames[WORDS] = forecaster.decode(rollouts[FORECAST].tokens)
    frames[ROUND_TRIP] = forecaster.decode(future)
    if forecaster.keep_seen:
        frames[KEPT] = forecaster.show(Rollout.certain(past, future), seen)
    frames[COPY] = _copy(forecaster, batch)
    truth = batch.frames[:, split : split + forecaster.horizon_frames]
    for name, predicted in frames.items():
        tally.add_frames(name, predicted, truth)
        tally.shown[name] += [torch.cat([batch.frames[i, :split], predicted[i]]) for i in keep]
    tally.shown["real"] += [batch.frames[i, : split + forecaster.horizon_frames] for i in keep]


def _teacher_forced(forecaster: TokenForecaster, tokens: Int64[Tensor, "b l h w"], batch: Batch) -> Iterator[GridStep]:
    device = forecaster.device
    return forecaster.world.teacher_forced(tokens.to(device), batch.states.to(device))


def _score_unigram(tally: Tally, future: Int64[Tensor, "b l h w"], counts: Int64[np.ndarray, " v"]) -> None:
    # One imagined count each (Laplace): a token never seen in training must not cost infinitely much.
    logits = torch.from_numpy(np.log(counts + 1.0)).float().log_softmax(dim=0)
    scores = CodeScores(future)
    for index in range(future.shape[1]):
        scores.add(index, GridStep(future[:, index], logits.expand(*future[:, index].shape, -1)))
    scores.into(tally.values[UNIGRAM], 0)


def _copy(forecaster: TokenForecaster, batch: Batch) -> UInt8[Tensor, "b t 3 h w"]:
    copy = CopyLast.beside(forecaster)
    return copy.forecast(_frames(batch)[:, : copy.context_frames], batch.states).frames[:, 0]


def _frames(batch: Batch) -> UInt8[Tensor, "b t 3 h w"]:
    assert batch.frames is not None, "the caller checked for frames"
    return batch.frames


# --- all batches ---


def _speech(loaded: Loaded) -> tuple[object, ...]:
    return loaded.over_tokens().grid, loaded.tokenizer
