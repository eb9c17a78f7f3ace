"""Threads: settings that OpenMP really gets, quotas of containers, what the user set, and ranks that share cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worldline import threads

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SETTINGS = (*threads.WAITING, *COUNTS, threads.CHOSEN, "LOCAL_WORLD_SIZE")
CLEAN = {name: value for name, value in os.environ.items() if name not in SETTINGS}


def _run(*command: str, **settings: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=CLEAN | settings)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def _python(code: str, **settings: str) -> str:
    return _run(sys.executable, "-c", code, **settings).strip()


# --- what a process gets ---


def test_openmp_has_the_settings_and_pytorch_the_threads() -> None:
    """GNU's OpenMP prints what it has read; other ones print the same names."""
    code = "import worldline, torch; print(torch.get_num_threads())"
    shown = _python(code, OMP_DISPLAY_ENV="VERBOSE")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown
    assert "GOMP_SPINCOUNT = '1000'" in shown or "GOMP" not in shown
    assert f"\n{threads.number()}\n" in f"\n{shown}\n"


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "worldline"],
        pytest.param([str(Path(sys.executable).parent / "worldline")], marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_the_command_line_chooses_before_pytorch_is_loaded(command: list[str]) -> None:
    shown = _run(*command, "plan", "--help", OMP_DISPLAY_ENV="TRUE")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown


def test_processes_that_are_started_choose_for_themselves() -> None:
    """As the twin's workers are, and ranks that share the cores their parent had."""
    child = "import os, worldline; print(os.environ['OMP_NUM_THREADS'])"
    code = (
        f"{child}; import subprocess, sys; os.environ['LOCAL_WORLD_SIZE'] = '1000'\n"
        f"print(subprocess.run([sys.executable, '-c', {child!r}], stdout=-1, text=True).stdout)"
    )
    assert _python(code).split() == [str(threads.number()), "1"]


@pytest.mark.slow
def test_with_pytorch_loaded_first_their_number_is_only_brought_down() -> None:
    code = """
import os, torch
def chosen(before):
    torch.set_num_threads(before)
    from worldline.threads import choose
    choose()
    return torch.get_num_threads()
print(chosen(1), chosen(1000))
os.environ["OMP_NUM_THREADS"] = "7"
print(chosen(7))
"""
    assert _python(code).split() == ["1", str(threads.number()), "7"]


# --- whose word counts ---


@pytest.mark.parametrize("name", COUNTS)
def test_a_number_that_the_user_set_stays(name: str) -> None:
    environment = {name: "3"}
    threads.choose(environment)
    assert {key: environment.get(key) for key in COUNTS} == {key: "3" if key == name else None for key in COUNTS}


@pytest.mark.parametrize("name", threads.WAITING)
def test_a_way_of_waiting_that_the_user_set_stays_alone(name: str) -> None:
    environment = {name: "ACTIVE"}
    threads.choose(environment)
    assert {key: environment.get(key) for key in threads.WAITING} == {
        key: "ACTIVE" if key == name else None for key in threads.WAITING
    }


def test_ranks_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "allowed_cores", lambda: 16)
    monkeypatch.setattr(threads, "cpu_quota", lambda: 11.5)
    for ranks, expected in ((None, "12"), ("2", "6"), ("8", "1"), ("100", "1")):
        environment = {} if ranks is None else {"LOCAL_WORLD_SIZE": ranks}
        threads.choose(environment)
        assert environment["OMP_NUM_THREADS"] == expected
    torchrun = {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}  # as it sets it where nobody has
    threads.choose(torchrun)
    assert torchrun["OMP_NUM_THREADS"] == "1"


# --- how many ---


def _quota(root: Path, membership: str, files: dict[str, str]) -> float | None:
    (root / "self").write_text(membership)
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return threads.cpu_quota(root / "cgroup", root / "self")


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n", "cpu.max": "800000 100000"}, 4.0),
        ("0::/of/the/host\n", {"cpu.max": "50000 50000\n"}, 1.0),
        ("0::/\n", {}, None),
        ("4:cpu,cpuacct:/\n1:name=systemd:/x\n", {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n"}, None),
        (
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        (
            "9:cpuset:/\n1:cpu:/jobs/7\n0::/\n",
            {"cpu/jobs/7/cpu.cfs_quota_us": "20000\n", "cpu/jobs/7/cpu.cfs_period_us": "10000\n"},
            2.0,
        ),
        ("1:cpu:/\n0::/u\n", {"unified/u/cpu.max": "300000 100000\n"}, 3.0),
        ("", {"cpu.max": "100000 100000"}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
    ],
)
def test_quotas_of_containers(tmp_path: Path, membership: str, files: dict[str, str], expected: float | None) -> None:
    assert _quota(tmp_path, membership, files) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert threads.cpu_quota(tmp_path / "cgroup", tmp_path / "self") is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be chosen on this system")
def test_processors_that_are_taken_away_do_not_count() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); import worldline"
    assert _python(code + "; print(os.environ['OMP_NUM_THREADS'])") == "1"


def test_two_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5}, raising=False)
    for cpu, siblings in ((0, "0,4"), (4, "0,4"), (1, "1,5"), (5, "1,5")):
        file = tmp_path / f"cpu{cpu}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(siblings + "\n")
    assert threads.allowed_cores(tmp_path) == 2
    assert threads.allowed_cores(tmp_path / "absent") == 4
