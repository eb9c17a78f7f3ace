"""The built-in worlds score what they scored before: figures stored beside the tests, and the published ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import do

from worldline.evaluation import engine, rows
from worldline.metrics.table import METRICS

ROOT = Path(__file__).parents[1]
STORED: dict[str, Any] = json.loads((ROOT / "tests/figures/builtins.json").read_text())
"""Of the built-ins of 2026-11-26: the world over tokens recorded with worldline 5ae96b6, its figures in pixels, whose
tokenizer has another decoder since, with 3f6be78; the world over latents with 10c82f6."""
OF_ALL_SAMPLES = {"mean_20", "medoid", "sample_blurred"}
"""Rows of the published table that are made of all of its samples."""
ROUNDING = 0.005
"""Share of a figure by which processors may differ: near ties of tokens and of grey levels fall either way."""


def _scored(arguments: str, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, float]]:
    capsys.readouterr()
    do("evaluate", [*arguments.split(), "--device", "cpu", "--json", "--out", str(out)])
    found = json.loads(capsys.readouterr().out)
    return {row["id"]: {name: value["mean"] for name, value in row["metrics"].items()} for row in found["rows"]}


def _agree(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    """Rows and metrics younger than the stored figures are left out, and metrics whose weights are not here."""
    assert found.keys() >= expected.keys()
    for row, metrics in expected.items():
        known = {name: mean for name, mean in metrics.items() if name in found[row] or not METRICS[name].learned}
        same = {name: found[row].get(name) for name in known}
        assert same == pytest.approx(known, rel=ROUNDING, abs=ROUNDING), row


@pytest.mark.parametrize("protocol", ["compression", "sampling"])
def test_a_built_in_world_scores_as_before(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without studies and the conditions that are theirs alone: they have no stored figure and take most time."""
    stored = STORED[protocol]
    needed = {id: entry for id, entry in rows.ROWS.items() if id not in rows.CONDITIONS or id in stored["rows"]}
    for module in (rows, engine):
        monkeypatch.setattr(module, "ROWS", needed)
    monkeypatch.setattr(engine, "STUDIES", {})
    _agree(_scored(stored["arguments"], tmp_path, capsys), stored["rows"])


@pytest.mark.slow
def test_a_built_in_world_scores_what_is_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows that need five samples at most, without the conditions of its audit, which take most of the time; tests
    of receipts verify the other world."""
    content = json.loads((ROOT / "docs/results/sampling_tiny.json").read_text())
    published = {row["id"]: {name: value["mean"] for name, value in row["metrics"].items()} for row in content["rows"]}
    arguments = "sampling-tiny --num-clips 24 --window-stride 43 --num-samples 5 --batch-size 2 --condition-samples 0"
    found = _scored(arguments, tmp_path, capsys)
    same = found.keys() & published.keys() - OF_ALL_SAMPLES
    assert len(same) > 6
    _agree(found, {row: published[row] for row in same})
