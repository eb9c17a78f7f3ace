"""What a user gives to a ranking: their own policies, their own reader of success, and counts of real successes.

A Python entry point is written `module:name`, where `name` is a function or a class, found from the working directory
too; before it may stand a label: `label=module:name`.
"""

import csv
import hashlib
import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from worldline.checks import MOST
from worldline.files import hash_of, reading
from worldline.ranking.actors import Contender
from worldline.ranking.conclude import Counted
from worldline.schema import DataError, UsageError

COLUMNS = ("policy", "task", "successes", "trials")
COUNTS_FIX = f"Give a CSV file with the columns {', '.join(COLUMNS)}, one line for each policy and task."


# --- Python entry points ---


def entry_point(spec: str, option: str) -> Callable[..., Any]:
    """What `module:name` names. Raises `UsageError` where there is no such thing, or it cannot be called."""
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise UsageError(f"{option} {spec} is no entry point; write it as my_package.my_module:make_policy")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever somebody's module raises while it is imported
        raise UsageError(f"{option} {spec}: {module} cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        if added:
            sys.path.remove(here)
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{option} {spec}: {module} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{option} {spec} is a {type(found).__name__}; name a function or a class that can be called")
    return found


def _identity_of(spec: str, function: Callable[..., Any]) -> str:
    """Hash of the module's source, if it has one: what the module itself reads is not known."""
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    content = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""
    return hash_of([spec, content])


def policies_of(specs: Iterable[str]) -> list[Contender]:
    """The policies of `[label=]module:name`. They are made when they play, by calling what is named."""
    found = []
    for spec in specs:
        label, equals, place = spec.rpartition("=")
        make = entry_point(place, "--policy")
        label = label if equals else place.partition(":")[2]
        if not label:
            raise UsageError(f"--policy {spec}: the label before = is empty")
        found.append(Contender(label=label, make=make, identity=_identity_of(place, make), origin=place))
    return found


def refuse_twins(contenders: Sequence[Contender], tasks: Sequence[str]) -> None:
    """Refuse two policies of one label in a task. Raises `UsageError`."""
    for task in tasks:
        own = [one for one in contenders if one.task in (None, task)]
        for label, count in Counter(one.label for one in own).items():
            if count > 1:
                places = " and ".join(one.origin or "?" for one in own if one.label == label)
                raise UsageError(f"two policies of task {task!r} are called {label!r} ({places}); give another label=")


# --- success ---


class FunctionReader:
    """A user's own reader: `success(frames, states, task)` of one episode -> its chance, or whether it succeeded."""

    looks: int | None = None

    def __init__(self, spec: str) -> None:
        self.function = entry_point(spec, "--success")
        self.identity, self.label = _identity_of(spec, self.function), spec

    def chances(
        self, task: str, frames: UInt8[np.ndarray, "n t h w 3"], states: Float32[np.ndarray, "n t s"]
    ) -> Float[np.ndarray, " n"]:
        """Raises `UsageError` where the function raises, or gives no number of 0 to 1."""
        return np.array([self._chance(task, *one) for one in zip(frames, states, strict=True)], np.float64)

    def _chance(self, task: str, frames: np.ndarray, states: np.ndarray) -> float:
        try:
            chance = float(self.function(frames.copy(), states.copy(), task))
        except Exception as error:  # whatever somebody's function raises
            said = f"{type(error).__name__}: {error}"
            raise UsageError(f"--success {self.label} failed on an episode of task {task!r}: {said}") from error
        if not 0 <= chance <= 1:
            raise UsageError(f"--success {self.label} gave {chance}; it must be a chance from 0 to 1, or True or False")
        return chance


# --- real counts ---


def read_counts(path: Path) -> dict[str, dict[str, Counted]]:
    """Real successes, by task and policy. Raises `DataError` naming the line that is wrong."""
    sound = reading(path, csv.Error, expected="a CSV file", fix=COUNTS_FIX)
    with sound, path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        names = [name.strip() for name in table.fieldnames or ()]
        table.fieldnames = names
        lines = [(table.line_num, line) for line in table]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        said = f"column {', '.join(twice)} more than once"
        raise DataError(path, expected="each column once", found=said, fix=COUNTS_FIX)
    if missing := [name for name in COLUMNS if name not in names]:
        said = f"no column {', '.join(missing)} (it has {', '.join(names) or 'none'})"
        raise DataError(path, expected=f"the columns {', '.join(COLUMNS)}", found=said, fix=COUNTS_FIX)
    found: dict[str, dict[str, Counted]] = {}
    for number, line in lines:
        if None in line:
            raise _wrong_line(path, number, f"{len(names)} columns", f"{len(names) + len(line[None])}")
        policy, task, counted = _counted(path, number, line)
        if policy in found.setdefault(task, {}):
            raise _wrong_line(path, number, "each policy once for a task", f"{policy!r} in {task!r} again")
        found[task][policy] = counted
    if not found:
        raise DataError(path, expected="at least one line of counts", found="none", fix=COUNTS_FIX)
    return found


def _counted(path: Path, number: int, line: Mapping[str, str | None]) -> tuple[str, str, Counted]:
    policy, task, successes, trials = ((line.get(name) or "").strip() for name in COLUMNS)
    if not policy or not task:
        raise _wrong_line(path, number, "a policy and a task", f"{policy!r} and {task!r}")
    try:
        one = Counted(successes=int(successes), trials=int(trials))
    except ValueError:
        raise _wrong_line(path, number, "whole numbers", f"{successes!r} of {trials!r}") from None
    if not (1 <= one.trials <= MOST and 0 <= one.successes <= one.trials):
        raise _wrong_line(path, number, "0 to as many successes as trials, at least 1", f"{successes} of {trials}")
    return policy, task, one


def _wrong_line(path: Path, number: int, expected: str, found: str) -> DataError:
    return DataError(path, expected=expected, found=f"{found} in line {number}", fix=COUNTS_FIX)
