"""The built-in worlds score what they scored before: figures stored beside the tests, and the published ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import do

from worldline.evaluation.verify import numbers_of
from worldline.metrics.table import METRICS
from worldline.twin.simulation import can_draw

ROOT = Path(__file__).parents[1]
STORED: dict[str, Any] = json.loads((ROOT / "tests/figures/builtins.json").read_text())
"""Of the built-ins of 2026-11-27: the world over tokens recorded with worldline 5ae96b6, its figures in pixels, whose
tokenizer has another decoder since, with 3f6be78; the world over latents with 6e48b1f. What two studies found was
recorded with the commit that stored it, whose rows agreed with these."""
OF_ALL_SAMPLES = {"mean_20", "medoid", "sample_blurred"}
"""Rows of the published table that are made of all of its samples."""
ROUNDING = 0.005
"""Share of a figure by which processors may differ: near ties of tokens and of grey levels fall either way."""
LOOSELY = 0.1
"""The same of how one forecast differs from another, of a few clips."""


def _evaluated(arguments: str, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    do("evaluate", [*arguments.split(), "--device", "cpu", "--json", "--out", str(out)])
    return json.loads(capsys.readouterr().out)


def _means(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {row["id"]: {name: value["mean"] for name, value in row["metrics"].items()} for row in content["rows"]}


def _costly(content: dict[str, Any]) -> dict[str, float]:
    """What the tests of receipts leave out of the published table, as far as the physics of a push do not decide it."""
    of = ("audit, ", "counterfactuals, The difference that other moves")
    means = {name: value[0] for name, (_, value) in numbers_of(content).items() if isinstance(value, tuple)}
    return {name: mean for name, mean in means.items() if name.startswith(of) and "LPIPS" not in name}


def _agree(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    """Rows and metrics younger than the stored figures are left out, and metrics whose weights are not here."""
    assert found.keys() >= expected.keys()
    for row, metrics in expected.items():
        known = {name: mean for name, mean in metrics.items() if name in found[row] or not METRICS[name].learned}
        same = {name: found[row].get(name) for name in known}
        assert same == pytest.approx(known, rel=ROUNDING, abs=ROUNDING), row


@pytest.mark.parametrize("protocol", ["compression", "sampling"])
def test_a_built_in_world_scores_as_before(protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without studies and the conditions that are theirs alone, which take most time: those are slow tests'."""
    stored = STORED[protocol]
    _agree(_means(_evaluated(f"{stored['arguments']} --studies", tmp_path, capsys)), stored["rows"])


@pytest.mark.slow
def test_its_audit_and_its_counterfactuals_say_what_they_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of few clips: of all, they would take longer than the rest of the published table."""
    if not can_draw():
        pytest.skip("MuJoCo cannot draw here")
    stored = STORED["compression"]
    found = _costly(_evaluated(f"{stored['arguments']} --studies audit counterfactuals", tmp_path, capsys))
    assert len(found) > 100
    assert found == pytest.approx(stored["findings"], rel=LOOSELY, abs=LOOSELY)


@pytest.mark.slow
def test_a_built_in_world_scores_what_is_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows that need one sample, without conditions and studies, which take most of the time; tests of
    receipts verify the other world."""
    published = _means(json.loads((ROOT / "docs/results/sampling_tiny.json").read_text()))
    arguments = "sampling-tiny --num-clips 24 --window-stride 43 --batch-size 2 --condition-samples 0 --studies"
    found = _means(_evaluated(arguments, tmp_path, capsys))
    same = found.keys() & published.keys() - OF_ALL_SAMPLES
    assert same >= {"sample", "conditional_mean_1", "conditional_mean_4", "copy_last", "reconstruction"}
    _agree(found, {row: published[row] for row in same})
