"""The one engine: every row, metric and study over clips, batch by batch, each batch on one rank.

The scores of a batch depend on the batch alone, so the numbers do not depend on the number of processes or on
interruptions: an evaluation that is stopped leaves `OUT/metrics.parts/key_KEY/batch_000008.pt`, the scores of the batch
that begins with the ninth clip. It knows forecasters only; rows, metrics and studies are entries of their tables.
"""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from zipfile import is_zipfile

import torch
from einops import rearrange
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from worldline.checks import Checked, Natural, Seed, refuse
from worldline.data.clips import Clips, evenly
from worldline.data.splits import recording_of
from worldline.evaluation import studies  # noqa: F401 - they are in their table then
from worldline.evaluation.held_out import foreign_states, states_of
from worldline.evaluation.result import Comparison, DataSummary, Evaluation, Finding, Row, Split
from worldline.evaluation.rows import (
    ROWS,
    Judged,
    Made,
    Protocol,
    Role,
    Scene,
    Setting,
    conditional_mean_id,
    entry_of,
    mean_id,
)
from worldline.evaluation.sets import TRUTH, Features, features_of, set_numbers
from worldline.evaluation.study import STUDIES, Found, Numbers, studies_of
from worldline.files import atomic, remove_temporaries, write_npz
from worldline.forecasting.forecaster import clip_seeds
from worldline.formats.source import Source
from worldline.metrics.bootstrap import Interval, interval, intervals
from worldline.metrics.image import psnr
from worldline.metrics.networks import Networks
from worldline.metrics.table import METRICS, Metric, NotComputed
from worldline.progress import say
from worldline.ranks import Ranks
from worldline.rundir import environment
from worldline.schema import Batch, TokenGrid, UsageError, stack

PARTS = "metrics.parts"
SHOWN_CLIPS = 6
"""Clips whose frames are kept for the report."""
SHOWN_FRAMES = 512
"""Most frames of a row that are kept: of long horizons fewer clips."""
FRAMES_AT_ONCE = 64
"""Of each clip, that a metric of images is given at once: it bounds memory however long the horizon is."""
FEW_SAMPLES = 5
"""Futures that are enough to tell a condition from the truth: more change a paired difference little."""
SHOWN_ORDER = ("model", "baseline", "ceiling", "ablation")
ORDER: tuple[Role, ...] = ("model", "ablation", "baseline", "ceiling")
Key = TypeVar("Key")
SMALLEST_STD = 1e-6
"""Deviation below which a state counts as one that never changes."""


@dataclass(frozen=True, kw_only=True)
class Amount(Checked):
    """How much is evaluated. Raises `UsageError` for impossible numbers."""

    num_clips: int | None = 128
    """Evenly chosen among the windows; None takes them all."""
    batch_size: int = 8
    means: tuple[int, ...] | None = None
    """Sampling protocol: sizes of smaller ensembles that are scored too; 5, if more samples are drawn."""
    mean_draws: tuple[int, ...] = (1, 4)
    """Sampling protocol, worlds over latents: for each number a row of the mean of all futures, from so many estimates
    at pure noise, one call each (docs/beyond.md); none leaves them out."""
    condition_samples: Natural | None = None
    """Futures per clip given other states than its own (the audit); 0 leaves such rows out; if not given, as many as
    the forecast has, at most 5."""
    studies: tuple[str, ...] | None = None
    """Further questions that are asked: `audit`, `regions`, `counterfactuals`, `drift`, `inverse_dynamics`,
    `readable_states`, `uncertainty`; all of them if not given. The option without any name leaves out all, and what
    would be forecast for them alone."""
    study_clips: int = 12
    """On how many of the clips studies measure what is costly: joint by joint, and what touches and misses lead to."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(self.studies or ()) - STUDIES.keys():
            refuse(self, "studies", f"some of {', '.join(STUDIES)}")
        if len(set(self.mean_draws)) < len(self.mean_draws):
            refuse(self, "mean_draws", "numbers that are all different: each is a row")

    def sizes(self, num_samples: int) -> tuple[int, ...]:
        """Numbers of samples whose mean is scored, largest first: all, those of `means` and of other conditions."""
        means = (5,) * (num_samples > 5) if self.means is None else self.means
        wanted = {num_samples, 1, *means, self.conditioned(num_samples) or 1}
        if max(wanted) > num_samples:
            raise UsageError(
                f"{num_samples} samples are drawn (--num-samples), too few for a mean of {max(wanted)} "
                "(--means, --condition-samples)"
            )
        return tuple(sorted(wanted, reverse=True))

    def conditioned(self, num_samples: int) -> int:
        """Futures per clip under another condition, of so many in all."""
        return min(num_samples, FEW_SAMPLES) if self.condition_samples is None else self.condition_samples


@dataclass
class Tally:
    """Scores of some clips."""

    episodes: list[int]
    starts: list[int]
    """First frame of each in its episode."""
    scores: dict[tuple[str, str], Float32[Tensor, "n _"]] = field(default_factory=dict)
    """(row, metric) -> a number for each clip and predicted frame (of costs: token grid). A costly metric is NaN in
    frames that were not measured."""
    features: Features = field(default_factory=dict)
    """Of metrics of sets."""
    shown: dict[str, UInt8[Tensor, "some t 3 h w"]] = field(default_factory=dict)
    """Frames of some clips, context and forecast, by row."""
    maps: dict[str, Float[Tensor, "some f a b"]] = field(default_factory=dict)
    """Of the same clips: how unsure the forecast was of each place (`study.Map`), by id."""
    map_texts: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Label and unit of each."""
    measured: dict[tuple[str, str], Float[Tensor, "n ..."]] = field(default_factory=dict)
    """(study, name) -> what it measured of each clip."""
    not_computed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)
    """Sums over all clips, such as how often each token occurred."""

    @staticmethod
    def joined(parts: "Sequence[Tally]") -> "Tally":
        """Scores of all clips, in order. What cannot be computed of one batch (its physics are gone) is left out."""
        first = parts[0]

        def joined(each: Sequence[Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
            return {key: torch.cat([own[key] for own in each]) for key in each[0] if all(key in own for own in each)}

        return replace(
            first,
            episodes=[episode for part in parts for episode in part.episodes],
            starts=[start for part in parts for start in part.starts],
            scores=joined([part.scores for part in parts]),
            measured=joined([part.measured for part in parts]),
            features=joined([part.features for part in parts]),
            shown=joined([part.shown for part in parts]),
            maps=joined([part.maps for part in parts]),
            not_computed={id: why for part in reversed(parts) for id, why in part.not_computed.items()},
            totals={key: torch.stack([part.totals[key] for part in parts]).sum(dim=0) for key in first.totals},
        )

    def score(
        self,
        row: str,
        made: Made,
        truth: UInt8[Tensor, "b f 3 h w"] | None,
        before: UInt8[Tensor, "b 3 h w"] | None = None,
        *,
        networks: Networks,
        role: Role,
        every_frame: bool,
    ) -> None:
        """Measure all that can be measured of a row; what cannot is noted, not made up.

        Args:
            every_frame: also where that is costly, which else is measured in the last frame alone.
        """
        self.settings |= made.settings
        self.scores |= {(row, metric): cost for metric, cost in made.costs.items()}
        for metric in METRICS.values():
            apart = metric.group in ("token", "set", "states")  # `Made.costs`, `compare_as_set`, `read`
            if made.frames is None or truth is None or apart or metric.measure is None:
                continue
            try:
                if metric.group == "video":
                    self.scores[row, metric.id] = metric.measure(made.frames, truth, before)[:, None]
                else:
                    seen = 1 if metric.costly and not every_frame else truth.shape[1]
                    values = _of_frames(metric, made.frames[:, -seen:], truth[:, -seen:], networks)
                    self.scores[row, metric.id] = pad(values, (truth.shape[1] - seen, 0), value=math.nan)
            except NotComputed as reason:
                self.not_computed[metric.id] = str(reason)
        if made.frames is not None and truth is not None and role != "ablation":
            self.compare_as_set(row, made.frames, networks)

    def compare_as_set(self, row: str, frames: UInt8[Tensor, "b f 3 h w"], networks: Networks) -> None:
        """Keep the features of a row, or of the true frames, for metrics of sets."""
        features, not_computed = features_of(row, frames, networks)
        self.features |= features
        self.not_computed |= not_computed

    def read(self, row: str, made: Made, scene: Scene) -> None:
        """Read the states that a row's frames show, and score them against those that it was given."""
        if scene.reader is None or scene.before is None:
            return
        if made.read is not None:
            scene.read[row] = made.read
        elif made.frames is not None:
            scene.read[row] = scene.states_in(made.frames)
        else:
            return
        given = scene.batch.states if made.states is None else made.states
        try:
            asked = given[:, list(scene.forecaster.times)]
            self.scores[row, "state_error"] = scene.reader.error(scene.read[row], asked)
        except NotComputed as reason:
            self.not_computed["state_error"] = str(reason)


def _of_frames(
    metric: Metric, ours: UInt8[Tensor, "b f 3 h w"], real: UInt8[Tensor, "b f 3 h w"], networks: Networks
) -> Float32[Tensor, "b f"]:
    """A metric of images, of some frames at a time."""
    assert metric.measure is not None
    pieces = zip(ours.split(FRAMES_AT_ONCE, dim=1), real.split(FRAMES_AT_ONCE, dim=1), strict=True)
    more = (networks,) if metric.learned else ()
    return torch.cat([metric.measure(*piece, *more) for piece in pieces], dim=1)


def score(
    judged: Judged,
    clips: Clips,
    amount: Amount,
    *,
    out: Path,
    split: Split = "not checked",
    key: str | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Score every row of a protocol and write `metrics.json`, `scores.npz` and `forecasts.npz` into `out`.

    Args:
        split: what `split_of` said of the clips, for the record.
        key: `Identities.key`, on rank 0: what was scored under it before is taken over; None for nothing.
        ranks: processes that share the clips; each returns the whole evaluation, and the first one writes it.

    Raises:
        UsageError: the data hold nothing to compare with, or the unconditional world forecasts something else.
    """
    refuse_incomparable(clips, judged.protocol)
    began, ranks, scoring = time.monotonic(), ranks or Ranks(), _Scoring(judged, clips, amount)
    parts = ranks.agreed(_begun(out, key) if ranks.writes else None)
    if not all(ranks.everyones(parts.is_dir())):
        raise UsageError(f"{out} is not seen by all processes; give a folder that all machines share (--out)")
    files = {n: parts / f"batch_{n:06d}.pt" for n in range(0, len(scoring.chosen), amount.batch_size)}

    def make(begin: int) -> None:
        tally = scoring.batch(begin)  # held: Python 3.13.0 may empty dictionaries in the `vars` of an object let go
        with atomic(files[begin]) as temporary:
            torch.save(vars(tally), temporary)

    ranks.made([*files], make, done=lambda begin: files[begin].exists(), what="evaluating, by batches")
    if not ranks.writes:
        return ranks.agreed(None)
    tally = Tally.joined([Tally(**torch.load(file, weights_only=True)) for file in files.values()])
    write_scores(out / "scores.npz", tally)
    if tally.shown:
        scoring.write_forecasts(out / "forecasts.npz", tally)
    evaluation = scoring.evaluation(tally, split, time.monotonic() - began)
    evaluation.save(out / "metrics.json")
    shutil.rmtree(parts.parent)
    return ranks.agreed(evaluation)


def _begun(out: Path, key: str | None) -> Path:
    """The folder for an evaluation's parts, with what it left there when it was stopped: nothing if there is no key.

    Parts of other keys and what was half written are removed.
    """
    folder = out / PARTS / f"key_{(key or 'unknown')[:16]}"
    others = [other for other in folder.parent.glob("key_*") if other != folder or key is None]
    if any(any(other.glob("batch_*")) for other in others):
        say(f"{out}: removed what was scored by an evaluation that was stopped and differs from this one")
    for other in others:
        shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    for file in folder.glob("batch_*.pt"):
        if not is_zipfile(file):  # a machine that lost its power leaves parts of files; that batch is scored again
            file.unlink()
    if there := len(list(folder.iterdir())):
        say(f"{out}: {there} batches were there already, of this evaluation when it was stopped")
    return folder


def refuse_incomparable(clips: Clips, protocol: Protocol) -> None:
    """Raise `UsageError` where the data hold nothing to compare a forecast with."""
    source = clips.source
    if source.context_only:
        raise UsageError(f"{source.path} holds no future: test samples can be forecast, not evaluated")
    if source.image_size is None and protocol != "compression":
        raise UsageError(f"{source.path} holds no frames to compare with; give data that do (--data)")


class _Scoring:
    """Every row of the chosen clips: first batch by batch, then the whole."""

    def __init__(self, judged: Judged, clips: Clips, amount: Amount) -> None:
        forecaster, other = judged.forecaster, judged.unconditional
        if other is not None and (other.times, other.token_grid) != (forecaster.times, forecaster.token_grid):
            raise UsageError("the unconditional world forecasts other times or tokens than the one it is compared with")
        drawn = forecaster.num_samples
        self.judged, self.clips, self.amount = judged, clips, amount
        self.chosen = evenly(len(clips), amount.num_clips)
        each = len(forecaster.shown_context) + len(forecaster.times)
        self.shown = set(evenly(len(self.chosen), max(1, min(SHOWN_CLIPS, SHOWN_FRAMES // each))))
        self.few = set(evenly(len(self.chosen), amount.study_clips))
        self.condition_samples = amount.conditioned(drawn)
        self.settings: dict[str, Setting] = {}
        if judged.forecasts:
            self.settings = {"seed": amount.seed, "num_samples": drawn, "condition_samples": self.condition_samples}
        if forecaster.token_grid is not None:
            self.settings["vocabulary"] = forecaster.token_grid.vocab_size
        asked = STUDIES if amount.studies is None else amount.studies
        of_protocol = studies_of(judged.protocol)
        self.studies = [one for one in of_protocol if one.id in asked]
        self.left_out = [one.id for one in of_protocol if one.id not in asked]
        made = {one.id for one in self.studies if one.of_roll_outs or not judged.beyond}
        # The first is the forecast that the others are compared with.
        ids = (*map(mean_id, amount.sizes(drawn)), *map(conditional_mean_id, sorted(amount.mean_draws)), *ROWS)
        every = [one for id in dict.fromkeys(ids) if (one := entry_of(id)) is not None]
        every = [one for one in every if judged.protocol in one.protocols and (one.study is None or one.study in made)]
        self.entries = sorted(every, key=lambda entry: ORDER.index(entry.role))
        foreign = judged.forecasts and self.condition_samples
        self.foreign = foreign_states(clips, self.chosen) if foreign else None
        self.state_std = states_of(clips, self.chosen).flatten(0, 1).std(dim=0)
        self.state_std[self.state_std < SMALLEST_STD] = 1.0

    def batch(self, begin: int) -> Tally:
        """Score the batch that begins with this one of the chosen clips."""
        now = range(begin, min(begin + self.amount.batch_size, len(self.chosen)))
        batch, forecaster = stack([self.clips[self.chosen[i]] for i in now]), self.judged.forecaster
        scene = Scene(
            **vars(self.judged),
            batch=forecaster.encoded(batch),
            clips=self.clips,
            seeds=clip_seeds(self.amount.seed, batch.origins),
            foreign=None if self.foreign is None else self.foreign[now.start : now.stop],
            condition_samples=self.condition_samples,
            state_std=self.state_std,
            wanted=[entry.id for entry in self.entries],
            few=[place for place, number in enumerate(now) if number in self.few],
        )
        tally = Tally([origin.episode for origin in batch.origins], [origin.start for origin in batch.origins])
        tally.not_computed |= dict.fromkeys(self.left_out, "left out (--studies)")
        truth, networks = scene.truth, self.judged.networks
        if truth is None:
            of_frames = [one.id for one in METRICS.values() if one.group != "token" and one.measure is not None]
            tally.not_computed |= dict.fromkeys(of_frames, "the data hold tokens only, no frames")
        elif self.judged.protocol != "states":
            tally.compare_as_set(TRUTH, truth, networks)
        if scene.reader is None and self.judged.forecasts:
            tally.not_computed["state_error"] = scene.no_reader
        views = {"real": truth}
        for entry in self.entries:
            try:
                made = entry.make(scene)
            except NotComputed as reason:
                tally.not_computed[entry.id] = str(reason)
                continue
            if made is not None:
                scene.made[entry.id] = made
                whole = entry is self.entries[0] or (entry.shown and entry.role != "ablation")
                tally.score(entry.id, made, truth, scene.before, networks=networks, role=entry.role, every_frame=whole)
                tally.read(entry.id, made, scene)
                if entry.shown or entry is self.entries[0]:
                    views[entry.id] = made.frames
        if batch.frames is not None and (seen := forecaster.shown_context) and self.judged.forecasts:
            kept = [place for place, number in enumerate(now) if number in self.shown]
            before, found = batch.frames[kept][:, seen], {row: view for row, view in views.items() if view is not None}
            tally.shown = {row: torch.cat([before, view[kept]], dim=1) for row, view in found.items()}
            for study in self.studies:
                for id, one in study.maps(scene).items():
                    tally.maps[id], tally.map_texts[id] = one.values[kept].half(), (one.label, one.unit)
        for study in self.studies:
            try:
                if self.judged.beyond and not study.of_roll_outs:
                    raise NotComputed("studied within one window; evaluate without --horizon, too")
                tally.measured |= {(study.id, name): values.cpu() for name, values in study.measure(scene).items()}
            except NotComputed as reason:
                tally.not_computed[study.id] = str(reason)
        if self.judged.protocol == "tokenizer":
            tally.totals = _totals(scene.batch, forecaster.token_grid)
        return tally

    def evaluation(self, tally: Tally, split: Split, seconds: float) -> Evaluation:
        """Means with intervals over episodes, and the forecast compared with the other rows."""
        judged, source, size = self.judged, self.clips.source, self.clips.image_size
        episodes, numbers = torch.tensor(_recordings(source, tally.episodes)), Numbers()
        curves: dict[str, dict[str, list[Interval]]] = {}
        for (row, metric), values in tally.scores.items():
            numbers.setdefault(row, {}).update(of_clips(metric, values))
            if METRICS[metric].per_frame and not values.isnan().any():
                curves.setdefault(metric, {})[row] = intervals(values, episodes)
        there, sets = [entry for entry in self.entries if entry.id in numbers], set_numbers(tally.features, episodes)
        not_computed = tally.not_computed | sets.not_computed
        findings = self._findings(tally, numbers, episodes, not_computed)
        return Evaluation(
            protocol=judged.protocol,
            run=judged.run,
            data=DataSummary(
                name=source.name,
                kind=source.kind,
                num_clips=len(tally.episodes),
                num_episodes=len(episodes.unique()),
                image_size=(size, size) if size and source.image_size else source.image_size,
                horizon_frames=judged.forecaster.horizon_frames,
                fps=source.fps / self.clips.pattern.stride,
                split=split,
                times=tuple(time + 1 - judged.forecaster.context_frames for time in judged.forecaster.times),
            ),
            rows=tuple(
                Row(id=e.id, role=e.role, metrics=_means(numbers[e.id], episodes) | sets.rows.get(e.id, {}))
                for e in there
            ),
            curves=curves,
            comparisons=self._comparisons(numbers, episodes),
            not_computed=not_computed,
            findings=findings,
            settings={**sets.settings, **self.settings, **judged.settings, **tally.settings, **_usage(tally.totals)},
            environment=environment(),
            seconds=seconds,
            tokenizer=judged.tokenizer,
        )

    def _findings(
        self, tally: Tally, numbers: Numbers, episodes: Int64[Tensor, " n"], not_computed: dict[str, str]
    ) -> tuple[Finding, ...]:
        """What every study found that could be measured; `not_computed` gets the reasons of the others."""
        found = []
        for study in self.studies:
            measured = {name: values for (of, name), values in tally.measured.items() if of == study.id}
            about = Found(
                judged=self.judged,
                measured=measured,
                scores=tally.scores,
                numbers=numbers,
                episodes=episodes,
                forecast=self.entries[0].id,
                alike=self._alike,
                fps=self.clips.source.fps / self.clips.pattern.stride,
                state_names=self.clips.source.layout.names,
            )
            try:
                if study.id not in not_computed:
                    found.append(study.conclude(about))
            except NotComputed as reason:
                not_computed[study.id] = str(reason)
        return tuple(found)

    @property
    def _alike(self) -> str:
        """The row that differs from a condition in the states alone."""
        return mean_id(self.condition_samples or 1) if self.judged.protocol == "sampling" else self.entries[0].id

    def _comparisons(self, numbers: Numbers, episodes: Int64[Tensor, " n"]) -> tuple[Comparison, ...]:
        """The forecast is said to be better than every other row, and a ceiling to be better than the forecast.

        A condition is compared with the mean of as many samples, made from the same noise.
        """
        first, found = self.entries[0].id, []
        for entry in self.entries[1:]:
            ours = self._alike if entry.role == "ablation" else first
            better, than = (entry.id, ours) if entry.role == "ceiling" else (ours, entry.id)
            for metric in entry.compared:
                if metric in numbers.get(better, {}) and metric in numbers.get(than, {}):
                    # Paired: a difficult clip is difficult for both, and this cancels.
                    difference = interval(numbers[better][metric].double() - numbers[than][metric].double(), episodes)
                    found.append(Comparison(metric=metric, better=better, than=than, difference=difference))
        return tuple(found)

    def write_forecasts(self, path: Path, tally: Tally) -> None:
        """Keep some clips for the report: real frames, each row's context + forecast (`n t h w 3`), and maps."""
        shown = tally.shown
        ordered = sorted(self.entries, key=lambda entry: SHOWN_ORDER.index(entry.role))
        rows = [entry.id for entry in ordered if entry.id in shown]
        named = {"real": shown["real"], **{f"forecast_{i}": shown[row] for i, row in enumerate(rows)}}
        arrays = {name: rearrange(clips, "n t c h w -> n t h w c").numpy() for name, clips in named.items()}
        quality = psnr(shown[rows[0]][:, -1], shown["real"][:, -1]).numpy()
        if tally.maps:
            labels, units = zip(*(tally.map_texts[id] for id in tally.maps), strict=True)
            arrays |= {"maps": [*tally.maps], "map_labels": labels, "map_units": units}
            arrays |= {f"map_{i}": values.numpy() for i, values in enumerate(tally.maps.values())}
        write_npz(path, {"rows": rows, "context": len(self.judged.forecaster.shown_context), "psnr": quality, **arrays})


def of_clips(metric: str, values: Float[Tensor, "n f"]) -> dict[str, Float[Tensor, " n"]]:
    """One number for each clip, by the ids of tables, of a metric's numbers for each frame (or token grid)."""
    if not METRICS[metric].per_frame:
        return {metric: values.nanmean(dim=1)}
    last = {f"{metric}_last": values[:, -1]}
    return last if values.isnan().any() else last | {f"{metric}_mean": values.mean(dim=1)}


def write_scores(path: Path, tally: Tally) -> None:
    """Keep every number of every clip: `episode` and `start` of each, and `row/metric` as `n f`, for comparisons."""
    scores = {f"{row}/{metric}": values.numpy() for (row, metric), values in tally.scores.items()}
    write_npz(path, {"episode": tally.episodes, "start": tally.starts, **scores})


def _recordings(source: Source, episodes: Sequence[int]) -> list[int]:
    """The first episode that shows what each shows: pieces of one recording (start offsets) are drawn together."""
    first: dict[str, int] = {}
    shown = {episode: first.setdefault(recording_of(source, episode), episode) for episode in sorted(set(episodes))}
    return [shown[episode] for episode in episodes]


def _means(values: Mapping[str, Tensor], episodes: Int64[Tensor, " n"]) -> dict[str, Interval]:
    """Average each metric over clips; of a sparse one over those that have a number."""
    found = {}
    for metric, numbers in values.items():
        known = ~numbers.isnan() if METRICS[metric].sparse else slice(None)
        if len(numbers[known]):
            found[metric] = interval(numbers[known], episodes[known])
    return found


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
    if "tokens" in totals:
        counts = totals["tokens"].double()
        perplexity = torch.special.entr(counts / counts.sum()).sum().exp().item()
        return {"tokens_used": int((counts > 0).sum()), "token_perplexity": round(perplexity, 1)}
    return {}
