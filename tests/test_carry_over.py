"""Runs of the version before the names of 2026-11-25 are carried over: the four built-ins as they were then."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from worldline import builtin
from worldline.families.card import describe_model
from worldline.families.config import read_config
from worldline.rundir import RunDir

ROOT = Path(__file__).parents[1]
BEFORE = sorted((ROOT / "tests/figures/before").glob("*.json"))


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("carry_over", ROOT / "scripts/carry_over.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.mark.parametrize("before", BEFORE, ids=lambda path: path.stem)
def test_what_a_run_said_then_it_says_today(before: Path, tmp_path: Path) -> None:
    for name, content in json.loads(before.read_text(encoding="utf-8")).items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    script, today = _script(), builtin.ASSETS / before.stem
    script.main([tmp_path])
    card, same = describe_model(tmp_path), describe_model(today)
    assert (card.config, card.contract) == (same.config, same.contract)
    assert card.identity.tokenizer == same.identity.tokenizer
    assert read_config(RunDir(tmp_path)).model == read_config(RunDir(today)).model
    assert read_config(RunDir(tmp_path)).optimizer == read_config(RunDir(today)).optimizer
    assert not script.rewrite(tmp_path / "model.json"), "a second time nothing is left to do"
    assert (tmp_path / "model.before.json").exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no config"):
        _script().main([tmp_path])
