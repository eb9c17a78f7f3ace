"""Python as a notebook uses it: imported in no time, typed, and each function does what its verb does."""

import ast
import inspect
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from builders import write_squares

import worldline
from worldline import builtin
from worldline.api import ResumeOptions
from worldline.evaluation.evaluate import EvaluateOptions
from worldline.families.config import LoadOptions
from worldline.forecasts import ForecastOptions
from worldline.formats.open import OpenOptions
from worldline.ranking.rank import RankOptions
from worldline.recipes import RECIPES
from worldline.schema import UsageError

needs_builtins = pytest.mark.skipif(not builtin.COMPRESSION_TINY.is_dir(), reason="no built-in checkpoints")
SMALL = {"levels": [8, 5, 5], "widths": [8, 16], "blocks": [1, 1], "kernel": 3}


def _seconds(code: str) -> float:
    """Of a processor, so that what else runs here does not count."""
    began = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    ended = os.times()
    return ended.children_user + ended.children_system - began.children_user - began.children_system


def test_importing_takes_no_time_and_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'tyro', 'av', 'pyarrow'}"
    subprocess.run([sys.executable, "-c", f"import sys, worldline; assert not {heavy} & set(sys.modules)"], check=True)
    with_it, without = (min(_seconds(code) for _ in range(3)) for code in ("import worldline", "pass"))
    assert with_it - without < 0.3, "a generous bound: it is a few hundredths"


def test_every_function_is_there_typed_and_documented() -> None:
    (checked,) = (
        node for node in ast.parse(inspect.getsource(worldline)).body if isinstance(node, ast.If)
    )  # what a type checker sees
    assert isinstance(checked.body[0], ast.ImportFrom)
    assert sorted(name.name for name in checked.body[0].names) == sorted(worldline.__all__)
    assert set(worldline.__all__) <= set(dir(worldline))
    assert (Path(worldline.__file__).parent / "py.typed").exists()
    for name in worldline.__all__:
        function = getattr(worldline, name)
        assert "Raises:" in (inspect.getdoc(function) or ""), name
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty
    with pytest.raises(AttributeError, match="no attribute 'forcast'"):
        worldline.forcast  # noqa: B018


TAKING = {
    "open_data": OpenOptions,
    "load": LoadOptions,
    "forecast": ForecastOptions,
    "evaluate": EvaluateOptions,
    "rank": RankOptions,
    "resume": ResumeOptions,
}


@pytest.mark.parametrize(("name", "options"), TAKING.items())
def test_options_are_named_in_the_signature_and_in_the_help(name: str, options: type) -> None:
    function = getattr(worldline, name)
    names = [field.name for field in fields(options)]
    assert function.__name__ == name
    assert list(inspect.signature(function).parameters)[1:] == names
    assert [one for one in names if f"\n    {one}:" not in function.__doc__] == []


def test_wrong_names_and_values_are_refused() -> None:
    with pytest.raises(UsageError, match="colour"):
        worldline.load("compression-tiny", colour="blue")
    with pytest.raises(UsageError, match=r"format.*'mp4'"):
        worldline.forecast("compression-tiny", format="gif")
    with pytest.raises(UsageError, match="there is no recipe 'compresion'"):
        worldline.train("compresion")
    with pytest.raises(UsageError, match="stps"):
        worldline.train("compression_tiny", stps=3)
    with pytest.raises(UsageError, match="would change nothing"):
        worldline.train("compression_tiny", data={"cache_size": 96})
    with pytest.raises(UsageError, match="absent does not exist"):
        worldline.open_data("absent")
    with pytest.raises(UsageError, match="load takes its options by name, and 'best' has none"):
        worldline.load("compression-tiny", "best")  # pyright: ignore[reportCallIssue]
    with pytest.raises(UsageError, match="over tokens: --guidance, --steps would change nothing"):
        worldline.load("compression-tiny", steps=50, guidance=2.0)
    with pytest.raises(UsageError, match="over latents: --mixture would change nothing"):
        worldline.load("sampling-tiny", mixture=8)


@needs_builtins
def test_the_lines_of_a_notebook(tmp_path: Path) -> None:
    data = worldline.open_data("twin-mini-val")
    world = worldline.load("compression-tiny", device="cpu")
    clip = data.read(0, 0, 34)
    assert clip.frames is not None
    forecast = world.forecast(clip.frames[None, :17], clip.states[None])
    assert forecast.frames.shape == (1, 1, 17, 3, 64, 64)
    assert forecast.frames.dtype == torch.uint8
    (video,) = worldline.forecast("compression-tiny", clips=[0], out=str(tmp_path), device="cpu")
    assert video == tmp_path / "clip_00000.mp4"
    assert video.exists()
    quick = {"num_clips": 2, "condition_samples": 0}
    evaluation = worldline.evaluate("compression-tiny", **quick, out=tmp_path / "judged", device="cpu")
    assert {"forecast", "copy_last", "reconstruction"} <= {row.id for row in evaluation.rows}
    assert (tmp_path / "judged/metrics.json").exists()


def test_a_run_is_trained_changed_and_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_squares(tmp_path / "raw", 3, length=34)
    data = {"path": str(tmp_path / "raw"), "val_path": None, "train_episodes": ":-1", "val_episodes": "-1:"}
    data |= {"image_size": 16, "cache": str(tmp_path / "cache")}
    small = {"model": SMALL, "batch_size": 2, "validation_clips": 2, "device": "cpu"}
    done = worldline.train("tokenizer_tiny", out=tmp_path / "run", epochs=0.5, data=data, **small)
    assert (done.run, done.step) == (tmp_path / "run", done.total_steps)
    assert "run folder" in capsys.readouterr().err
    again = worldline.resume(tmp_path / "run", steps=done.step + 1)
    assert again.step == done.step + 1


def test_a_whole_configuration_is_trained_too() -> None:
    with pytest.raises(UsageError, match=r"absent \(--data.path PLACE\).*twin-mini-val"):
        worldline.train(RECIPES["tokenizer_tiny"](), data={"path": "absent"})
