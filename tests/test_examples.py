"""The examples run in a short form, as they are typed."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from worldline.twin.simulation import can_draw

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = {
    "plan_to_goal": ("--starts", "2", "--candidates", "4", "--rounds", "1"),
    "train_sb3": ("--steps", "40", "--starts", "1"),
}
SAID = {"plan_to_goal": "planned is nearer than random by", "train_sb3": "after, 1 other starts: return"}


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_an_example_runs_and_says_what_it_found(name: str, tmp_path: Path) -> None:
    if not can_draw() or (name == "train_sb3" and find_spec("stable_baselines3") is None):
        pytest.skip("needs the twin, and Stable-Baselines3 (the extra rl)")
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *SHORT[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert SAID[name] in done.stdout
