"""Every row of an evaluation: one function each, with its id and what people read.

A row is the forecaster under a condition (which states it is given: `conditions.py`), a baseline, or a ceiling. A new
one is a function below `@Entry(...)` or `@condition(...)`: all else follows, from metrics.json to the report. Ids stay
as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from worldline.data.clips import Clips
from worldline.evaluation.reader import Reader
from worldline.families.tokenizers import TokenizerIdentity
from worldline.forecasting import postprocess
from worldline.forecasting.forecaster import CopyLast, Extra, Forecaster, States
from worldline.forecasting.live import LiveTwin
from worldline.forecasting.rollout import RollOut
from worldline.metrics.networks import Networks
from worldline.metrics.table import METRICS, NotComputed
from worldline.metrics.tokens import grid_costs, kept_guesses, shared_guesses
from worldline.schema import Batch, DataError, Forecast, TokenGrid, UsageError, contents_of, join
from worldline.twin.generate import physics_of

Protocol = Literal["compression", "sampling", "tokenizer", "states"]
"""`compression`: one roll-out, its frames and the costs of its tokens; `sampling`: frames of several samples, nothing
else; `tokenizer`: the reconstructions; `states`: what an inverse-dynamics model reads in true frames."""
Role = Literal["model", "baseline", "ceiling", "ablation"]
"""`ceiling`: the best any forecaster of this kind could do (the tokenizer alone); `ablation`: the model with a part
taken away (say, its states shuffled)."""
Setting = str | int | float | bool
Commands = Float32[Tensor, "b f s"]
"""The states to come, one row for each video frame of the horizon."""
CHANGED = 0.5
"""Probability that a token differs from the last context grid's, if a run has not counted it."""
BLUR = 1 / 64
"""Deviation of the Gaussian blur of blurred rows, in widths of the image."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """The parts of a row that are scored."""

    frames: UInt8[Tensor, "b f 3 h w"] | None = None
    """At the forecaster's times."""
    costs: Mapping[str, Float32[Tensor, "b l"]] = field(default_factory=dict)
    """Metric id -> mean cost of the true tokens of each future grid."""
    states: States | None = None
    """Of context and horizon, that it was given; None of what is given none, or the clips' own."""
    read: Float32[Tensor, "b f s"] | None = None
    """States at the forecaster's times, of a row that has them without frames."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """Its assumptions, for the record."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """The evaluated forecaster, and everything that belongs to it."""

    forecaster: Forecaster
    protocol: Protocol
    run: str
    """Its name, for the record, as are `tokenizer` (whose tokens or latents are scored) and `settings`."""
    tokenizer: TokenizerIdentity | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    unconditional: Forecaster | None = None
    """A world trained without states."""
    unigram: Int64[np.ndarray, " v"] | None = None
    """How often each token occurs in the training data, if that was counted."""
    networks: Networks = field(default_factory=Networks)
    """What metrics with learned weights measure with."""
    reader: Reader | None = None
    """Reads the states that frames show; or why there is none."""
    no_reader: str = "no inverse-dynamics model was given (--inverse-dynamics RUN)"
    kept: Int64[np.ndarray, "l 2"] | None = None
    """For each future grid, how many training tokens equal the last context grid's there, and how many do not."""

    beyond: bool = False
    """Whether it goes on beyond the window of its training (`--horizon`): then only studies of roll-outs are made."""

    @property
    def rolled(self) -> bool:
        """Whether it goes on from its own frames, and so has no costs of tokens."""
        return isinstance(self.forecaster, RollOut)

    @property
    def forecasts(self) -> bool:
        """Whether it forecasts: a tokenizer alone, or a model that reads states, does not."""
        return self.protocol in ("compression", "sampling")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene(Judged):
    """What is judged, on a batch of clips: everything that rows and studies need."""

    batch: Batch
    """With its tokens, or the latents of its context: they are encoded once."""
    clips: Clips
    """All clips, of which these are some."""
    seeds: tuple[int, ...]
    """Of each clip. Sample k of a clip is made from the same noise in every row."""
    foreign: States | None
    """For each clip the states of another one."""
    condition_samples: int
    """Futures per clip under another condition than the true one; 0 for none."""
    state_std: Float32[Tensor, " s"]
    """Deviation of each state over all evaluated clips; 1 where a state never changes."""
    wanted: Sequence[str] = ()
    """Ids of the rows that are made, in order."""
    few: Sequence[int] = ()
    """Places in this batch of the few clips on which costly things are measured (`--study-clips`)."""
    read: dict[str, Float32[Tensor, "b f s"]] = field(default_factory=dict)
    """The states that are read in the frames of rows made so far, by id, if there is a `reader`."""
    made: dict[str, Made] = field(default_factory=dict)
    """Every row made so far, by id: for studies, all."""

    def forecast_of(self, forecaster: Forecaster, *more: Extra, states: States | None = None) -> Forecast:
        """A forecast of these clips, with the parts that are scored: costs and `more` where tokens are."""
        extra: tuple[Extra, ...] = ("costs", *more) if self.protocol == "compression" else ()
        return forecaster.forecast_clips(self.batch, states=states, seeds=self.seeds, extra=extra)

    @cached_property
    def truth(self) -> UInt8[Tensor, "b f 3 h w"] | None:
        """The true frames at the forecaster's times; None where the data hold tokens alone."""
        return None if self.batch.frames is None else self.batch.frames[:, list(self.forecaster.times)]

    @property
    def before(self) -> UInt8[Tensor, "b 3 h w"] | None:
        """The last frame of the context; None where there is none."""
        past = self.forecaster.context_frames
        return None if self.batch.frames is None or past == 0 else self.batch.frames[:, past - 1]

    @property
    def commands(self) -> Commands:
        """The states to come, of the horizon alone."""
        return self.batch.states[:, self.forecaster.context_frames :]

    @property
    def now(self) -> Float32[Tensor, "b s"]:
        """The states in the last frame of the context."""
        return self.batch.states[:, self.forecaster.context_frames - 1]

    def states_in(self, frames: UInt8[Tensor, "b f 3 h w"]) -> Float32[Tensor, "b f s"]:
        """The states that the `reader` reads in frames at the forecaster's times."""
        assert self.reader is not None, "asked where there is one"
        assert self.batch.frames is not None, "which is so where the data hold frames"
        context = self.batch.frames[:, : self.forecaster.context_frames]
        return self.reader.read(frames, context, self.now, self.forecaster)

    def commanding(self, commands: Commands) -> States:
        """States of context and horizon: those that were, and then these commands."""
        return torch.cat([self.batch.states[:, : self.forecaster.context_frames], commands], dim=1)

    def few_of(self) -> Batch:
        """The few clips on which costly things are measured."""
        held = {name: tensor[list(self.few)] for name, tensor in contents_of(self.batch).items()}
        return replace(self.batch, origins=tuple(self.batch.origins[i] for i in self.few), **held)

    @cached_property
    def conditions(self) -> "dict[str, Made | NotComputed]":
        """The forecast under every condition, by the id of its row, or why there is none: all from one context."""
        given: dict[str, States] = {}
        found: dict[str, Made | NotComputed] = {}
        for id, states_of in ((id, CONDITIONS[id]) for id in self.wanted if id in CONDITIONS):
            try:
                if self.condition_samples == 0:
                    raise NotComputed("switched off (--condition-samples 0)")
                given[id] = states_of(self)
            except NotComputed as reason:
                found[id] = reason
        if given:
            drawing = replace(self.forecaster, num_samples=self.condition_samples)
            made = self.forecasts_given(drawing, self.batch, list(given.values()), seeds=self.seeds)
            found |= dict(zip(given, made, strict=True))
        return found

    def forecasts_given(
        self, forecaster: Forecaster, batch: Batch, several: Sequence[States], *, seeds: Sequence[int]
    ) -> list[Made]:
        """The mean forecast of the same clips under each of several states, as many at once as have room."""
        extra: tuple[Extra, ...] = ("costs",) if self.protocol == "compression" else ()
        if batch.frames is not None:  # what is not read need not be copied
            batch = replace(batch, frames=batch.frames[:, : forecaster.context_frames])
        count, found = len(batch), []
        at_once = max(1, forecaster.rows_at_once // (count * forecaster.num_samples))
        for first in range(0, len(several), at_once):
            some = several[first : first + at_once]
            many = forecaster.forecast_clips(
                join([batch] * len(some)), states=torch.cat([*some]), seeds=[*seeds] * len(some), extra=extra
            )
            made = _mean(many)
            for number, states in enumerate(some):
                rows = slice(number * count, (number + 1) * count)
                frames = None if made.frames is None else made.frames[rows]
                costs = {id: cost[rows] for id, cost in made.costs.items()}
                found.append(Made(frames=frames, costs=costs, states=states))
        return found

    @cached_property
    def forecast(self) -> Forecast:
        """Given the true states."""
        return self.forecast_of(self.forecaster, "teacher_forced_costs", "plain_frames", "certainty")

    @cached_property
    def copied(self) -> Forecast:
        return CopyLast.beside(self.forecaster).forecast_clips(self.batch)

    @cached_property
    def reconstruction(self) -> Forecast | None:
        return None if self.batch.frames is None else self.forecaster.reconstruct(self.batch)

    @property
    def grid(self) -> TokenGrid:
        grid = self.forecaster.token_grid
        assert grid is not None, "the compression protocol is one of tokens"
        return grid

    @property
    def tokens(self) -> tuple[Int64[Tensor, "b c gh gw"], Int64[Tensor, "b l gh gw"]]:
        """The true ones, of context and future."""
        tokens, context = self.batch.tokens, self.grid.grids_of(self.forecaster.context_frames)
        assert tokens is not None, "encoded before"
        return tokens[:, :context], tokens[:, context:]

    @property
    def prior(self) -> Float64[Tensor, " v"]:
        """Probability of each token without any context: its frequency in training, or uniform."""
        counts = np.zeros(self.grid.vocab_size) if self.unigram is None else self.unigram
        # One imagined count each (Laplace): a token never seen in training must not cost infinitely much.
        return torch.from_numpy((counts + 1.0) / (counts + 1.0).sum())


Make = Callable[[Scene], Made | None]
"""Makes a row; None if it does not apply. Raises `NotComputed` if it applies but cannot be made."""
Given = Callable[[Scene], States]


@dataclass(frozen=True)
class Entry:
    """A row: what it is, and how it is made."""

    id: str
    label: str
    role: Role
    protocols: tuple[Protocol, ...] = ("compression", "sampling")
    compared: tuple[str, ...] = ("psnr_db_last",)
    """Metrics in which the forecast is compared with this row, on the same clips."""
    shown: bool = False
    """Its frames are kept for the report."""
    study: str | None = None
    """Id of the study that it is made for, which shows it: without that study it is not made, and tables of rows do not
    list it."""
    make: Make = lambda _: None

    def __call__(self, make: Make) -> Make:
        """Add the row that a function makes."""
        ROWS[self.id] = replace(self, make=make)
        return make


ROWS: dict[str, Entry] = {}
"""By id, in the order of tables."""


CONDITIONS: dict[str, Given] = {}
"""The states that each condition gives, by the id of its row."""


def condition(id: str, label: str, *, shown: bool = False, study: str | None = None) -> Callable[[Given], Given]:
    """Add the forecaster given other states: those of the function below, which raises `NotComputed` without any."""
    compared = ("psnr_db_last", "full_ce") if study is None else ()

    def added(given: Given) -> Given:
        CONDITIONS[id] = given

        @Entry(id, label, "ablation", compared=compared, shown=shown, study=study)
        def _(scene: Scene) -> Made:
            made = scene.conditions[id]
            if isinstance(made, NotComputed):
                raise made
            return made

        return given

    return added


def mean_id(samples: int) -> str:
    return "sample" if samples == 1 else f"mean_{samples}"


def conditional_mean_id(draws: int) -> str:
    return f"conditional_mean_{draws}"


def entry_of(id: str) -> Entry | None:
    """The entry of a row's id, None of an unknown one.

    `mean_N` is the mean of N samples, `conditional_mean_N` the mean of all futures in N network calls.
    """
    name, _, count = id.rpartition("_")
    if not count.isdecimal() or name not in ("mean", "conditional_mean"):
        return ROWS.get(id)
    number = int(count)
    if name == "mean":
        mean = Entry(id, f"mean of {count}", "model", ("sampling",), compared=())
        return replace(mean, make=lambda scene: _mean(scene.forecast, number))
    label = f"conditional mean, {count} call{'s' * (number > 1)}"
    return Entry(id, label, "model", ("sampling",), make=partial(_conditional_mean, draws=number))


def _refuse_roll_out(scene: Scene) -> None:
    """Raise `NotComputed` where a world over tokens is rolled on, because then it is not asked for their costs."""
    if scene.rolled:
        raise NotComputed("costs of tokens are those of one window, and this is a roll-out (--horizon)")


def _mean(forecast: Forecast, samples: int | None = None) -> Made:
    """The mean of the first samples, with the costs of the very first."""
    frames = None if forecast.frames is None else postprocess.mean(forecast.frames[:, :samples])
    return Made(frames=frames, costs=forecast.costs)


def _conditional_mean(scene: Scene, draws: int) -> Made | None:
    """The mean of all futures, estimated at pure noise with so many network calls and decoded once."""
    mean = scene.forecaster.conditional_mean(draws)
    return None if mean is None else _mean(scene.forecast_of(mean))


def _plain(forecast: Forecast) -> Made | None:
    """The decoded tokens, if something else is shown."""
    return None if forecast.plain_frames is None else Made(frames=forecast.plain_frames[:, 0])


def _blurred(scene: Scene, forecast: Forecast) -> Made:
    seen = scene.batch.frames
    assert seen is not None, "the sampling protocol is one of frames"
    blurred = postprocess.blur(forecast.video[:, 0], BLUR * seen.shape[-1])
    last = seen[:, scene.forecaster.context_frames - 1]
    return Made(frames=postprocess.match_histogram(blurred, last))


# --- the forecast, under conditions ---

_KEPT = ("psnr_db_last", "full_ce", "token_accuracy")


@Entry("forecast", "forecast", "model", ("compression",))
def _(scene: Scene) -> Made:
    """The roll-out from the context, given the true states."""
    made, forced = _mean(scene.forecast, 1), scene.forecast.teacher_forced_costs
    bounds = {bound: cost for id, cost in forced.items() if (bound := METRICS[id].bound) is not None}
    return replace(made, costs={**made.costs, **bounds})


@Entry("forecast_greedy", "forecast, one greedy roll-out", "ablation", ("compression",), compared=_KEPT)
def _(scene: Scene) -> Made | None:
    """One greedy roll-out, where the forecast is the mixture of several (`--mixture`)."""
    greedy = scene.forecaster.one_roll_out()
    return None if greedy is None else _mean(scene.forecast_of(greedy), 1)


@Entry("forecast_tokens", "forecast, tokens only", "ablation", ("compression",))
def _(scene: Scene) -> Made | None:
    """The same roll-out, its tokens decoded as they are: no mean codes, no blended last frame."""
    return _plain(scene.forecast)


@Entry("sample", "one sample", "model", ("sampling",), shown=True)
def _(scene: Scene) -> Made:
    """The first sample, given the true states."""
    return _mean(scene.forecast, 1)


@Entry("medoid", "medoid", "model", ("sampling",))
def _(scene: Scene) -> Made | None:
    """The sample nearest to all others, of three or more."""
    samples = scene.forecast.video
    return Made(frames=postprocess.medoid(samples)) if samples.shape[1] > 2 else None


@Entry("sample_blurred", "one sample, blurred", "baseline", ("sampling",))
def _(scene: Scene) -> Made:
    """The first sample, blurred and matched to the histogram of the last context frame (report, section 2.3)."""
    return _blurred(scene, scene.forecast)


@Entry("unconditional", "unconditional", "baseline", compared=("psnr_db_last", "full_ce", "state_error_mean"))
def _(scene: Scene) -> Made:
    """The forecast of a world that was trained without states."""
    if scene.unconditional is None:
        raise NotComputed("no unconditional world was given (--unconditional RUN)")
    # Of another tokenizer, perhaps: it encodes for itself.
    apart = scene.batch if scene.protocol == "compression" else replace(scene.batch, tokens=None, latents=None)
    return _mean(replace(scene, batch=apart).forecast_of(scene.unconditional))


# --- an inverse-dynamics model alone ---


@Entry("read_states", "read from frames", "model", ("states",))
def _(scene: Scene) -> Made:
    """The states that the model reads in the true frames."""
    assert scene.truth is not None, "the data hold frames, as was checked"
    return Made(read=scene.states_in(scene.truth))


@Entry("mean_state", "mean state", "baseline", ("states",), compared=("state_error_mean",))
def _(scene: Scene) -> Made:
    """The mean of the training states, whatever the frames show."""
    assert scene.reader is not None, "it is what is evaluated"
    return Made(read=scene.reader.model.mean.cpu().expand_as(scene.commands))


@Entry("first_state", "first state", "baseline", ("states",), compared=("state_error_mean",))
def _(scene: Scene) -> Made:
    """The true state at the first frame of the clip, as if nothing moved: no picture is looked at."""
    return Made(read=scene.now[:, None].expand_as(scene.commands))


# --- baselines ---


_AGAINST_STILL = ("psnr_db_last", "psnr_db_mean", "ssim_last", "state_error_mean")


@Entry("copy_last", "copy-last", "baseline", compared=_AGAINST_STILL, shown=True)
def _(scene: Scene) -> Made | None:
    """Nothing moves after the last context frame."""
    return None if scene.batch.frames is None else _mean(scene.copied)


@Entry("copy_last_blurred", "copy-last, blurred", "baseline", ("sampling",))
def _(scene: Scene) -> Made:
    """The same, blurred as a sample is."""
    return _blurred(scene, scene.copied)


@Entry("keep_last_tokens", "keep last tokens", "baseline", ("compression",), compared=_KEPT)
def _(scene: Scene) -> Made:
    """Every future token is the one at its place in the last context grid."""
    _refuse_roll_out(scene)
    (past, future), kept = scene.tokens, scene.kept
    # One imagined token of either kind, as in `Scene.prior`.
    changed = np.full(future.shape[1], CHANGED) if kept is None else (kept[:, 1] + 1) / (kept.sum(axis=1) + 2)
    last, shares = past[:, -1:].expand_as(future), torch.from_numpy(changed).view(1, -1, 1, 1).expand_as(future)
    still = replace(scene.batch, frames=None, tokens=torch.cat([past, last], dim=1))
    return Made(
        frames=None if scene.batch.frames is None else scene.forecaster.shown(still)[1],
        costs=grid_costs(kept_guesses(scene.prior, last, future, changed=shares)),
        settings={
            "keep_last_tokens_changed": ", ".join(f"{share:.4f}" for share in changed),
            "keep_last_tokens_from": "a constant: the run has no kept.npy" if kept is None else "training tokens",
        },
    )


@Entry("unigram", "unigram", "baseline", ("compression",), compared=("full_ce",))
def _(scene: Scene) -> Made:
    """Every token is as likely as it was frequent in training."""
    _refuse_roll_out(scene)
    if scene.unigram is None:
        raise NotComputed("the run folder has no token counts (unigram.npy)")
    _, future = scene.tokens
    return Made(costs=grid_costs(shared_guesses(scene.prior.log(), future)))


# --- ceilings ---


@Entry("true_contexts", "each chunk from true frames", "ceiling")
def _(scene: Scene) -> Made | None:
    """Every chunk of a roll-out begins with true frames: what its own mistakes do not cost."""
    forecaster = scene.forecaster
    if not isinstance(forecaster, RollOut):
        return None
    return _mean(forecaster.from_true_contexts(scene.batch, seeds=scene.seeds))


@Entry("live_twin", "the live twin", "ceiling")
def _(scene: Scene) -> Made | None:
    """The simulator itself, moved through the states from the saved physics of a clip, over a roll-out."""
    (root, *others), forecaster = scene.clips.source.roots, scene.forecaster
    if not scene.rolled or forecaster.chunk_frames == 0 or not (root / "physics").is_dir():
        return None
    if others:
        raise NotComputed("the live twin begins in the physics of one data set, and these are several")
    live = LiveTwin.beside(forecaster, root=root)
    try:
        # By its number in the folder: of data with missing episodes the place in the list is another.
        numbers = [physics_of(scene.clips.source, origin.episode)[1] for origin in scene.batch.origins]
        origins = tuple(replace(one, episode=n) for one, n in zip(scene.batch.origins, numbers, strict=True))
        return _mean(live.forecast_clips(replace(scene.batch, origins=origins)))
    except (UsageError, DataError) as error:  # no MuJoCo, or no physics of an episode
        raise NotComputed(str(error)) from error
    finally:
        live.close()


@Entry("reconstruction", "reconstruction", "ceiling", ("compression", "sampling", "tokenizer"), shown=True)
def _(scene: Scene) -> Made | None:
    """The true frames, encoded and decoded by the tokenizer: no forecast."""
    made = scene.reconstruction
    return None if made is None else _plain(made) or _mean(made)


@Entry("reconstruction_blended", "reconstruction, blended", "ceiling", compared=())
def _(scene: Scene) -> Made | None:
    """The same, with the last context frame wherever a token stays, as the forecast is shown."""
    made = scene.reconstruction
    return None if made is None or made.plain_frames is None else _mean(made)
