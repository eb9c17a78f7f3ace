"""Conversion to the 1X raw layout: faithful, resumable, and never half a data set to a reader."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import StoppedAfter
from data_builders import write_lerobot, write_tokens

from worldline.data.info import inspect
from worldline.encoding.encode import convert
from worldline.formats.open import open_source
from worldline.formats.video import resize
from worldline.schema import DataError, UsageError


def test_conversion_keeps_frames_states_and_rate(tmp_path: Path) -> None:
    source = open_source(write_lerobot(tmp_path / "d", "v3.0", names=["elbow", "gripper"]))
    report = convert(source, tmp_path / "out", size=16)
    assert (report.counts["episodes"], report.counts["frames"], report.counts["reused"]) == (3, 126, 0)
    result = open_source(tmp_path / "out")
    assert (result.kind, result.fps, result.image_size) == ("1x-raw", 30.0, (16, 16))
    assert result.layout == source.layout
    for episode in source.episodes:
        before, after = (s.read(episode.index, 0, episode.length) for s in (source, result))
        assert torch.equal(before.states, after.states)
        assert before.frames is not None
        assert after.frames is not None
        assert (resize(before.frames, 16).float() - after.frames.float()).abs().mean() < 2
    assert inspect(tmp_path / "out", thorough=True).problems == ()


def test_a_second_run_has_nothing_to_do_and_changes_nothing(tmp_path: Path) -> None:
    source = open_source(write_lerobot(tmp_path / "d", "v2.1"))
    convert(source, tmp_path / "out", size=None)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert convert(source, tmp_path / "out", size=None).counts["reused"] == 3
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_an_interrupted_run_is_refused_by_readers_and_resumed(tmp_path: Path) -> None:
    source = open_source(write_lerobot(tmp_path / "d", "v2.1"))
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", size=16, ranks=StoppedAfter(number=2))
    with pytest.raises(DataError, match="written last"):
        open_source(tmp_path / "out")
    assert convert(source, tmp_path / "out", size=16).counts["reused"] == 2
    assert len(open_source(tmp_path / "out").episodes) == 3


def test_half_written_files_are_cleared_and_written_again(tmp_path: Path) -> None:
    source = open_source(write_lerobot(tmp_path / "d", "v2.1"))
    out = tmp_path / "out"
    convert(source, out, size=16)
    whole = (out / "videos/video_1.mp4").read_bytes()
    # What a kill within shard 1 leaves: its video under a temporary name, no metadata of shard or folder.
    for path in (out / "metadata.json", out / "metadata/metadata_1.json", out / "videos/video_1.mp4"):
        path.unlink()
    (out / "videos/.video_1.mp4.123.tmp").write_bytes(whole[: len(whole) // 2])
    assert convert(source, out, size=16).counts["reused"] == 2
    assert (out / "videos/video_1.mp4").read_bytes() == whole
    assert list(out.rglob("*.tmp")) == []


@pytest.mark.slow  # a second Python has to import PyTorch
def test_a_killed_process_leaves_nothing_that_a_reader_accepts(tmp_path: Path) -> None:
    root, out = write_lerobot(tmp_path / "d", "v2.1", (60,) * 12), tmp_path / "out"
    script = (
        "from pathlib import Path; from worldline.encoding.encode import convert; "
        "from worldline.formats.open import open_source; "
        f"convert(open_source(Path({str(root)!r})), Path({str(out)!r}), size=128)"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    while process.poll() is None and not (out / "metadata/metadata_2.json").exists():
        time.sleep(0.005)
    process.kill()
    process.wait()
    if not (out / "metadata.json").exists():
        with pytest.raises(DataError, match="written last"):
            open_source(out)
    report = convert(open_source(root), out, size=128)
    assert report.counts["reused"] >= 3
    assert inspect(out, thorough=True).problems == ()
    assert len(open_source(out).episodes) == 12


def test_another_data_set_or_size_is_not_mixed_in(tmp_path: Path) -> None:
    source = open_source(write_lerobot(tmp_path / "d", "v2.1", (20,)))
    convert(source, tmp_path / "out", size=16)
    with pytest.raises(UsageError, match=r"a conversion made with another size \(size: 16 there, 8 now"):
        convert(source, tmp_path / "out", size=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("keep me")
    with pytest.raises(UsageError, match="not empty"):
        convert(source, tmp_path / "full", size=16)


def test_tokens_cannot_be_converted(tmp_path: Path) -> None:
    source = open_source(write_tokens(tmp_path / "t", np.zeros(100, np.int32)))
    with pytest.raises(UsageError, match="only video"):
        convert(source, tmp_path / "out", size=16)
