"""Evaluations and forecasts that were stopped go on where they were, and end with the bytes of those that were not."""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import GRID_200, SMALL_WORLD, small_tokenizer, small_world, write_squares
from commands import do
from latent_builders import small_vae
from processes import command, ended
from test_forecast_files import write_latent_world, write_test_tokens, write_tokenizer, write_world

from worldline.data.clips import Clips
from worldline.evaluation.engine import PARTS
from worldline.files import read_json
from worldline.forecasts import read_forecasts
from worldline.rundir import write_model
from worldline.schema import Clip, DataError
from worldline.worlds.st_transformer import STTransformer

Kind = str
KINDS = ("compression", pytest.param("sampling", marks=pytest.mark.slow), "tokenizer")


def _words(kind: Kind, root: Path) -> list[str]:
    """The command that judges a small model of a kind, which is made, on six clips in batches of two."""
    data = write_squares(root / "data", 3, length=154 if kind == "sampling" else 68)
    if kind == "sampling":
        vae, _ = small_vae(root / "vae")
        judged = [write_latent_world(root / "model", vae), "--tokenizer", vae, "--num-samples", 2, "--steps", 1]
    elif kind == "compression":
        judged = [write_world(root / "model"), "--tokenizer", write_tokenizer(root / "tokenizer")]
        judged += ["--temperature", 1]
    else:
        judged = [write_tokenizer(root / "model")]
        (root / "model/model.json").write_text(json.dumps(_with_contract(root / "model")))
    words = [*judged, "--data", data, "--num-clips", 6, "--batch-size", 2, "--device", "cpu"]
    return [str(word) for word in words]


def _with_contract(model: Path) -> dict[str, Any]:
    """A tokenizer's description that says what data it was trained on, as training writes it."""
    grid = small_tokenizer().grid(16, 16)
    contract = {"fps": 30.0, "image_size": None, "conditioning": "state", "camera": None}
    contract |= {
        "state_names": ["elbow", "gripper"],
        "state_kinds": ["angle", "binary"],
        "source_kind": "1x-raw",
        "pattern": {"window": grid.block},
    }
    return read_json(model / "model.json") | {"contract": contract | {"grid": vars(grid)}}


class Read(list[int]):
    """Numbers of clips that were read to be scored or forecast."""

    most: int | None = None

    def stop(self, verb: str, words: list[str], after: int) -> None:
        """Press Ctrl-C when one more clip than so many is read."""
        self.clear()
        self.most = after
        with pytest.raises(KeyboardInterrupt):
            do(verb, words)
        self.clear()
        self.most = None


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """The clips that are read from here on, and when Ctrl-C is pressed."""
    read, plain = Read(), Clips.__getitem__

    def reading(self: Clips, key: int) -> Clip:
        where = Path(sys._getframe(1).f_code.co_filename).name  # beartype looks at some clips, too
        if where in ("engine.py", "forecasts.py"):
            if len(read) == read.most:
                raise KeyboardInterrupt
            read.append(key)
        return plain(self, key)

    monkeypatch.setattr(Clips, "__getitem__", reading)
    return read


def _found(out: Path) -> tuple[dict[str, Any], str]:
    """What an evaluation wrote, but for the clock and the machine; frames as a hash of the file."""
    content = json.loads((out / "metrics.json").read_text())
    frames = out / "forecasts.npz"
    digest = hashlib.sha256(frames.read_bytes()).hexdigest() if frames.exists() else ""
    return {name: content[name] for name in content.keys() - {"seconds", "environment"}}, digest


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_that_was_stopped_goes_on(
    kind: Kind, tmp_path: Path, read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _words(kind, tmp_path)
    if kind == "compression":  # the slow test of the other track goes on with all conditions of the audit
        words += ["--condition-samples", "0"]
    do("evaluate", [*words, "--out", str(tmp_path / "whole")])
    out, again = tmp_path / "out", [*words, "--out", str(tmp_path / "out")]
    for clips in (5, 1):  # in the third batch, then in the third batch again
        read.stop("evaluate", again, after=clips)
        assert not (out / "metrics.json").exists()
        assert len(list(out.glob(f"{PARTS}/*/batch_*"))) == 2
    newest = max(out.glob(f"{PARTS}/*/batch_*"))
    newest.write_bytes(newest.read_bytes()[:-1])  # as a machine that lost its power may leave it
    (newest.parent / ".batch_000004.pt.123.tmp").write_bytes(b"killed while it was written")
    capsys.readouterr()
    do("evaluate", again)
    assert "1 batches were there already" in capsys.readouterr().err
    assert len(read) == 4, "two batches"
    assert _found(out) == _found(tmp_path / "whole")
    assert not (out / PARTS).exists()
    assert not (tmp_path / "whole" / PARTS).exists()


@pytest.mark.slow
def test_parts_of_anything_else_are_not_used(tmp_path: Path, read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*_words("compression", tmp_path), "--out", str(tmp_path / "out")]

    def key(*more: str, after: int = 0) -> str:
        """Stop after so many clips; says of which evaluation parts are there then."""
        read.stop("evaluate", [*words, *more], after=after)
        (folder,) = (tmp_path / "out" / PARTS).iterdir()
        return folder.name

    keys = [key(after=2), key("--seed", "1")]
    assert "removed what was scored" in capsys.readouterr().err
    keys += [key("--batch-size", "1"), key("--temperature", "0.5"), key("--condition-samples", "0")]
    keys += [key("--studies", "drift"), key("--window-stride", "17"), key("--episodes", ":2")]
    _retrain(tmp_path / "other", 2, unconditional=True)
    keys.append(key("--unconditional", str(tmp_path / "other")))
    _retrain(tmp_path / "other", 3, unconditional=True)
    keys.append(key("--unconditional", str(tmp_path / "other")))
    (tmp_path / "moved").mkdir()
    (tmp_path / "data").rename(tmp_path / "moved/data")
    words[words.index(str(tmp_path / "data"))] = str(tmp_path / "moved/data")
    assert key() == keys[0], "what was moved is the same"
    _retrain(tmp_path / "model", 1)
    keys.append(key())
    data = next((tmp_path / "moved/data").rglob("*.bin"))
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    keys.append(key())
    assert len(set(keys)) == len(keys)


def _retrain(model: Path, seed: int, *, unconditional: bool = False) -> None:
    """Other weights of the same shapes; `unconditional`: of a world without states."""
    if not model.exists():
        write_world(model)
    description = read_json(model / "model.json")
    config = replace(SMALL_WORLD, unconditional=unconditional)
    world: STTransformer = small_world(config, seed, GRID_200)
    description["config"]["unconditional"] = unconditional
    write_model(model, description, world.state_dict())


# --- forecasts ---


def _times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("sample_*")}


def test_forecasts_that_are_there_are_kept(tmp_path: Path, read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_test_tokens(tmp_path / "data"), tmp_path / "out"
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    words = [write_world(tmp_path / "model"), "--data", data, "--tokenizer", tokenizer, "--format", "png"]
    words = [str(word) for word in (*words, "--rows", 1, "--temperature", 1, "--device", "cpu", "--out", out)]
    do("forecast", [*words[:-1], str(tmp_path / "whole")])
    read.stop("forecast", words, after=2)
    with pytest.raises(DataError, match=r"forecast\.json"):
        read_forecasts(out)
    stopped = _times(out)
    assert len(stopped) == 2
    (out / ".sample_2.123.tmp").mkdir()
    (out / ".sample_2.123.tmp/frame").write_bytes(b"killed while it was written")
    capsys.readouterr()
    do("forecast", words)
    assert "2 of 3 forecasts were there already" in capsys.readouterr().err
    assert stopped.items() < _times(out).items()
    assert _bytes(out) == _bytes(tmp_path / "whole")

    whole = _times(out)
    do("forecast", words)
    assert "3 of 3" in capsys.readouterr().err
    assert _times(out) == whole
    for change in ("seed", "weights"):
        if change == "seed":
            words += ["--seed", "1"]
        else:
            _retrain(tmp_path / "model", 1)
        read.stop("forecast", words, after=1)
        assert len(_times(out)) == 1, "those of another forecast are gone"
        do("forecast", words)
        assert "1 of 3" in capsys.readouterr().err
        assert not whole.items() & _times(out).items()
        whole = _times(out)
    assert len(read_forecasts(out)) == 3


def _bytes(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


# --- killed ---


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_an_evaluation_that_is_killed_again_and_again_ends_as_one_that_was_not(
    end: signal.Signals, tmp_path: Path
) -> None:
    if signal.getsignal(end) is signal.SIG_IGN:
        pytest.skip(f"{end.name} is ignored here, as a shell has it for what runs in its background")
    few = ["--batch-size", "1", "--studies", "drift", "--out"]
    words, out = [*_words("compression", tmp_path), *few], tmp_path / "out"
    do("evaluate", [*words, str(tmp_path / "whole")])
    before = kills = 0
    for _ in range(3):
        # Behind this process, or it ends before this one looks again.
        process = command(["evaluate", *words, out], nice=19)
        while process.is_alive() and len(list(out.glob(f"{PARTS}/*/batch_*"))) <= before:
            time.sleep(0.002)
        os.kill(process.pid or 0, end)
        if ended(process) == 0 and kills:
            break
        if process.exitcode == 0:
            shutil.rmtree(out)
            continue
        kills, before = kills + 1, len(list(out.glob(f"{PARTS}/*/batch_*")))
    assert kills, "it was killed at least once while it ran"
    do("evaluate", [*words, str(out)])
    assert _found(out) == _found(tmp_path / "whole")
    left = sorted(path.name for path in out.iterdir())
    assert left == ["forecasts.npz", "metrics.json", "receipt.json", "scores.npz"]
