"""The compression protocol: three grids of context, all states, three grids predicted from own predictions only.

Scores the forecast as tokens (top-500 code length, full cross-entropy) and as pixels (PSNR, SSIM), beside the
baselines that give the numbers a meaning: copying the last frame, keeping the last tokens, unigram, an
unconditional world, and the world itself fed another clip's states. Definitions: docs/metrics.md.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from worldline.data.clips import Clips
from worldline.evaluation.batches import Progress, check_sizes, tallied
from worldline.evaluation.held_out import foreign_states, spread
from worldline.evaluation.parts import Parts
from worldline.evaluation.result import Evaluation, Role, Split
from worldline.evaluation.summary import summarise, write_forecasts
from worldline.evaluation.tally import Tally, TokenScores
from worldline.families.load import Loaded
from worldline.forecasting.forecaster import CopyLast, Extra
from worldline.forecasting.tokens import TokenForecaster
from worldline.identity import hash_of
from worldline.metrics.table import METRICS
from worldline.metrics.tokens import kept_guesses, shared_guesses
from worldline.process.noise import clip_seeds
from worldline.ranks import Ranks
from worldline.schema import Batch, Forecast, UsageError
from worldline.tokenizers.load import TokenizerIdentity

FORECAST, SHUFFLED, UNCONDITIONAL = "forecast", "shuffled_states", "unconditional"
TOKENS = "forecast_tokens"
COPY, UNIGRAM, RECONSTRUCTION = "copy_last", "unigram", "reconstruction"
KEEP_LAST = "keep_last_tokens"
BLENDED = "reconstruction_blended"
ROLES: dict[str, Role] = {
    FORECAST: "model",
    TOKENS: "ablation",
    SHUFFLED: "ablation",
    UNCONDITIONAL: "baseline",
    COPY: "baseline",
    KEEP_LAST: "baseline",
    UNIGRAM: "baseline",
    RECONSTRUCTION: "ceiling",
    BLENDED: "ceiling",
}
COMPARED = (  # better, than, metric
    (FORECAST, COPY, "psnr_db_last"),
    (FORECAST, COPY, "psnr_db_mean"),
    (FORECAST, TOKENS, "psnr_db_last"),
    (FORECAST, SHUFFLED, "psnr_db_last"),
    (FORECAST, SHUFFLED, "full_ce"),
    (FORECAST, UNCONDITIONAL, "psnr_db_last"),
    (FORECAST, UNCONDITIONAL, "full_ce"),
    (FORECAST, KEEP_LAST, "psnr_db_last"),
    (FORECAST, KEEP_LAST, "full_ce"),
    (FORECAST, KEEP_LAST, "token_accuracy"),
    (FORECAST, UNIGRAM, "full_ce"),
    (RECONSTRUCTION, FORECAST, "psnr_db_last"),
)
SCORED: tuple[Extra, ...] = ("costs", "teacher_forced_costs", "plain_frames")
SHOWN = (FORECAST, COPY, RECONSTRUCTION, SHUFFLED)
CHANGED = 0.5
"""Probability that a token does not stay the last context grid's, where a run has not counted how often they did."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How much is evaluated. The protocol itself has no options.

    Raises:
        UsageError: numbers by which nothing can be evaluated.
    """

    num_clips: int | None = 128
    """Evenly spread over the held-out windows; None takes them all."""
    batch_size: int = 8
    shuffled: bool = True
    """Score the world given another clip's states, too: one more roll-out of every clip."""
    shown_clips: int = 6
    """Clips whose frames are kept for the report."""
    seed: int = 0
    """For sampled roll-outs."""

    def __post_init__(self) -> None:
        check_sizes(num_clips=self.num_clips, batch_size=self.batch_size, seed=self.seed, shown_clips=self.shown_clips)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenCounts:
    """What a run's training tokens say before anything is seen: how often each occurs, and how many stay."""

    unigram: Int64[np.ndarray, " v"]
    kept: Int64[np.ndarray, "l 2"] | None = None
    """Of each future grid's training tokens, how many are as the last context grid's there, and how many not."""

    @staticmethod
    def of(run: Path) -> "TokenCounts | None":
        """Those of a run folder, of a checkpoint inside one, or None where it has none."""
        place = next((p for p in (run, run.parent.parent) if (p / "unigram.npy").exists()), None)
        if place is None:
            return None
        kept = place / "kept.npy"
        return TokenCounts(unigram=np.load(place / "unigram.npy"), kept=np.load(kept) if kept.exists() else None)

    def content(self) -> str:
        """Hash of the counts."""
        return hash_of([self.unigram.tolist(), None if self.kept is None else self.kept.tolist()])

    def changed(self) -> list[float] | None:
        """Share of each future grid's tokens that do not stay, with one imagined token of either kind."""
        if self.kept is None:
            return None
        return ((self.kept[:, 1] + 1) / (self.kept.sum(axis=1) + 2)).tolist()


def evaluate_compression(
    loaded: Loaded,
    clips: Clips,
    *,
    protocol: Protocol,
    out: Path,
    split: Split = "not checked",
    unconditional: Loaded | None = None,
    counts: TokenCounts | None = None,
    parts: Parts | None = None,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run the protocol and write `metrics.json` and `forecasts.npz` into `out`.

    Args:
        split: what `split_of` said of the clips, for the record.
        unconditional: a world trained without states on the same tokens, for the baseline.
        counts: of the training tokens, for the baselines that know nothing else.
        parts: what an evaluation by the very same left that was stopped; None begins from nothing.
        ranks: processes that share the clips; each returns the whole evaluation, and the first one writes it.

    Raises:
        UsageError: the data hold no future to compare with, or `unconditional` speaks other tokens.
    """
    if clips.source.context_only:
        raise UsageError(f"{clips.source.path} holds no future tokens: test samples can be forecast, not evaluated")
    if unconditional is not None and _speech(unconditional) != _speech(loaded):
        raise UsageError(f"the world in {unconditional.folder} speaks other tokens than the one in {loaded.folder}")
    began, forecaster, ranks = time.monotonic(), loaded.over_tokens(), ranks or Ranks()
    chosen = spread(len(clips), protocol.num_clips)
    scorer = _Scorer(
        forecaster=forecaster,
        unconditional=None if unconditional is None else unconditional.over_tokens(),
        others=foreign_states(clips, chosen) if protocol.shuffled else None,
        counts=counts,
        shown=frozenset(spread(len(chosen), protocol.shown_clips)),
        seed=protocol.seed,
    )
    parts, size = parts or Parts.begun(out, ranks=ranks), protocol.batch_size
    tally = tallied(clips, chosen, scorer, batch_size=size, parts=parts, ranks=ranks, progress=progress)
    if tally is None:
        return ranks.agreed(None)
    if scorer.others is None:
        tally.not_computed[SHUFFLED] = "the data hold one clip only" if protocol.shuffled else "switched off"
    if unconditional is None:
        tally.not_computed[UNCONDITIONAL] = "no unconditional world was given (--unconditional RUN)"
    if counts is None:
        tally.not_computed[UNIGRAM] = "the run folder has no token counts (unigram.npy)"
    write_forecasts(out / "forecasts.npz", tally, rows=SHOWN, context=forecaster.context_frames)
    evaluation = summarise(
        tally,
        clips,
        protocol="compression",
        run=loaded.folder,
        split=split,
        roles=ROLES,
        compared=COMPARED,
        horizon_frames=forecaster.horizon_frames,
        tokenizer=_scored(loaded, clips),
        settings={**loaded.chosen, **_settings(forecaster, scorer.changed, counts), "seed": protocol.seed},
        seconds=time.monotonic() - began,
    )
    evaluation.save(out / "metrics.json")
    parts.remove()
    return ranks.agreed(evaluation)


# --- one batch ---


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scorer:
    """Scores one batch of clips in every row."""

    forecaster: TokenForecaster
    unconditional: TokenForecaster | None
    others: Float32[Tensor, "n t s"] | None
    """For each chosen clip the states of another one."""
    counts: TokenCounts | None
    shown: frozenset[int]
    """Places among the chosen clips whose frames are kept."""
    seed: int

    def __call__(self, batch: Batch, now: range) -> Tally:
        tally = Tally(episodes=[origin.episode for origin in batch.origins])
        batch = self.forecaster.encoded(batch)
        assert batch.tokens is not None, "they are made where there are none"
        past, future = batch.tokens.tensor_split([self.forecaster.world.context_grids], dim=1)
        forecasts = self._score_worlds(tally, batch, now)
        self._score_kept(tally, past, future)
        if self.counts is not None:
            _score_unigram(tally, future, self.counts.unigram)
        if batch.frames is None:
            tally.not_computed["psnr_db"] = tally.not_computed["ssim"] = "the data hold tokens only, no frames"
        else:
            self._score_frames(tally, past, batch, forecasts, keep=[i for i, j in enumerate(now) if j in self.shown])
        return tally

    @property
    def changed(self) -> list[float]:
        """For each future grid the probability that a token is not the last context grid's."""
        counted = None if self.counts is None else self.counts.changed()
        return counted or [CHANGED] * self.forecaster.world.horizon_grids

    @property
    def prior(self) -> Float64[Tensor, " v"]:
        """How likely each token is where nothing was seen: as often as in training, or each alike."""
        size = self.forecaster.grid.vocab_size
        counts = np.zeros(size) if self.counts is None else self.counts.unigram
        return torch.from_numpy((counts + 1.0) / (counts + 1.0).sum())

    def _score_worlds(self, tally: Tally, batch: Batch, now: range) -> dict[str, Forecast]:
        worlds = [(FORECAST, self.forecaster, batch.states)]
        if self.others is not None:
            worlds.append((SHUFFLED, self.forecaster, self.others[now.start : now.stop]))
        if self.unconditional is not None:
            worlds.append((UNCONDITIONAL, self.unconditional, batch.states))
        forecasts, seeds = {}, clip_seeds(self.seed, batch.origins)
        for name, world, states in worlds:
            extra = SCORED if name == FORECAST else SCORED[:1]
            made = forecasts[name] = world.forecast_clips(batch, states=states, seeds=seeds, extra=extra)
            for metric, values in made.costs.items():
                tally.values[name][metric].append(values.nanmean(dim=1))
            for metric, values in made.teacher_forced_costs.items():
                if (bound := METRICS[metric].bound) is not None:
                    tally.values[name][bound].append(values.nanmean(dim=1))
        return forecasts

    def _score_kept(self, tally: Tally, past: Int64[Tensor, "b c h w"], future: Int64[Tensor, "b l h w"]) -> None:
        scores, prior = TokenScores(future), self.prior
        for index, changed in enumerate(self.changed):
            kept, true = past[:, -1].flatten(), future[:, index].flatten()
            scores.note(index, kept_guesses(prior, kept, true, changed=changed), len(past))
        scores.into(tally.values[KEEP_LAST])

    def _score_frames(
        self,
        tally: Tally,
        past: Int64[Tensor, "b c h w"],
        batch: Batch,
        forecasts: dict[str, Forecast],
        *,
        keep: list[int],
    ) -> None:
        forecaster, real = self.forecaster, _frames(batch)
        split = forecaster.context_frames
        seen, truth = real[:, :split], real[:, split : split + forecaster.horizon_frames]
        made = dict(forecasts)
        if (plain := forecasts[FORECAST].plain_frames) is not None:
            made[TOKENS] = replace(forecasts[FORECAST], frames=plain)
        last = past[:, -1:].expand(-1, forecaster.world.horizon_grids, -1, -1)
        still = replace(batch, tokens=torch.cat([past, last], dim=1))
        ceiling = forecaster.reconstruct(batch)
        made[KEEP_LAST] = _plain(forecaster.reconstruct(still))
        made[RECONSTRUCTION] = _plain(ceiling)
        if ceiling.plain_frames is not None:
            made[BLENDED] = ceiling
        made[COPY] = CopyLast.beside(forecaster).forecast_clips(batch)
        for name, forecast in made.items():
            predicted = forecast.video[:, 0]
            tally.add_frames(name, predicted, truth)
            if name in SHOWN:
                tally.shown[name] += [torch.cat([seen[i], predicted[i]]) for i in keep]
        tally.shown["real"] += [real[i, : split + forecaster.horizon_frames] for i in keep]


def _plain(forecast: Forecast) -> Forecast:
    """The same as its tokens alone show it."""
    return forecast if forecast.plain_frames is None else replace(forecast, frames=forecast.plain_frames)


def _score_unigram(tally: Tally, future: Int64[Tensor, "b l h w"], counts: Int64[np.ndarray, " v"]) -> None:
    # One imagined count each (Laplace): a token never seen in training must not cost infinitely much.
    logits = torch.from_numpy(np.log(counts + 1.0)).float().log_softmax(dim=0)
    scores = TokenScores(future)
    for index, grid in enumerate(future.unbind(dim=1)):
        scores.note(index, shared_guesses(logits, grid.flatten()), len(grid))
    scores.into(tally.values[UNIGRAM])


def _frames(batch: Batch) -> UInt8[Tensor, "b t 3 h w"]:
    assert batch.frames is not None, "the caller checked for frames"
    return batch.frames


# --- all batches ---


def _settings(
    forecaster: TokenForecaster, changed: list[float], counts: TokenCounts | None
) -> dict[str, str | int | float | bool]:
    """How the forecaster chooses tokens and what `keep_last_tokens` assumes, for the record."""
    sampling = forecaster.sampling
    limits = {"top_k": sampling.top_k, "top_p": sampling.top_p}
    counted = counts is not None and counts.kept is not None
    return {
        "temperature": sampling.temperature,
        **{name: value for name, value in limits.items() if value is not None},
        "decoding": "greedy" if sampling.temperature == 0 else "sampled",
        "decode_mode": forecaster.decode_mode,
        "blend_last_frame": forecaster.blend_last_frame,
        "keep_last_tokens_changed": ", ".join(f"{share:.4f}" for share in changed),
        "keep_last_tokens_from": "training tokens" if counted else "a constant, since the run has no kept.npy",
        "vocabulary": forecaster.grid.vocab_size,
    }


def _scored(loaded: Loaded, clips: Clips) -> TokenizerIdentity | None:
    """Which tokenizer chose the true tokens: that of the data, where these are tokens and name it, else the world's."""
    made_by: str | None = getattr(clips.source, "tokenizer", None)
    if made_by in (None, loaded.tokenizer):
        return loaded.identity
    return TokenizerIdentity(fingerprint=made_by[:12])


def _speech(loaded: Loaded) -> tuple[object, ...]:
    return loaded.over_tokens().grid, loaded.tokenizer
