"""Does a ranking of policies inside a world agree with the truth? For the verb and for Python."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from worldline import builtin
from worldline.checks import Natural, Positive, Seed, as_options, changed, refuse_unknown
from worldline.evaluation.held_out import DataChoice
from worldline.evaluation.receipt import source_hash
from worldline.families.card import describe_model
from worldline.families.config import LoadOptions
from worldline.families.load import Loaded, load_forecaster
from worldline.files import hash_of
from worldline.forecasting.forecaster import CopyLast, signature
from worldline.formats.limits import OutOfRange, StateLimits
from worldline.progress import say, watched
from worldline.ranking.actors import ACT_SECONDS, Contender, Held, PolicyError
from worldline.ranking.conclude import REPLAYED, Outcome, conclude, over_tasks
from worldline.ranking.contenders import classifier_of, contenders_of, tasks_of
from worldline.ranking.given import FunctionReader, read_counts, refuse_twins
from worldline.ranking.parts import Parts, content_of, key_of
from worldline.ranking.protocol import Between, Manner, Place, Played, Reader, Signal, play
from worldline.ranking.result import (
    COUNTS,
    FOLDER,
    PHYSICS,
    TWIN,
    WORLD,
    Failure,
    Film,
    Provenance,
    Ranking,
    write_films,
)
from worldline.ranking.stages import Stage, real_stages, twin_stages
from worldline.rundir import RunDir, commit, environment, model_folder, to_json
from worldline.schema import UsageError
from worldline.twin.tasks import TASKS

Ablation = Literal["shuffled_states", "replayed", "copy_last"]
LABELS = {
    PHYSICS: "physics",
    COUNTS: "real successes",
    TWIN: "twin, read from pixels",
    WORLD: "world",
    "unconditional": "world without states",
    "shuffled_states": "world, given another start's commands",
    "copy_last": "copy-last",
    REPLAYED: "world, given the twin's commands",
}
PARTS = "parts"
NO_CLASSIFIER = "nobody reads success: give a classifier's folder or a function, --success my_package.my_module:success"


@dataclass(frozen=True, kw_only=True)
class RankOptions(DataChoice, LoadOptions):
    """Which policies are ranked, on which tasks, and how. Raises `UsageError` for an impossible value."""

    policies: Path | None = None
    """Folder of policies, as `worldline policies` makes it, or of one of them."""
    policy: tuple[str, ...] = ()
    """Your own: `label=my_package.my_module:make_policy`, once for each; calling it gives an object with
    `act(observation) -> action`."""
    tasks: tuple[str, ...] = ()
    """Tasks of the twin, or of the counts; all that the policies are for if not given."""
    success: str | None = None
    """What reads success from pictures: the folder of a classifier, or your own `my_package.my_module:success`, called
    with the frames, states and task of an episode. If not given, the classifier in the folder of policies."""
    real_counts: Path | None = None
    """CSV file with columns policy, task, successes, trials: real successes in place of the twin's physics. Episodes
    then begin with clips of --data."""
    starts: int = 24
    """Starts of each task, the same for all policies."""
    seconds: Positive | None = None
    """Length of an episode; the task's own if not given."""
    ablation_starts: int | None = None
    """Starts of everything but the world and the twin; as many as those if not given."""
    unconditional: Path | None = None
    """A world trained without states: its ranking should agree with nothing."""
    also: tuple[tuple[Path, str], ...] = ()
    """Another world with its label, ranked by the same policies, once for each: `--also RUN "without failures"`."""
    leave_out: tuple[Ablation, ...] = ()
    """Controls that are not to be played."""
    trust: Literal["auto", "spread", "token_entropy", "round_trip", "none"] = "auto"
    """By what episodes are trusted: the spread of several samples, the entropy of tokens, or what the tokenizer loses
    of the frames, each per motion; `auto` takes the first of these that the world has."""
    between: Between = "ramp"
    """States of a step of many frames: on a line to the commanded one, or that one throughout."""
    out_of_range: OutOfRange = "allow"
    """Actions outside of the range of the world's training states: given as they are, the nearest within, or refused
    (the policy is left out). They are counted for each policy."""
    act_seconds: Positive = ACT_SECONDS
    """Longest time of one call of a policy."""
    films: Natural = 1
    """Starts of each task that are kept as moving pictures of all policies."""
    seed: Seed = 0
    """Of the policies' and the world's own chance."""
    out: Path | None = None
    """Folder for the result and its parts; if not given, `RUN/ranking` (for built-ins: runs/NAME/ranking)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policies is None and not self.policy:
            raise UsageError("no policies: give a folder of them (--policies) or your own (--policy module:function)")
        if self.real_counts is None and (given := as_options(changed(DataChoice, self))):
            raise UsageError(f"{given} would change nothing: starts of the twin's tasks are no clips of a data set")
        labels = [label for _, label in self.also]
        if len({*labels}) < len(labels) or {*labels} & {*LABELS.values()}:
            raise UsageError("every further world needs a label of its own (--also RUN LABEL)")


def rank(run: str | Path, options: RankOptions) -> Ranking:
    """Let policies play in a world and in the twin, or beside real counts, and compare their rankings.

    Writes `ranking.json` and `films.npz` into the folder `out`, where parts are kept as they are played: the same call
    again goes on. A policy that does what none may do is named in `Ranking.failures`; the others are ranked.

    Raises:
        UsageError: an option cannot be, world, policies and tasks do not go together, or no policy is left.
        DataError: a file is damaged, or counts are none.
    """
    return _Job.of(run, options).carry_out()


def out_of(run: str | Path, options: RankOptions) -> Path:
    """Where the result goes."""
    return options.out or RunDir(builtin.results_of(builtin.resolve(run))).path / FOLDER


@dataclass(kw_only=True)
class _Job:
    """A ranking under way."""

    run: str
    options: RankOptions
    out: Path
    world: Loaded
    worlds: dict[str, Place]
    """Columns of worlds and their controls, in order."""
    reader: Reader
    contenders: list[Contender]
    stages: list[Stage]
    signal: Signal | None
    held: Held | None
    not_computed: dict[str, str]
    commit: str
    failures: list[Failure] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    kept: int = 0
    """Parts that were played before."""
    seconds: float = 0.0

    @staticmethod
    def of(run: str | Path, options: RankOptions) -> "_Job":
        """Check all that was asked for, and load what is needed, before anything is played."""
        counts = None if options.real_counts is None else read_counts(options.real_counts)
        contenders = contenders_of(options.policies, options.policy)
        tasks = options.tasks or (tuple(counts) if counts is not None else tasks_of(contenders))
        if counts is None:
            for task in tasks:
                refuse_unknown(task, TASKS, what="task")
        refuse_twins(contenders, tasks)
        reader = _reader(options)
        folder, world = builtin.resolve(run), load_forecaster(run, options)
        worlds, absent = _worlds(world, options)
        signal, why = _signal(world, options)
        length: dict[str, Any] = {"count": options.starts, "seconds": options.seconds}
        length |= {"context": max(place.forecaster.context_frames for place in worlds.values())}
        if counts is None:
            stages = twin_stages(tasks, world.forecaster, world.contract, **length)
        else:
            stages = real_stages(counts, tasks, folder, world.contract, options, **length)
            absent |= {REPLAYED: "there is no twin whose commands could be replayed"}
            worlds.pop(REPLAYED, None)
        return _Job(
            run=str(run),
            options=options,
            out=out_of(run, options),
            world=world,
            worlds=worlds,
            reader=reader,
            contenders=contenders,
            stages=stages,
            signal=signal,
            held=_held(folder, options),
            not_computed=absent | ({"trusted": why} if why else {}),
            commit=commit(),
        )

    def carry_out(self) -> Ranking:
        found = [one for one in map(self._staged, self.stages) if one is not None]
        if self.kept and (self.options.policy or isinstance(self.reader, FunctionReader)):
            said = "what is your own is known by the file of its module; delete the folder if that reads other weights"
            say(f"{self.out / PARTS}: {self.kept} parts were played before and are kept; {said}")
        if not found:
            raise UsageError("; ".join(one.said for one in self.failures) or "there is no policy for any task")
        together = over_tasks(found)
        if together is None and len(found) > 1:
            self.not_computed["overall"] = "fewer than two policies are in all tasks"
        self.out.mkdir(parents=True, exist_ok=True)
        write_films(self.out, tuple(self.films))
        result = Ranking(
            world=self.run,
            labels=LABELS | {place.id: place.label for place in self.worlds.values()},
            tasks=tuple(map(conclude, found)),
            overall=None if together is None else conclude(together),
            signal=self.signal,
            reader=self.reader.label,
            failures=tuple(self.failures),
            not_computed=self.not_computed,
            settings=self._settings(),
            provenance=self._provenance(),
            seconds=self.seconds,
            fps=self.world.contract.fps / self.world.forecaster.pace,
        )
        result.write(self.out)
        return result

    # --- playing ---

    def _staged(self, stage: Stage) -> Outcome | None:
        """A task, with all policies that play it to the end; None where none does."""
        own = [one for one in self.contenders if one.task in (None, stage.id)]
        played: dict[str, dict[str, Played]] = {}
        for contender in watched(own, f"ranking, {stage.id}"):
            if stage.counts is not None and contender.label not in stage.counts:
                said = f"policy {contender.label!r} is missing from the counts of task {stage.id!r}"
                self._failed(Failure(policy=contender.label, task=stage.id, place=COUNTS, said=said))
                continue
            places: dict[str, Played] = {}
            place = WORLD
            try:
                for place, episodes in self._places(stage, contender, places):
                    places[place] = episodes()
            except PolicyError as error:
                self._failed(Failure(policy=contender.label, task=stage.id, place=place, said=str(error)))
                continue
            played[contender.label] = places
        if not played:
            return None
        self.films += self._filmed(stage, played)
        return self._outcome(stage, played)

    def _failed(self, failure: Failure) -> None:
        self.failures.append(failure)
        say(f"left out: {failure.said}")

    def _places(
        self, stage: Stage, contender: Contender, done: Mapping[str, Played]
    ) -> Iterator[tuple[str, Callable[[], Played]]]:
        """How a policy plays at each place, in turn: the twin's commands are `done` when they are replayed."""
        at = partial(self._played, stage, contender)
        fewer = min(self.options.ablation_starts or len(stage.starts), len(stage.starts))
        if stage.twin is not None:
            yield TWIN, partial(at, stage.twin, len(stage.starts))
        for id, place in self.worlds.items():
            count = len(stage.starts) if id == WORLD else fewer
            replayed = done[TWIN].commands[:count] if place.given == "replayed" else None
            if place.given == "shuffled" and count < 2:
                self.not_computed[id] = "with one start there is no other whose commands could be given"
                continue
            if replayed is not None and np.array_equal(replayed, done[WORLD].commands[:count]):
                yield id, partial(done[WORLD].first, count)  # the same commands at both places: the same follows
                continue
            yield id, partial(at, place, count, replayed=replayed)

    def _played(
        self, stage: Stage, contender: Contender, place: Place, count: int, *, replayed: np.ndarray | None = None
    ) -> Played:
        starts, own = stage.starts.rows(0, count), place.id in (TWIN, WORLD)
        chunk = place.forecaster.chunk_frames
        manner = Manner(
            steps=max(1, round(stage.seconds * self.world.contract.fps / chunk)),
            seed=self.options.seed,
            between=self.options.between,
            limit=self.options.act_seconds,
            signal=self.signal if place.id == WORLD else None,
            held=self.held,
            films=self.options.films if own else 0,
        )
        parts = Parts(self.out / PARTS)
        key = key_of(place, contender, starts, self.reader, manner, None if replayed is None else content_of(replayed))
        found = parts.get(key)
        if found is None:
            found = play(place, contender, starts, self.reader, manner, replayed=replayed)
            parts.put(key, found)
        else:
            self.kept += 1
        self.seconds += found.seconds
        return found

    # --- what came of it ---

    def _outcome(self, stage: Stage, played: Mapping[str, Mapping[str, Played]]) -> Outcome:
        policies, ids = tuple(played), list(next(iter(played.values())))
        each = {id: [played[label][id] for label in policies] for id in ids}
        columns = {id: np.stack([one.hits for one in held]) for id, held in each.items()}
        if stage.twin is not None:
            columns = {PHYSICS: np.stack([_physics(one) for one in each[TWIN]])} | columns
        doubts = [one.doubt for one in each[WORLD]]
        return Outcome(
            id=stage.id,
            label=stage.label,
            seconds=stage.seconds,
            policies=policies,
            columns=columns,
            counts=() if stage.counts is None else tuple((stage.counts[label],) for label in policies),
            chances={id: np.stack([one.chances for one in held]).astype(np.float64) for id, held in each.items()},
            doubt=None if self.signal is None else np.stack([one for one in doubts if one is not None]),
            gap=self._gap(each.get(TWIN, [])),
            outside=_outside({id: each[id] for id in (TWIN, WORLD) if id in each}),
            actions=each[WORLD][0].commands.shape[0] * each[WORLD][0].commands.shape[1],
        )

    def _gap(self, played: Sequence[Played]) -> dict[str, float]:
        """Mean difference of commanded and measured states, by their kind."""
        gaps = [one.gap.mean(axis=0) for one in played if one.gap is not None]
        if not gaps:
            return {}
        mean, kinds = np.mean(gaps, axis=0), np.array(self.world.contract.state_kinds)
        return {str(kind): float(mean[kinds == kind].mean()) for kind in dict.fromkeys(kinds.tolist())}

    def _filmed(self, stage: Stage, played: Mapping[str, Mapping[str, Played]]) -> list[Film]:
        made = []
        for number in range(min(self.options.films, len(stage.starts))):
            world = np.stack([places[WORLD].films[number] for places in played.values()])
            twin = None
            if stage.twin is not None:
                twin = np.stack([places[TWIN].films[number] for places in played.values()])
            made.append(Film(stage.id, stage.starts.named.ids[number], tuple(played), twin, world))
        return made

    def _settings(self) -> dict[str, Any]:
        names = ("starts", "ablation_starts", "seconds", "between", "out_of_range", "act_seconds", "seed", "trust")
        content = to_json(RankOptions, self.options)
        return {name: content[name] for name in names} | self.world.settings | {"tasks": [s.id for s in self.stages]}

    def _provenance(self) -> Provenance:
        about = environment()
        return Provenance(
            command=about["command"],
            commit=self.commit,
            code=source_hash(),
            world=signature(self.world.forecaster),
            reader=self.reader.identity,
            policies={f"{one.task}/{one.label}" if one.task else one.label: one.identity for one in self.contenders},
            seeds={stage.id: stage.starts.named.seeds for stage in self.stages},
            environment=about,
        )


def _physics(played: Played) -> np.ndarray:
    assert played.succeeded is not None, "the twin has physics"
    return played.succeeded


def _outside(each: Mapping[str, Sequence[Played]]) -> dict[str, np.ndarray]:
    """How often each policy was outside of the data's range, by place; nothing where that is not known."""
    counts = {id: [one.outside for one in held if one.outside is not None] for id, held in each.items()}
    return {id: np.array([one.sum() for one in held]) for id, held in counts.items() if len(held) == len(each[id])}


# --- what takes part ---


def _reader(options: RankOptions) -> Reader:
    """Who reads success. Raises `UsageError` where nobody does."""
    if options.success is not None and ":" in options.success and not Path(options.success).exists():
        return FunctionReader(options.success)
    found = classifier_of(options.policies, None if options.success is None else Path(options.success))
    if found is None:
        raise UsageError(NO_CLASSIFIER)
    return found


def _worlds(world: Loaded, options: RankOptions) -> tuple[dict[str, Place], dict[str, str]]:
    """The world, others beside it, and controls; and why others are not there."""
    forecaster = replace(world.forecaster, lazy=True)
    if forecaster.chunk_frames < 1:
        raise UsageError("this world cannot go on from its own frames, so no policy can act in it")
    known = signature(forecaster)
    found = {WORLD: Place(id=WORLD, label=LABELS[WORLD], forecaster=forecaster, identity=known)}
    absent: dict[str, str] = {}
    found[REPLAYED] = replace(found[WORLD], id=REPLAYED, label=LABELS[REPLAYED], given="replayed")
    others = {f"also_{number}": one for number, one in enumerate(options.also, start=1)}
    if options.unconditional is None:
        absent["unconditional"] = "no world without states was given (--unconditional)"
    else:
        others["unconditional"] = options.unconditional, LABELS["unconditional"]
    for id, (path, label) in others.items():
        same = replace(options, members=(), checkpoint="latest", tokenizer=None)
        other = load_forecaster(path, same, beside=True)
        _refuse_unlike(path, world, other)
        found[id] = Place(
            id=id, label=label, forecaster=replace(other.forecaster, lazy=True), identity=signature(other.forecaster)
        )
    shuffled = replace(found[WORLD], id="shuffled_states", label=LABELS["shuffled_states"], given="shuffled", rows=4096)
    copy = CopyLast.beside(forecaster)
    found["shuffled_states"] = shuffled
    found["copy_last"] = Place(
        id="copy_last", label=LABELS["copy_last"], forecaster=copy, identity=hash_of([signature(copy), "copy"])
    )
    for name in options.leave_out:
        del found[name]
        absent[name] = "left out (--leave-out)"
    return found, absent


def _refuse_unlike(path: Path, world: Loaded, other: Loaded) -> None:
    """Refuse a world in which the same policies could not act the same way."""
    ours, theirs = world.contract, other.contract
    pairs: dict[str, tuple[object, object]] = {
        "state names": (ours.state_names, theirs.state_names),
        "frames per second": (ours.fps, theirs.fps),
        "picture size": (world.forecaster.image_size, other.forecaster.image_size),
        "frames per step": (world.forecaster.chunk_frames, other.forecaster.chunk_frames),
    }
    for what, (one, two) in pairs.items():
        if one != two:
            raise UsageError(
                f"{path} cannot be ranked beside this world: they differ in {what} ({two!s:.60}, {one!s:.60})"
            )


def _held(folder: Path, options: RankOptions) -> Held | None:
    """The range of the world's training states, and what becomes of actions outside of it.

    Raises `UsageError` where something is to become of them, and the range is not known.
    """
    statistics = describe_model(model_folder(folder, options.checkpoint)).statistics
    if statistics is not None:
        return Held(limits=StateLimits.of_stats(statistics), out_of_range=options.out_of_range)
    if options.out_of_range != "allow":
        raise UsageError(f"--out-of-range {options.out_of_range}: this world does not say the range of its states")
    return None


def _signal(world: Loaded, options: RankOptions) -> tuple[Signal | None, str]:
    """By what episodes are trusted, or why by nothing. Raises `UsageError` for a signal that the world lacks."""
    forecaster = world.forecaster
    has: dict[Signal, bool] = {
        "spread": forecaster.num_samples > 1,
        "token_entropy": "certainty" in forecaster.streamed,
        "round_trip": forecaster.tokenizer is not None,
    }
    if options.trust == "none":
        return None, "left out (--trust none)"
    if options.trust == "auto":
        first = next((name for name in get_args(Signal) if has[name]), None)
        return first, "" if first else "this world has no signal of how far it can be trusted"
    if not has[options.trust]:
        needs = {"spread": "several samples (--num-samples)", "token_entropy": "tokens", "round_trip": "a tokenizer"}
        raise UsageError(f"--trust {options.trust} needs {needs[options.trust]}, which this world does not have")
    return options.trust, ""
