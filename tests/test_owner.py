"""One owner per folder: many starters, killed owners, failures that leave nothing behind, content that never mixes."""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from worldline.owner import Claim, owned
from worldline.schema import UsageError

FORK = multiprocessing.get_context("fork")  # a process in a millisecond; none of them computes


def _claim(**key: Any) -> Claim:
    return Claim(file="tokens.json", key=key or {"size": 64}, what="tokens")


def _started(count: int, work: Callable[[int], str]) -> list[str]:
    """Have processes do work at the same moment; what each returned, or what it died of."""
    barrier, answers = FORK.Barrier(count), FORK.SimpleQueue()

    def run(number: int) -> None:
        barrier.wait()
        try:
            answers.put(work(number))
        except BaseException as error:
            answers.put(f"{type(error).__name__}: {error}")

    processes = [FORK.Process(target=run, args=(i,)) for i in range(count)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return found


def _refused(folder: Path, claim: Claim | None = None, *, match: str) -> None:
    with pytest.raises(UsageError, match=match), owned(folder, claim=claim):
        pass


def _failing(folder: Path, claim: Claim | None, *, writes: str | None = None) -> None:
    with pytest.raises(KeyError), owned(folder, claim=claim):  # noqa: PT012
        (folder / "videos").mkdir()
        if writes:
            (folder / "videos" / writes).touch()
        else:
            (folder / "videos").rmdir() if claim is None else None
        raise KeyError


# --- many at once ---


@pytest.mark.slow
def test_eight_who_wait_come_in_one_after_the_other(tmp_path: Path) -> None:
    def work(number: int) -> str:
        warnings.simplefilter("ignore")  # told that they wait: tested below
        with owned(tmp_path / f"cache{turn}", claim=_claim(), wait=True):
            for what in ("in", "out"):
                with (tmp_path / f"log{turn}").open("a") as log:
                    log.write(f"{number} {what}\n")
        return "done"

    for turn in range(2):
        assert _started(8, work) == ["done"] * 8
        lines = (tmp_path / f"log{turn}").read_text().splitlines()
        assert len(lines) == 16
        assert all(first.replace("in", "out") == second for first, second in zip(lines[::2], lines[1::2], strict=True))
        assert [path.name for path in (tmp_path / f"cache{turn}").iterdir()] == ["tokens.json"]


@pytest.mark.slow
def test_of_eight_who_do_not_wait_one_comes_in_and_the_others_are_told(tmp_path: Path) -> None:
    for turn in range(10):
        all_tried = FORK.Barrier(8)

        def work(number: int, folder: Path = tmp_path / f"{turn}/run", all_tried: Any = all_tried) -> str:
            try:
                with owned(folder):
                    (folder / "metrics.jsonl").write_text(str(number))
                    all_tried.wait()
                return "done"
            except UsageError as error:
                all_tried.wait()
                return str(error)

        found = _started(8, work)
        assert found.count("done") == 1, found
        assert sum("is in use by" in text for text in found) == 7, found
        assert [path.name for path in (tmp_path / f"{turn}/run").iterdir()] == ["metrics.jsonl"]


def test_eight_who_fail_leave_nothing_and_one_who_does_not_is_undisturbed(tmp_path: Path) -> None:
    """Each removes the folder that it made while the others are about to lock it."""

    def work(number: int) -> str:
        warnings.simplefilter("ignore")
        with owned(tmp_path / "deep/cache", wait=True):
            if number == 3:
                (tmp_path / "deep/cache/frames").touch()
                return "done"
            raise KeyError(number)

    found = _started(8, work)
    assert sorted(found) == sorted(["done", *(f"KeyError: {i}" for i in range(8) if i != 3)])
    assert [path.name for path in (tmp_path / "deep/cache").iterdir()] == ["frames"]


# --- owners that end ---


def test_kill_minus_nine_frees_the_folder(tmp_path: Path) -> None:
    inside, run = FORK.Event(), tmp_path / "run"

    def hold() -> None:
        with owned(run):
            inside.set()
            signal.pause()

    process = FORK.Process(target=hold, daemon=True)
    process.start()
    inside.wait()
    assert process.pid is not None
    _refused(run, match=rf"run is in use by process {process.pid} on \S+ since 20[-0-9]+ [:0-9]+ \(.*\S\)")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with owned(run):
        (run / "config.json").touch()
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_whoever_waits_is_told_for_whom(tmp_path: Path) -> None:
    inside, leave = FORK.Event(), FORK.Event()

    def hold() -> None:
        with owned(tmp_path):
            inside.set()
            leave.wait()

    process = FORK.Process(target=hold, daemon=True)
    process.start()
    inside.wait()
    Timer(0.7, leave.set).start()
    with warnings.catch_warnings(record=True, action="always") as told, owned(tmp_path, wait=True):
        pass
    process.join()
    (message,) = (str(warning.message) for warning in told)  # once, however long it takes
    assert message.startswith(f"waiting for process {process.pid} on ")
    assert message.endswith(f", which is filling {tmp_path}")


# --- what is left ---


@pytest.mark.parametrize("claim", [None, _claim()])
def test_a_start_that_fails_leaves_nothing(tmp_path: Path, claim: Claim | None) -> None:
    _failing(tmp_path / "new/deep", claim)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    _failing(tmp_path / "there", claim)
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("place", ["link", "link/below"])
def test_a_link_to_nothing_is_refused_instead_of_tried_for_ever(tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "not_mounted")
    with pytest.raises(UsageError, match=r"link to .*not_mounted, which is not there"), owned(tmp_path / place):
        pass


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, where no folder can be made")
def test_a_place_where_no_folder_can_be_made_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be made"), owned(Path("/proc/worldline_test")):
        pass


def test_what_was_written_before_a_failure_stays_to_go_on_from(tmp_path: Path) -> None:
    _failing(tmp_path / "out", _claim(), writes="video_0.bin")
    with owned(tmp_path / "out", claim=_claim()):
        assert (tmp_path / "out/videos/video_0.bin").exists()


def test_contents_of_two_kinds_never_mix(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    _refused(tmp_path, _claim(), match="not empty and was not begun by this command")
    _refused(tmp_path / "notes.txt", match="is a file")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    for _ in range(2):
        with owned(tmp_path / "out", claim=_claim(size=64, pattern=(1, 2))):
            pass
    other = _claim(size=32, pattern=(1, 2))
    _refused(tmp_path / "out", other, match=r"tokens made with another size \(size: 64 there, 32 now\)")


def test_what_killed_writers_left_is_removed_where_nobody_else_writes(tmp_path: Path) -> None:
    for name, claim in (("run", None), ("out", _claim())):
        with owned(tmp_path / name, claim=claim):
            left = tmp_path / name / "sub/.metrics.json.99.tmp"
            left.parent.mkdir()
            left.touch()
        with owned(tmp_path / name, claim=claim):
            assert left.exists() == (claim is None), "in a run folder an evaluation may be writing it right now"
