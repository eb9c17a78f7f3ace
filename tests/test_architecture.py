"""The house: importing anything does nothing but define, and help is shown without loading PyTorch."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import worldline

PACKAGE = Path(worldline.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

IMPORT_ALL = """
import json, os, pkgutil, random, sys, warnings
import numpy, torch
import worldline

def state():
    return [
        torch.get_rng_state().tolist(), torch.get_num_threads(), str(torch.get_default_dtype()),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        [str(x) for x in numpy.random.get_state()], random.getstate(),
        {name: value for name, value in os.environ.items() if name != "PYGAME_HIDE_SUPPORT_PROMPT"},
    ]

before = state()
names = [module.name for module in pkgutil.walk_packages(worldline.__path__, "worldline.")]
for name in names:
    __import__(name)
heavy = [name for name in ("mujoco", "torchvision", "torchmetrics", "diffusers") if name in sys.modules]
print(json.dumps({"same": state() == before, "heavy": heavy, "modules": names, "files": os.listdir()}))
"""

HELP = """
import sys
sys.argv = ["worldline", "--help"]
from worldline.cli.main import main
try:
    main()
except SystemExit as ended:
    heavy = {"torch", "numpy", "tyro", "pydantic"} & set(sys.modules)
    sys.exit(f"loaded {heavy}" if heavy else ended.code)
"""


def _python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=kept)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process found that imported every module of the package in an empty folder."""
    done = _python(IMPORT_ALL, tmp_path_factory.mktemp("empty"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_every_module_is_imported_on_a_cpu(imported: dict[str, Any]) -> None:
    files = {path.relative_to(PACKAGE).with_suffix("") for path in FILES if path.name != "__init__.py"}
    assert {"worldline." + ".".join(path.parts) for path in files} <= set(imported["modules"])


def test_importing_changes_nothing(imported: dict[str, Any]) -> None:
    """Neither seeds, threads and flags of PyTorch nor the environment (`MUJOCO_GL`); and it writes no file.

    All but what `import worldline` itself chooses, see test_threads.py, and that Gymnasium hides pygame's greeting.
    """
    assert imported["same"]
    assert imported["files"] == []


def test_importing_loads_nothing_that_only_one_verb_needs(imported: dict[str, Any]) -> None:
    assert imported["heavy"] == []


def test_help_does_not_load_pytorch(tmp_path: Path) -> None:
    done = _python(HELP, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: worldline VERB" in done.stdout


def test_only_families_and_recipes_name_the_classes_of_a_track() -> None:
    """Others know the protocols of tokenizers and of what a forecaster needs; the verb `text` is Wan's alone."""
    named: dict[str, set[str]] = {}
    for path in FILES:
        place = path.relative_to(PACKAGE)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                found = re.fullmatch(r"worldline\.(tokenizers|worlds)\.(?!tokenizer$)(\w+)", node.module)
                if found and place.parts[0] not in ("families", "recipes.py", "tokenizers", "worlds"):
                    named.setdefault(str(place), set()).add(found[0])
    assert named == {"cli/verbs.py": {"worldline.worlds.wan_text"}}


def test_every_file_says_what_it_is_and_packages_define_nothing() -> None:
    parsed = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    packages = {name for name in parsed if name.endswith("/__init__.py")}  # the outermost chooses threads
    inside = {type(node) for name in packages for node in parsed[name].body}
    assert inside <= {ast.Expr, ast.ImportFrom, ast.Assign}, "a docstring, imports that register entries, __all__"
    said = {name for name, tree in parsed.items() if ast.get_docstring(tree) or not tree.body}
    assert parsed.keys() - said == set()
