"""The built set: at least twelve independent policies for every task, and the success classifier, by one call.

Scripted ones of known order, and cloned ones that differ in how they look, in how much and in what they were shown, and
in their seed. Each is a training of its own, never a checkpoint of another's.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from worldline.checks import Checked, Limit, Seed, refuse_unknown
from worldline.files import read_json
from worldline.judges.success import (
    Attempts,
    Errors,
    SuccessConfig,
    SuccessReader,
    errors_of,
    load_success,
    read_all,
    save_success,
    train_success,
)
from worldline.metrics.ranking import wilson
from worldline.nn.fit import FitConfig
from worldline.owner import Claim, owned
from worldline.policies.attempts import AttemptConfig, Reconstruct, record_attempts
from worldline.policies.cloned import ClonedConfig, clone
from worldline.policies.demonstrations import DemonstrationConfig, Demonstrations, demonstrate
from worldline.policies.folder import CONFIG, RECORD, SUCCESS, found, load, save
from worldline.policies.networks import Eye, NetworkConfig
from worldline.policies.play import successes
from worldline.policies.scripted import ScriptedConfig, ScriptedPolicy
from worldline.policies.starts import STARTS
from worldline.progress import watched
from worldline.rundir import environment, from_json, to_json
from worldline.schema import UsageError
from worldline.twin.simulation import load_mujoco
from worldline.twin.tasks import TASKS, Task

REVISION = 1
"""Raise it whenever the same options give other policies."""
AIMS = (0, 4, 8, 12, 16, 20)
"""Aim errors of the scripted policies, in cm."""


def _cloned(eye: Eye, shown: slice, seed: int, *, execute: int = 3, steps: int = 220) -> ClonedConfig:
    return ClonedConfig(
        network=NetworkConfig(eye=eye, width=24),
        fit=FitConfig(seed=seed, steps=steps, batch_size=48),
        first=shown.start,
        demonstrations=shown.stop - shown.start,
        execute=execute,
    )


BUILT: dict[str, ScriptedConfig | ClonedConfig] = {
    **{f"aim-{cm}": ScriptedConfig(miss=cm / 100, seed=cm) for cm in AIMS},
    "nothing": ScriptedConfig(motion="nothing"),
    "wave": ScriptedConfig(motion="wave"),
    "convolution-160": _cloned("convolution", slice(0, 160), 1),
    "convolution-40": _cloned("convolution", slice(30, 70), 2),
    "convolution-10": _cloned("convolution", slice(0, 10), 3, steps=150),
    "patches-160": _cloned("patches", slice(0, 160), 4),
    "patches-40": _cloned("patches", slice(70, 110), 5),
    "difference-160": _cloned("difference", slice(0, 160), 6, execute=6),
    "difference-20": _cloned("difference", slice(10, 30), 7, execute=6, steps=150),
    "blind-160": _cloned("blind", slice(0, 160), 8, execute=6),
}
"""Name -> policy. The number of a cloned one is that of its demonstrations, of a scripted one its aim error in cm."""


@dataclass(frozen=True, kw_only=True)
class MakeOptions(Checked):
    """What is made."""

    tasks: tuple[str, ...] = ()
    """Ids of tasks; all that there are if not given."""
    only: tuple[str, ...] = ()
    """Names of policies; all if not given."""
    seed: Seed = 0
    """Another seed makes another set: other first weights and batches, other directions of aim errors."""
    fps: Annotated[int, Limit(least=1, most=240)] = 15
    """Actions per second: those of the world in which they are to be ranked."""
    classifier: bool = True
    """Also train the success classifier."""
    classifier_starts: Annotated[int, Limit(least=2, most=20_000)] = 60
    """Starts of every task that it is trained on, with three attempts from each; half as many measure its error."""
    measure: Annotated[int, Limit(most=10_000)] = 0
    """Starts of every task from which each policy is tried in the twin, where physics says what succeeds."""

    @property
    def chosen(self) -> dict[str, ScriptedConfig | ClonedConfig]:
        """The policies that are asked for. Raises `UsageError` for a name that there is not."""
        for name in self.only:
            refuse_unknown(name, BUILT, what="built policy")
        return {name: _seeded(BUILT[name], self) for name in self.only or BUILT}

    @property
    def at(self) -> list[Task]:
        """The tasks that are asked for. Raises `UsageError` for one that there is not."""
        for task in self.tasks:
            refuse_unknown(task, TASKS, what="task")
        return [TASKS[task] for task in dict.fromkeys(self.tasks or TASKS)]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """How often a policy succeeded in the twin, by physics."""

    successes: int
    trials: int
    low: float
    """Of the 95 % interval (Wilson); so is `high`."""
    high: float


@dataclass(frozen=True, kw_only=True)
class Made:
    """What there is in the folder now."""

    out: Path
    policies: dict[str, tuple[str, ...]]
    """Names by task."""
    tried: dict[str, dict[str, Tried]] = field(default_factory=dict)
    """By task and policy, if asked for."""
    errors: dict[str, Errors] = field(default_factory=dict)
    """Of the success classifier, on held-out attempts: by task and of all; through the tokenizer, if one was given."""


def make(
    out: str | Path,
    options: MakeOptions | None = None,
    *,
    reconstruct: Reconstruct | None = None,
    tokenizer: str | None = None,
    **given: Any,
) -> Made:
    """Make the set of policies and the success classifier in a folder; what is whole there already is kept.

    Deterministic in the options, on one machine. Another call with more tasks adds them.

    Args:
        reconstruct: frames through a tokenizer and back. The classifier then learns from such frames, too, and its
            error on them is measured: a world shows none better.
        tokenizer: fingerprint of that.
        given: fields of `MakeOptions`, by name, in place of `options`.

    Raises:
        UsageError: the folder holds something else or is in use, a name is none, or MuJoCo or OpenGL is missing.
    """
    out, options = Path(out), options or MakeOptions(**given)
    tasks, chosen = options.at, options.chosen
    key = {"revision": REVISION, "seed": options.seed, "fps": options.fps, "mujoco": load_mujoco().__version__}
    errors: dict[str, Errors] = {}
    with owned(out, claim=Claim(file=RECORD, key=key, what="policies")):
        jobs = list(chain.from_iterable(_jobs(out, task, chosen, options) for task in tasks))
        for job in watched(jobs, "making policies"):
            job()
        if options.classifier:
            errors = _classifier(out, tasks, options, reconstruct, tokenizer)
    made = {task.id: tuple(found(out, task.id)) for task in tasks}
    tried = {task.id: _tried(out, task, options) for task in tasks} if options.measure else {}
    return Made(out=out, policies=made, tried=tried, errors=errors)


def _seeded(config: ScriptedConfig | ClonedConfig, options: MakeOptions) -> ScriptedConfig | ClonedConfig:
    if isinstance(config, ScriptedConfig):
        return replace(config, seed=config.seed + 1000 * options.seed, fps=float(options.fps))
    return replace(config, fit=replace(config.fit, seed=config.fit.seed + 1000 * options.seed))


def _jobs(
    out: Path, task: Task, chosen: Mapping[str, ScriptedConfig | ClonedConfig], options: MakeOptions
) -> Iterator[Callable[[], None]]:
    """One job for each policy that is not there; demonstrations are recorded when they are first needed."""
    todo = {name: one for name, one in chosen.items() if not (out / task.id / name / CONFIG).exists()}
    most = max((one.first + one.demonstrations for one in todo.values() if isinstance(one, ClonedConfig)), default=0)
    shown: list[Demonstrations] = []

    def made(name: str, config: ScriptedConfig | ClonedConfig) -> None:
        if isinstance(config, ClonedConfig) and not shown:
            shown.append(demonstrate(task, most, DemonstrationConfig(fps=float(options.fps))))
        began = time.process_time()
        policy = ScriptedPolicy(config) if isinstance(config, ScriptedConfig) else clone(config, shown[0])
        about = {"task": task.id, "name": name, "number": [*BUILT].index(name)}
        about |= {"cpu_seconds": round(time.process_time() - began, 2), "environment": environment()}
        save(out / task.id / name, policy, about)
        if name == [*todo][-1]:
            shown.clear()

    for name, config in todo.items():
        yield lambda name=name, config=config: made(name, config)


def _tried(out: Path, task: Task, options: MakeOptions) -> dict[str, Tried]:
    """The policies of a task in the twin, from starts that are neither learned from nor ranked on."""
    starts = [task.start(seed, fps=float(options.fps)) for seed in STARTS["testing"][: options.measure]]
    names = [name for name in found(out, task.id) if not options.only or name in options.only]
    loaded = {name: load(out / task.id / name) for name in names}
    told = dict[str, Tried]()
    for name, done in successes(loaded, starts, seed=options.seed, what=f"trying {task.id}").items():
        count = int(done.sum())
        low, high = wilson(count, len(done))
        told[name] = Tried(successes=count, trials=len(done), low=low, high=high)
    return told


# --- the success classifier ---


def _classifier(
    out: Path, tasks: Sequence[Task], options: MakeOptions, reconstruct: Reconstruct | None, tokenizer: str | None
) -> dict[str, Errors]:
    """Train it unless it is there and knows these tasks; its errors. One that is there is frozen: it learns anew only
    for another tokenizer, or for more tasks.

    Raises `UsageError` where it would learn anew without the tokenizer that it was trained with.
    """
    folder, wanted = out / SUCCESS, [task.id for task in tasks]
    given = {"tokenizer": tokenizer, "starts": options.classifier_starts, "seed": options.seed}
    if (folder / CONFIG).exists():
        there, made = load_success(folder).config.tasks, read_json(folder / CONFIG).get("made", {})
        before = made.get("given", {}).get("tokenizer")
        if set(wanted) <= set(there) and tokenizer in (None, before):
            return {name: from_json(Errors, one, folder / CONFIG) for name, one in made.get("errors", {}).items()}
        if tokenizer is None and before is not None:
            said = f"{folder} was trained with the tokenizer {before[:12]} and does not know all tasks"
            raise UsageError(f"{said}; give that tokenizer (--tokenizer), or leave it as it is (--no-classifier)")
        wanted = [task for task in TASKS if task in {*wanted, *there}]
    began, known = time.process_time(), [TASKS[task] for task in wanted]
    how: dict[str, Any] = {"config": AttemptConfig(fps=float(options.fps)), "reconstruct": reconstruct}
    count = options.classifier_starts
    training = record_attempts(known, "classifier", count, **how)
    choosing = record_attempts(known, "choosing", max(1, count // 4), config=how["config"])
    config = SuccessConfig(tasks=tuple(wanted))
    config = replace(config, fit=replace(config.fit, seed=options.seed))
    reader = train_success(training, config, choosing=choosing)
    errors = _errors(reader, record_attempts(known, "testing", max(1, count // 2), **how))
    made = {"given": given, "errors": {name: to_json(Errors, one) for name, one in errors.items()}}
    made |= {"cpu_seconds": round(time.process_time() - began, 2), "environment": environment()}
    save_success(folder, reader, made)
    return errors


def _errors(reader: SuccessReader, held_out: Attempts) -> dict[str, Errors]:
    """Of all tasks together and of each, on true frames and, where there are such, through the tokenizer."""
    told, truth, starts = dict[str, Errors](), held_out.succeeded, held_out.start * len(TASKS) + held_out.task
    for suffix, degraded in (("", False), (" through the tokenizer", True)):
        if degraded and held_out.degraded is None:
            continue
        chances = read_all(reader, held_out, degraded=degraded)
        told[f"all{suffix}"] = errors_of(chances, truth, starts)
        for place, task in enumerate(held_out.tasks):
            own = held_out.task == place
            if truth[own].any() and not truth[own].all():
                told[f"{task}{suffix}"] = errors_of(chances[own], truth[own], starts[own])
    return told
