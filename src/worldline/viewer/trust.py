"""How far what is shown is like the world's data, in a plain word: signals, and what is usual for them.

Every signal is divided by what it is at most in 95 % of the frames of the data set's own clips, rolled out with their
own states when the server starts. Up to 1 is as in the data; above it the world is unsure. It leaves what it knows
where a signal is above the largest value of those frames by more than this is above 1. The worst signal has the word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from worldline.forecasting.forecaster import Forecaster
from worldline.schema import Batch, Forecast, join
from worldline.viewer.protocol import Trust, Word
from worldline.viewer.recording import Recording

USUAL = 0.95
"""Quantile of the data's own frames up to which a signal is as in them."""
ROLLED_SECONDS = 2.0
"""How far they are rolled out."""
STATES, ENTROPY, SPREAD, ROUND_TRIP = "states", "entropy", "spread", "round_trip"
"""The signals: how far states are from the middle of their range in training, 1 at its end; mean entropy of tokens in
nats; mean spread of the samples in grey levels; what encoding and decoding changes in the latest frames, divided by how
much these move (after MMBench2, arXiv 2606.27326), or where they hardly move, by how much the data's own do.
"""
Limits = Float[np.ndarray, " s"]
_ORDER: tuple[Word, ...] = ("unknown", "known", "unsure", "leaving")
_ROUNDING = 1e-4  # of float32, and of a recording that is written and read again


@dataclass(frozen=True, kw_only=True)
class Usual:
    """What a signal is in the data's own frames."""

    most: float
    """The quantile `USUAL`."""
    largest: float
    middle: float = 0.0

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"]) -> "Usual":
        middle, most = np.quantile(values, (0.5, USUAL))
        return cls(most=max(float(most), 1e-9), largest=float(values.max()), middle=float(middle))

    def word(self, value: float) -> Word:
        if value <= self.most * (1 + _ROUNDING):
            return "known"
        return "unsure" if value <= (2 * self.largest - self.most) * (1 + _ROUNDING) else "leaving"


@dataclass(frozen=True, kw_only=True, eq=False)
class Gauge:
    """Reads how far a moment is like the data."""

    names: tuple[str, ...]
    middle: Float32[np.ndarray, " s"]
    half: Float32[np.ndarray, " s"]
    """The states of training lie between `middle - half` and `middle + half`."""
    usual: dict[str, Usual] = field(default_factory=dict)
    motion: float = 1.0
    """The usual change from frame to frame, in grey levels."""

    @classmethod
    def within(cls, names: tuple[str, ...], low: Limits, high: Limits) -> "Gauge":
        """Of states within these, with nothing else known. What never moved may differ by a hundredth."""
        bottom, top = low.astype(np.float32), high.astype(np.float32)
        return cls(names=names, middle=(bottom + top) / 2, half=np.maximum((top - bottom) / 2, 0.01))

    def away(self, rows: Float32[np.ndarray, "n s"]) -> Float32[np.ndarray, "n s"]:
        """How far every state is from the middle of its range: 1 is at its end."""
        return np.abs(rows - self.middle) / self.half

    def read(self, rows: Float32[np.ndarray, "n s"], measured: dict[str, float]) -> Trust:
        """What to say of a frame after the states of `rows`, of which other signals were `measured`."""
        away = self.away(rows).max(axis=0)
        found = {STATES: float(away.max()), **measured}
        known = {name: value for name, value in found.items() if name in self.usual}
        words: list[Word] = [self.usual[name].word(value) for name, value in known.items()]
        most = max(1.0, self.usual[STATES].most) if STATES in self.usual else 1.0  # as far out as the data's own
        outside = tuple(np.array(self.names)[away > most + _ROUNDING].tolist())[:16]
        shares = {name: round(value / self.usual[name].most, 4) for name, value in known.items()}
        word = max(words, key=_ORDER.index) if words else _ORDER[0]
        return Trust(word=word, signals=shares, outside=outside)


def round_trip(forecaster: Forecaster, film: UInt8[Tensor, "b t 3 h w"]) -> tuple[Float[Tensor, " b"], ...] | None:
    """What encoding and decoding changes in the last frames of films, and what changes in them from one to the next.

    Both in grey levels, of as many frames as a forecast has. None where frames are not encoded, or do not follow one
    another as the world is given them, or are fewer than context and forecast (`needed`) have.
    """
    count, needed_here = forecaster.horizon_frames, needed(forecaster)
    if needed_here is None or film.shape[1] < needed_here:
        return None
    film = film[:, -needed_here:]
    none = torch.zeros(len(film), film.shape[1], 1)
    kept = forecaster.reconstruct(Batch(states=none, fps=0.0, origins=(), frames=film)).video[:, 0].float()
    given, before = film[:, -count:].float(), film[:, -count - 1 : -1].float()
    return (given - kept).abs().mean(dim=(1, 2, 3, 4)), (given - before).abs().mean(dim=(1, 2, 3, 4))


def needed(forecaster: Forecaster) -> int | None:
    """How many frames `round_trip` takes; None where it cannot say anything."""
    if forecaster.tokenizer is None or forecaster.pace != 1:
        return None
    return forecaster.context_frames + forecaster.horizon_frames


def measured(made: Forecast, row: int = 0) -> list[dict[str, float]]:
    """The signals of each frame of a step, of one clip: mean token entropy in nats, mean spread in grey levels."""
    signals: list[dict[str, float]] = [{} for _ in made.times]
    if made.certainty is not None:
        entropy = made.certainty.entropy[row].mean(dim=(1, 2))
        for signal, latent in zip(signals, latent_of(made), strict=True):
            signal[ENTROPY] = float(entropy[latent])
    if made.video.shape[1] > 1:
        for i, signal in enumerate(signals):
            signal[SPREAD] = float(made.spread[row, i].mean())
    return signals


def latent_of(made: Forecast) -> list[int]:
    """Which of its token grids shows each frame of a step: they lie evenly, but for a first one of a single frame."""
    assert made.certainty is not None, "asked of a step that has it"
    grids, frames = made.certainty.entropy.shape[1], len(made.times)
    if grids > 1 and (frames - 1) % (grids - 1) == 0:  # causal: the first is of one frame (`TokenGrid`)
        each = (frames - 1) // (grids - 1)
        return [0 if i == 0 else 1 + (i - 1) // each for i in range(frames)]
    return [i * grids // frames for i in range(frames)]


def calibrated(
    gauge: Gauge,
    forecaster: Forecaster,
    recordings: Sequence[Recording],
    *,
    fps: float,
    rows: Sequence[Float32[np.ndarray, "_ s"]] = (),
    seed: int = 0,
) -> Gauge:
    """The gauge with what is usual, by rolling out some clips of the data with their own states.

    Args:
        rows: states of further episodes, which are not rolled out.
    """
    states = [gauge.away(one).max(axis=1) for one in (*rows, *(one.states for one in recordings))]
    values, film = _rolled(forecaster, recordings, fps=fps, seed=seed)
    usual = {STATES: Usual.of(np.concatenate(states))}
    usual |= {name: Usual.of(np.array(found)) for name, found in values.items()}
    found = _round_trips(forecaster, film)
    if found is None:
        return replace(gauge, usual=usual)
    motion = max(float(found[1].median()), 1e-3)
    usual[ROUND_TRIP] = Usual.of((found[0] / found[1].clamp(min=motion)).numpy())
    return replace(gauge, usual=usual, motion=motion)


def _rolled(
    forecaster: Forecaster, recordings: Sequence[Recording], *, fps: float, seed: int
) -> tuple[dict[str, list[float]], UInt8[Tensor, "b t 3 h w"]]:
    """All values of each signal in roll-outs of some clips, and their first samples behind the contexts."""
    values, film = dict[str, list[float]](), [torch.stack([one.context for one in recordings])]
    chunk, ahead, context = forecaster.chunk_frames, forecaster.lookahead_frames, forecaster.context_frames
    shortest = min(len(one.states) for one in recordings)
    count = min(max(1, round(ROLLED_SECONDS * fps / chunk)), (shortest - context - ahead) // chunk + 1)
    own = torch.from_numpy(np.stack([one.states[:shortest] for one in recordings]))
    session = forecaster.start_clips(
        join([one.batch for one in recordings]), seed=list(range(seed, seed + len(recordings)))
    )
    for begin in range(context, context + count * chunk, chunk):
        made = session.advance(own[:, begin : begin + ahead], extra=forecaster.streamed & {"certainty"})
        film.append(made.video[:, 0])
        for clip in range(len(recordings)):
            for name, value in (one for signals in measured(made, clip) for one in signals.items()):
                values.setdefault(name, []).append(value)
    return values, torch.cat(film, dim=1)


def _round_trips(forecaster: Forecaster, film: UInt8[Tensor, "b t 3 h w"]) -> tuple[Tensor, Tensor] | None:
    """`round_trip` of pieces of some films, wherever blocks of tokens begin."""
    length = needed(forecaster)
    if length is None:
        return None
    ends = range(length, film.shape[1] + 1, length // 3 + 1)
    known = [one for end in ends if (one := round_trip(forecaster, film[:, :end])) is not None]
    return (torch.cat([one[0] for one in known]), torch.cat([one[1] for one in known])) if known else None
