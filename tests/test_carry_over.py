"""Runs of the version before the names of 2026-11-25 are carried over: the four built-ins of then, before and after."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from worldline.families.card import describe_model
from worldline.families.config import read_config
from worldline.rundir import RunDir

ROOT = Path(__file__).parents[1]
BEFORE, AFTER = (ROOT / "tests/figures" / when for when in ("before", "after"))
NAMES = sorted(path.stem for path in BEFORE.glob("*.json"))


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("carry_over", ROOT / "scripts/carry_over.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def _written(stored: Path, folder: Path) -> Path:
    folder.mkdir()
    for name, content in json.loads(stored.read_text(encoding="utf-8")).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_what_a_run_said_then_it_says_today(name: str, tmp_path: Path) -> None:
    run, today = (_written(when / f"{name}.json", tmp_path / when.name) for when in (BEFORE, AFTER))
    script = _script()
    script.main([run])
    card, same = describe_model(run), describe_model(today)
    assert (card.config, card.contract) == (same.config, same.contract)
    assert card.identity.tokenizer == same.identity.tokenizer
    assert read_config(RunDir(run)).model == read_config(RunDir(today)).model
    assert read_config(RunDir(run)).optimizer == read_config(RunDir(today)).optimizer
    assert not script.rewrite(run / "model.json"), "a second time nothing is left to do"
    assert (run / "model.before.json").exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no config"):
        _script().main([tmp_path])
