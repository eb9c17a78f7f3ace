"""The sampling protocol: 17 frames and 77 states in, the picture two seconds ahead out, judged by PSNR and SSIM.

Knows forecasters only, so both tracks and every baseline can be put through it. From one set of samples it scores a
single one, the means of several, and the medoid (report, table 2); beside them the baselines that give the numbers a
meaning: copying the last frame, the older blur and histogram matching, another clip's states, an unconditional world.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.data.clips import Clips
from worldline.evaluation.batches import Progress, check_sizes, tallied
from worldline.evaluation.held_out import foreign_states, spread
from worldline.evaluation.parts import Parts
from worldline.evaluation.result import Evaluation, Role, Split
from worldline.evaluation.summary import summarise, write_forecasts
from worldline.evaluation.tally import Tally
from worldline.forecasting import ensemble
from worldline.forecasting.forecaster import CopyLast, Forecaster, shown_context
from worldline.forecasting.postprocess import blur_and_match
from worldline.process.noise import clip_seeds
from worldline.ranks import Ranks
from worldline.schema import Batch, UsageError
from worldline.tokenizers.load import TokenizerIdentity

SINGLE, MEDOID, BLURRED = "sample", "medoid", "sample_blurred"
SHUFFLED, UNCONDITIONAL = "shuffled_states", "unconditional"
COPY, COPY_BLURRED, RECONSTRUCTION = "copy_last", "copy_last_blurred", "reconstruction"
SHOWN = (SINGLE, COPY, RECONSTRUCTION, SHUFFLED)


@dataclass(frozen=True, kw_only=True)
class SamplingProtocol:
    """How much is evaluated.

    Raises:
        UsageError: numbers by which nothing can be evaluated.
    """

    num_clips: int | None = 64
    """Evenly spread over the held-out windows; None takes them all."""
    means: tuple[int, ...] | None = None
    """Sizes of smaller ensembles that are scored beside the whole one; None takes 5, where more samples are drawn."""
    shuffled_samples: int | None = None
    """Futures per clip given another clip's states; 0 leaves that row out, None takes as many as the forecast."""
    blur_px: float | None = None
    """Deviation of the Gaussian blur; None takes 1/64 of the picture's width."""
    batch_size: int = 4
    shown_clips: int = 6
    """Clips whose frames are kept for the report."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(num_clips=self.num_clips, batch_size=self.batch_size, seed=self.seed, shown_clips=self.shown_clips)
        if self.means and min(self.means) < 1:
            raise UsageError(f"a mean of {min(self.means)} samples is none; give --means numbers of 1 or more")
        if self.shuffled_samples is not None and self.shuffled_samples < 0:
            raise UsageError(f"{self.shuffled_samples} shuffled samples cannot be drawn; give 0 to leave them out")
        if self.blur_px is not None and not 0 < self.blur_px < math.inf:
            raise UsageError(f"a blur of {self.blur_px} px is none; give more than 0")

    def sizes(self, num_samples: int) -> tuple[int, ...]:
        """Numbers of samples whose mean is scored, largest first: all of them, those of `means` and of the shuffled.

        Raises:
            UsageError: one of them is more than are drawn.
        """
        means = (5,) * (num_samples > 5) if self.means is None else self.means
        wanted = {num_samples, 1, *means, self.shuffled_samples or num_samples}
        if max(wanted) > num_samples:
            raise UsageError(
                f"{num_samples} samples are drawn (--num-samples), too few for a mean of {max(wanted)} "
                "(--means, --shuffled-samples)"
            )
        return tuple(sorted(wanted, reverse=True))


def mean_of(count: int) -> str:
    """Id of the row of an ensemble mean."""
    return SINGLE if count == 1 else f"mean_{count}"


def evaluate_sampling(
    forecaster: Forecaster,
    clips: Clips,
    *,
    protocol: SamplingProtocol,
    run: Path,
    out: Path,
    split: Split = "not checked",
    settings: dict[str, str | int | float | bool],
    tokenizer: TokenizerIdentity | None = None,
    unconditional: Forecaster | None = None,
    parts: Parts | None = None,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run the protocol and write `metrics.json` and `forecasts.npz` into `out`.

    Sample k of a clip is made from the same noise in every row, so rows differ by what they are, not by luck.

    Args:
        split: what `split_of` said of the clips, for the record.
        settings: how the forecaster samples, to be kept with the numbers.
        tokenizer: which one the forecaster's pictures come out of.
        unconditional: a forecaster trained without states, for the baseline.
        parts: what an evaluation by the very same left that was stopped; None begins from nothing.
        ranks: processes that share the clips; each returns the whole evaluation, and the first one writes it.

    Raises:
        UsageError: the data hold no frames, or `unconditional` forecasts other times.
    """
    if clips.source.context_only:
        raise UsageError(f"{clips.source.path} holds no future frames: test samples can be forecast, not evaluated")
    if clips[0].frames is None:
        raise UsageError(f"{clips.source.path} holds no frames to compare a forecast with; give data that do (--data)")
    if unconditional is not None and unconditional.times != forecaster.times:
        raise UsageError("the unconditional world forecasts other times than the one it is compared with")
    began, ranks, sizes = time.monotonic(), ranks or Ranks(), protocol.sizes(forecaster.num_samples)
    chosen = spread(len(clips), protocol.num_clips)
    scorer = _Scorer(
        forecaster=forecaster,
        unconditional=unconditional,
        others=None if protocol.shuffled_samples == 0 else foreign_states(clips, chosen),
        protocol=protocol,
        sizes=sizes,
        shown=frozenset(spread(len(chosen), protocol.shown_clips)),
    )
    parts, size = parts or Parts.begun(out, ranks=ranks), protocol.batch_size
    tally = tallied(clips, chosen, scorer, batch_size=size, parts=parts, ranks=ranks, progress=progress)
    if tally is None:
        return ranks.agreed(None)
    if scorer.others is None:
        off = protocol.shuffled_samples == 0
        tally.not_computed[SHUFFLED] = "switched off" if off else "the data hold one clip only"
    if unconditional is None:
        tally.not_computed[UNCONDITIONAL] = "no unconditional world was given (--unconditional RUN)"
    full, roles = mean_of(sizes[0]), _roles(sizes)
    shown = dict.fromkeys((full, *SHOWN))
    write_forecasts(out / "forecasts.npz", tally, rows=tuple(shown), context=len(shown_context(forecaster)))
    evaluation = summarise(
        tally,
        clips,
        protocol="sampling",
        run=run,
        split=split,
        roles=roles,
        compared=_compared(full, mean_of(scorer.shuffled_samples), roles),
        horizon_frames=forecaster.horizon_frames,
        tokenizer=tokenizer,
        settings={
            "num_samples": sizes[0],
            "shuffled_samples": 0 if scorer.others is None else scorer.shuffled_samples,
            "seed": protocol.seed,
            **settings,
        },
        seconds=time.monotonic() - began,
    )
    evaluation.save(out / "metrics.json")
    parts.remove()
    return ranks.agreed(evaluation)


def _roles(sizes: tuple[int, ...]) -> dict[str, Role]:
    models = {mean_of(size): "model" for size in sizes}
    medoid = {MEDOID: "model"} if sizes[0] > 2 else {}
    others: dict[str, Role] = {
        BLURRED: "baseline",
        SHUFFLED: "ablation",
        UNCONDITIONAL: "baseline",
        COPY: "baseline",
        COPY_BLURRED: "baseline",
        RECONSTRUCTION: "ceiling",
    }
    return {**models, **medoid, **others}  # pyright: ignore[reportReturnType]


def _compared(full: str, as_shuffled: str, roles: dict[str, Role]) -> list[tuple[str, str, str]]:
    """Claims to check; the shuffled one is compared with the mean of as many samples, made from the same noise."""
    metric = "psnr_db_last"
    rivals = [name for name in (COPY, COPY_BLURRED, SINGLE, MEDOID, BLURRED, UNCONDITIONAL) if name != full]
    pairs = [(full, name, metric) for name in rivals if name in roles]
    shuffled = (as_shuffled, SHUFFLED, metric)
    return [*pairs, shuffled, (full, COPY, "psnr_db_mean"), (full, COPY, "ssim_last"), (RECONSTRUCTION, full, metric)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scorer:
    """Scores one batch of clips in every row."""

    forecaster: Forecaster
    unconditional: Forecaster | None
    others: Float32[Tensor, "n t s"] | None
    """For each chosen clip the states of another one."""
    protocol: SamplingProtocol
    sizes: tuple[int, ...]
    shown: frozenset[int]
    """Places among the chosen clips whose frames are kept."""

    @property
    def shuffled_samples(self) -> int:
        return self.protocol.shuffled_samples or self.sizes[0]

    def __call__(self, batch: Batch, now: range) -> Tally:
        tally = Tally(episodes=[origin.episode for origin in batch.origins])
        frames, seen = _frames(batch), shown_context(self.forecaster)
        truth = frames[:, list(self.forecaster.times)]
        keep = [i for i, place in enumerate(now) if place in self.shown]
        for name, predicted in self._pictures(batch, now).items():
            tally.add_frames(name, predicted, truth)
            if name in (mean_of(self.sizes[0]), *SHOWN):
                tally.shown[name] += [torch.cat([frames[i, seen], predicted[i]]) for i in keep]
        tally.shown["real"] += [torch.cat([frames[i, seen], truth[i]]) for i in keep]
        return tally

    def _pictures(self, batch: Batch, now: range) -> dict[str, UInt8[Tensor, "b f 3 h w"]]:
        """What every row shows at the forecaster's times."""
        forecaster, frames = self.forecaster, _frames(batch)
        context, seeds = frames[:, : forecaster.context_frames], clip_seeds(self.protocol.seed, batch.origins)
        last, sigma = context[:, -1], self.protocol.blur_px or frames.shape[-1] / 64
        samples = forecaster.forecast(context, batch.states, seeds=seeds).video
        copy = CopyLast.beside(forecaster).forecast(context, batch.states).video[:, 0]
        made = {mean_of(size): ensemble.combine(samples[:, :size], "mean") for size in self.sizes}
        made |= {SINGLE: samples[:, 0], BLURRED: blur_and_match(samples[:, 0], last, sigma)}
        made |= {COPY: copy, COPY_BLURRED: blur_and_match(copy, last, sigma)}
        made[RECONSTRUCTION] = forecaster.reconstruct(batch).video[:, 0]
        if samples.shape[1] > 2:
            made[MEDOID] = ensemble.combine(samples, "medoid")
        if self.others is not None:
            fewer, states = forecaster.drawing(self.shuffled_samples), self.others[now.start : now.stop]
            made[SHUFFLED] = ensemble.combine(fewer.forecast(context, states, seeds=seeds).video, "mean")
        if self.unconditional is not None:
            made[UNCONDITIONAL] = ensemble.combine(
                self.unconditional.forecast(context, batch.states, seeds=seeds).video, "mean"
            )
        return made


def _frames(batch: Batch) -> UInt8[Tensor, "b t 3 h w"]:
    assert batch.frames is not None, "the caller checked for frames"
    return batch.frames
