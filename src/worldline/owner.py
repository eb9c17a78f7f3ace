"""One owner per folder: a lock that the operating system releases when its owner ends, in whatever way.

    FOLDER/.owner.lock     locked while somebody writes into the folder; absent or free otherwise
    FOLDER/.owner.json     who that is, for the messages of those who may not

Whatever writes a folder for long goes through `owned`; several ranks of one job are one owner (`Ranks.owning`). The
lock is `flock`: it holds between processes of one machine, and between machines on NFS version 4, CephFS and Lustre
with its option `flock`. A file system without it gets marker files and a warning; these outlive a killed owner.
"""

import json
import os
import shlex
import shutil
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from reprlib import repr as short
from typing import Any

from filelock import FileLock, Timeout

from worldline.files import read_json, remove_temporaries, write_json
from worldline.schema import DataError, UsageError

LOCK, OWNER = ".owner.lock", ".owner.json"
_OURS = {LOCK, OWNER}
_TRIES = 100  # to make a folder that others remove


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The inputs that decide a folder's content: `key` (values for JSON), kept there in `file`, never to be mixed."""

    file: str
    key: Mapping[str, Any]
    what: str
    """The content, for messages (`tokens`, `latents`)."""

    def check(self, folder: Path) -> bool:
        """Whether the folder is new. Raises `UsageError` where it holds content of another key, or something else."""
        if not (folder / self.file).exists():
            if any(path.name not in _OURS for path in folder.iterdir()):
                raise UsageError(f"{folder} is not empty and was not begun by this command; choose another folder")
            return True
        found, wanted = read_json(folder / self.file), json.loads(json.dumps(self.key))  # JSON knows no tuples
        if differing := [name for name in wanted if found.get(name) != wanted[name]]:
            shown = [f"{name}: {short(found.get(name))} there, {short(wanted[name])} now" for name in differing]
            raise UsageError(
                f"{folder} holds {self.what} made with another {', '.join(differing)} ({'; '.join(shown)}); "
                "choose another folder or remove it"
            )
        return False


@contextmanager
def owned(folder: Path, *, claim: Claim | None = None, wait: bool = False) -> Iterator[None]:
    """Inside, this process alone writes into `folder`, made if absent. A failure before any write leaves it as it was.

    Args:
        claim: what the folder's content depends on: kept in it, or compared; what killed owners left is removed.
        wait: for another owner instead of refusing, as for caches, where both want the same.

    Raises:
        UsageError: another process owns the folder, or it holds something else than `claim` says.
    """
    folder = Path(os.path.abspath(folder))  # a block may change the working directory
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock, new = _locked(folder, wait), False
    try:
        command, since = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}
        write_json(folder / OWNER, me)
        if claim:
            if new := claim.check(folder):
                write_json(folder / claim.file, dict(claim.key))
            remove_temporaries(folder)
        yield
    except BaseException:
        # Nothing but empty folders was written: the claim goes too.
        if claim and new and all(path.is_dir() or path.name in _OURS | {claim.file} for path in folder.rglob("*")):
            for path in filter(Path.is_dir, folder.iterdir()):
                shutil.rmtree(path)
            (folder / claim.file).unlink(missing_ok=True)
        raise
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        # While it is locked: whoever has opened it meanwhile sees that it lies nowhere, and opens the next one.
        (folder / LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # up to the first that holds something
            for path in made:
                path.rmdir()
        lock.release()


def _locked(folder: Path, wait: bool) -> FileLock:
    """The lock of a folder, taken."""
    patience, tries = 0, 0
    while True:
        lock = FileLock(folder / LOCK)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=patience, poll_interval=0.5)
            return lock
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
            tries += 1
            for path in (folder, *folder.parents):
                if path.exists() and not path.is_dir():
                    raise UsageError(f"{folder} is a file, or lies below one; choose another folder") from None
                if path.is_symlink() and not path.exists():
                    where = f"{path} is a link to {os.readlink(path)}, which is not there"
                    raise UsageError(f"{where}; mount or make that, or choose another folder") from None
            if tries == _TRIES:
                raise UsageError(f"{folder} cannot be made ({error.strerror}); choose another folder") from None
            # Else another owner failed, and removed the folder that it had made while it was asked for here.
        except Timeout:
            if not wait:
                text = f"{folder} is in use by {_owner(folder)}; wait for it to end, or choose another folder"
                raise UsageError(text) from None
            warnings.warn(f"waiting for {_owner(folder)}, which is filling {folder}", stacklevel=4)
            patience = -1


def _owner(folder: Path) -> str:
    try:
        return "process {pid} on {host} since {since} ({command})".format(**read_json(folder / OWNER))
    except (DataError, KeyError):  # it has not said so yet, or no longer
        return "another process"
