"""Policies and success classifiers in folders, as `worldline policies` makes them, as parts of a ranking.

A folder may be a whole set (`OUT/TASK/NAME/config.json`) or one policy (`NAME/config.json`), which is for the task that
it says it was made for.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from worldline.files import read_json
from worldline.judges.success import load_success
from worldline.policies import found, identity, load
from worldline.policies.folder import CONFIG, SUCCESS
from worldline.ranking.actors import Contender
from worldline.ranking.given import policies_of
from worldline.ranking.protocol import Reader
from worldline.schema import UsageError
from worldline.twin.tasks import TASKS


def contenders_of(folder: Path | None, specs: Iterable[str]) -> list[Contender]:
    """All policies that take part: those of a folder, and a user's own.

    Raises `UsageError` where the folder holds none, or a user's own cannot be found.
    """
    own = policies_of(specs)
    if folder is None:
        return own
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of policies; make one: worldline policies {folder}")
    if (folder / CONFIG).exists():
        task = read_json(folder / CONFIG).get("made", {}).get("task")
        return [_of_folder(folder, task), *own]
    tasks = [task for task in TASKS if any((folder / task).glob(f"*/{CONFIG}"))]
    if not tasks:
        raise UsageError(f"{folder} holds no policy of any task; make some: worldline policies {folder}")
    return [*(_of_folder(path, task) for task in tasks for path in found(folder, task).values()), *own]


def _of_folder(path: Path, task: str | None) -> Contender:
    # What it does is decided by these files alone, and a policy is made anew for each ranking.
    make = partial(load, path)
    return Contender(label=path.resolve().name, make=make, identity=identity(path), task=task, origin=str(path))


def tasks_of(contenders: Sequence[Contender]) -> tuple[str, ...]:
    """The tasks that the policies are for; all of the twin's where none of them says."""
    return tuple(dict.fromkeys(one.task for one in contenders if one.task is not None)) or tuple(TASKS)


def classifier_of(policies: Path | None, given: Path | None) -> Reader | None:
    """The success classifier in the folder that is given, or beside the policies; None where there is none."""
    if given is not None:
        return load_success(given)
    if policies is not None and (policies / SUCCESS / CONFIG).exists():
        return load_success(policies / SUCCESS)
    return None
