"""The site: builds as documented, needs no other server, and shows drawings that the script made."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from commands import ROOT

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
WITHOUT_A_FLOW = {
    *("add_your_own", "add_a_model", "beyond", "results_g1", "index", "lerobot", "log", "results", "tasks", "viewer"),
    "beyond_pictures",
    *("log_first", "beyond_tokens", "driven", "environments", "few_calls", "policies", "ranking", "states"),
    *("audit", "evidence", "counterfactuals", "learned_metrics", "receipts", "report", "sessions", "uncertainty"),
}
FROM_ELSEWHERE = re.compile(r'<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="(?:https?:)?//[^"]*"')


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_site_builds_as_documented_and_needs_no_other_server(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed: pip install -e '.[docs]'")
    pytest.importorskip("material", reason="the extra `docs` is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > len(PAGES)
    assert [page for page in built if FROM_ELSEWHERE.search(page.read_text(encoding="utf-8"))] == []


def test_drawings_are_what_the_script_makes(tmp_path: Path) -> None:
    script("drawings").main(tmp_path)
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    there = {name: (ROOT / "docs/media" / name).read_text(encoding="utf-8") for name in made}
    assert made == there, "run python scripts/drawings.py"
    assert len(made) > 8


def test_the_house_is_the_import_contract() -> None:
    drawing = script("drawings").house()
    assert {"worldline.cli", "worldline.schema", "worldline.process"} <= set(drawing.boxes)
    nn, process, schema = (drawing.boxes[f"worldline.{name}"] for name in ("nn", "process", "schema"))
    assert nn.row == process.row < schema.row
    assert nn.column != process.column


def test_the_tour_says_what_lives_in_every_room() -> None:
    rows = [line.split("|")[1] for line in PAGES["tour"].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    rooms = {name.removeprefix("worldline.") for name in script("drawings").house().boxes}
    assert named == rooms, "docs/tour.md, The house: one row of the table for each room of the import contract"


def test_texts_fit_their_boxes() -> None:
    module = script("drawings")
    drawings = [*module.FLOWS.values(), module.house()]
    lines = [line for drawing in drawings for box in drawing.boxes.values() for line in box.text.split("\n")]
    assert [line for line in lines if len(line) > 21] == []


def test_every_page_that_explains_a_flow_has_its_drawing() -> None:
    assert [name for name in sorted(PAGES.keys() - WITHOUT_A_FLOW) if "](media/" not in PAGES[name]] == []
    shown = {name for text in PAGES.values() for name in re.findall(r"\]\(media/([\w-]+\.\w+)\)", text)}
    assert {path.name for path in (ROOT / "docs/media").glob("*.svg")} <= shown
