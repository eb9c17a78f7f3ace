"""A full disk ends a job with one line that names the file and the room there is, and leaves nothing half-written."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import write_followed_tokens
from lerobot_rules import faults

from worldline.cli import main as entry
from worldline.files import DiskFullError, atomic, npy_rows, write_array, write_json
from worldline.formats.lerobot.write import Export, Provenance, Recorded, add_episodes
from worldline.formats.video import encode
from worldline.rundir import RunDir, new_folder, write_model

SIZE = 96 * 1024
FRAMES = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for little."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _rows(path: Path) -> None:
    with npy_rows(path, "f4", (64, 1024)) as write:
        for _ in range(64):
            write(np.ones((1, 1024), np.float32))


def _checkpoint(path: Path) -> None:
    with new_folder(path) as folder:
        write_model(folder, {"config": {}}, {"weight": torch.ones(64, 1024)})


def _described(path: Path) -> None:
    with new_folder(path) as folder:
        write_model(folder, {"config": "x" * 2 * SIZE}, {"weight": torch.ones(1)})


def _log(path: Path) -> None:
    for step in range(10_000):
        RunDir(path.parent).log({"step": step, "train/loss": 0.123456789})


def _arrays(path: Path) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, frames=FRAMES)


WRITERS: list[tuple[str, Callable[[Path], object]]] = [
    ("table.json", lambda path: write_json(path, {"text": "x" * 2 * SIZE})),
    ("states.bin", lambda path: write_array(path, np.ones(SIZE, np.float32))),
    ("frames.npy", _rows),
    ("step_0000002", _checkpoint),
    ("step_0000004", _described),
    ("metrics.jsonl", _log),
    ("forecasts.npz", _arrays),
    ("video.mp4", lambda path: encode(path, FRAMES, fps=30.0)),
]


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_the_file_is_named_and_nothing_half_written_is_left(
    name: str, write: Callable[[Path], object], small_disk: Path
) -> None:
    with pytest.raises(DiskFullError, match=rf"{name}: no room to write it \(0\.\d MB are free in .*disk\)"):
        write(small_disk / name)
    left = [path.name for path in small_disk.iterdir()]
    assert left == (["metrics.jsonl"] if name == "metrics.jsonl" else [])
    if left:
        assert [line["step"] for line in RunDir(small_disk).logged()][:2] == [0, 1]


def test_what_was_there_stays(small_disk: Path) -> None:
    write_json(small_disk / "table.json", {"kept": True})
    with pytest.raises(DiskFullError):
        write_json(small_disk / "table.json", {"text": "x" * 2 * SIZE})
    assert "kept" in (small_disk / "table.json").read_text()


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_lerobot_data_set_that_cannot_be_added_to_stays_as_it_was(version: Any, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={6 * SIZE}", str(small_disk)], check=True)
    frames = np.tile(FRAMES, (10, 1, 1, 1))
    small, large = (_episode(name, count) for name, count in (("small", frames[:2]), ("large", frames)))
    add_episodes(small_disk / "d", _export(version), [small])
    before = {path: path.read_bytes() for path in (small_disk / "d").rglob("*") if path.is_file()}
    with pytest.raises(DiskFullError, match=r"\.mp4: no room to write it"):
        add_episodes(small_disk / "d", _export(version), [large], append=True)
    assert {path: path.read_bytes() for path in before} == before
    assert faults(small_disk / "d") == []
    assert add_episodes(small_disk / "d", _export(version), [small]).reused == 1


def _export(version: Any) -> Export:
    names: dict[str, Any] = {"state_names": ("lift",), "state_kinds": ("other",), "action_names": ("lift",)}
    return Export(version=version, fps=30.0, size=(64, 64), actions="next_state", **names)


def _episode(name: str, frames: np.ndarray) -> Recorded:
    rows = np.zeros((len(frames), 1), np.float32)
    return Recorded(
        frames=lambda: iter([frames]),
        states=rows,
        actions=rows,
        real=np.ones(len(frames), bool),
        source_frames=np.arange(len(frames)),
        uncertainty=lambda: rows[:, 0],
        task="none",
        provenance=Provenance(source="s", episode=name, recording=name),
    )


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "absent/table.json", {})
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "x"):
        raise ZeroDivisionError


def test_a_limit_on_the_size_of_files_is_told_too(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DiskFullError, match=r"states\.bin: no room to write it"):
            write_array(tmp_path / "states.bin", np.ones(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_training_ends_with_1_and_one_line(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_followed_tokens(tmp_path / "train", 4)
    write_followed_tokens(tmp_path / "val", 2, seed=1)
    words = f"train compression_any --data.path {tmp_path}/train --data.val-path {tmp_path}/val --tokenizer None"
    words += " --model.width 64 --model.heads 2 --model.layers 1 --model.code-levels --steps 4 --batch-size 2"
    words += f" --checkpoint-every 1 --evaluate-every 2 --validation-clips 2 --device cpu --out {small_disk}/run"
    monkeypatch.setattr(sys, "argv", ["worldline", *words.split()])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1, said
    assert "Traceback" not in said
    assert "worldline train: failed: " in said.splitlines()[-1]
    assert "no room to write it" in said.splitlines()[-1]
    assert list(small_disk.rglob(".*.tmp")) == []
