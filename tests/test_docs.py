"""The documentation keeps its word: links lead somewhere, examples run, figures are the code's.

That its commands and options can be typed is checked in test_commands.py.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from commands import FENCE, PAGES, ROOT, SPAN

from worldline import builtin
from worldline.recipes import RECIPES
from worldline.worlds.st_transformer import STTransformerConfig

DOCS = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _blocks(page: Path, language: str) -> list[str]:
    return [body for info, body in FENCE.findall(page.read_text(encoding="utf-8")) if info.strip() == language]


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def _spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in SPAN.findall(_prose(page))]


# --- links ---


@every_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(_prose(page)) if not re.match(r"https?:|mailto:", target)]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_navigation_and_there() -> None:
    listed = re.findall(r"^  - .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == [page.name for page in DOCS]


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_is_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) < 200


# --- commands ---


@every_page
def test_recipes_in_the_text_exist(page: Path) -> None:
    assert {span for span in _spans(page) if re.fullmatch(r"(compression|tokenizer|sampling)_\w+", span)} <= set(
        RECIPES
    )


@every_page
def test_scripts_that_are_to_be_run_exist(page: Path) -> None:
    named = re.findall(r"\b(?:benchmarks|scripts|examples)/\w+\.(?:py|sh)", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


MARKED = [
    pytest.param(block, id=f"{page.name}-{i}") for page in PAGES for i, block in enumerate(_blocks(page, "bash test"))
]


@pytest.mark.slow
@pytest.mark.skipif(not builtin.TOKENIZER_TINY.is_dir(), reason="this checkout has no built-in checkpoints")
@pytest.mark.parametrize("block", MARKED)
def test_marked_blocks_run(block: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in DOCS if _blocks(page, "python test")], ids=lambda page: page.name)
def test_marked_scripts_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    if find_spec("mujoco") is None:  # importing it here would choose OpenGL's backend for every later test
        pytest.skip("needs the extra `twin`")
    script = tmp_path / "script.py"
    for block in _blocks(page, "python test"):
        script.write_text(block, encoding="utf-8")
        done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("unlisted")
@pytest.mark.skipif(not builtin.COMPRESSION_TINY.is_dir(), reason="this checkout has no built-in checkpoints")
@pytest.mark.parametrize("lines", [7, pytest.param(10, marks=pytest.mark.slow)], ids=["first", "all"])
def test_the_python_of_the_readme_runs(lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = _blocks(ROOT / "README.md", "python")
    written = [line for line in block.splitlines() if line]
    assert len(written) == 10, "ten lines of Python"
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile("\n".join(written[:lines]), "README.md", "exec"), names)
    assert {"forecast", "episode"} <= names.keys()
    assert (tmp_path / "runs/mine/evaluation/metrics.json").exists() == (lines == 10)


@every_page
def test_what_scripts_import_is_there(page: Path) -> None:
    for language in ("python", "python test"):
        for block in _blocks(page, language):
            for name, names in re.findall(r"^from (worldline[.\w]*) import (.+)$", block, re.MULTILINE):
                module = importlib.import_module(name)
                assert [one for one in names.split(", ") if not hasattr(module, one)] == []


# --- figures ---


def test_the_parameter_table_is_the_world_s() -> None:
    with torch.device("meta"):
        world = STTransformerConfig().build()
    assert world.states is not None
    parts = {
        "token embedding = output layer": world.embedding.weight.numel(),
        "state encoder": sum(p.numel() for p in world.states.parameters()),
        "spatial positions": world.spatial_position.numel(),
        "temporal positions": world.temporal_position.numel(),
        "last LayerNorm": sum(p.numel() for p in world.norm.parameters()),
        f"24 blocks of {sum(p.numel() for p in world.blocks[0].parameters()):,}": sum(
            p.numel() for p in world.blocks.parameters()
        ),
    }
    every = sum(p.numel() for p in world.parameters())
    assert sum(parts.values()) == every
    text = (ROOT / "docs/compression.md").read_text(encoding="utf-8")
    assert [name for name, count in {**parts, "all": every}.items() if f"| {name} | {count:,} |" not in text] == []


def test_the_memory_figures_are_those_of_the_benchmark() -> None:
    result = json.loads((ROOT / "benchmarks/results/loss_memory.json").read_text(encoding="utf-8"))
    head, rows = result["head"], {row["accumulate"]: row for row in result["step"]["steps"]}
    text = (ROOT / "docs/compression.md").read_text(encoding="utf-8")
    quoted = [head["logits_bf16_gb"], head["logits_fp32_gb"], head["naive"]["peak_gb"], head["worldline"]["peak_gb"]]
    assert [figure for figure in quoted if f"{figure:.1f} GB" not in text] == []
    table = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) GB \| ([\d.]+) GB \| (?:(\d+) GB)? ?\|$", text, re.MULTILINE)
    assert len(table) == 6
    for accumulate, piece, total, naive, card in table:
        row = rows[int(accumulate)]
        assert int(piece) == row["piece"]
        assert (total, naive) == (f"{row['total_gb']:.1f}", f"{row['total_with_naive_head_gb']:.1f}")
        assert not card or result["step"]["largest_piece_on"][f"{card}_gb"] == int(piece)


def _spreads(found: object) -> set[str]:
    """Every middle value with its smallest and largest, as pages write them."""
    if isinstance(found, list | str | int | float | None):
        return set()
    assert isinstance(found, dict)
    if found.keys() == {"min", "median", "max"}:
        return {f"{found['median']:,g} [{found['min']:,g}, {found['max']:,g}]"}
    return set().union(*map(_spreads, found.values()))


def test_the_figures_of_a_card_are_those_of_its_files() -> None:
    """All intervals of the parts of pages that tell of it, and the memory beside what was counted."""
    files = sorted((ROOT / "benchmarks/results").glob("nvidia-h100-*.json"))
    results, *later = [json.loads(file.read_text(encoding="utf-8"))["results"] for file in files]
    parts = {
        "benchmarks/README.md": "## On an H100",
        "docs/memory.md": "## What was measured",
        "docs/driven.md": "## On a GPU",
    }
    spreads, pages = set().union(*map(_spreads, (results, *later))), {}
    for name, title in parts.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        pages[name] = text[text.index(title) :].split("\n## ")[0]
        quoted = re.findall(r"[\d,.]*\d \[\d[^\]]*\]", pages[name])
        assert len(quoted) > 2
        assert set(quoted) - spreads == set(), name
    steps = results["sampling_world"], results["loss_memory"]["measured_on_cuda"]["pieces"]
    for one in (
        steps[0]["sampling_revontuli_on_cuda"]["memory"],
        steps[0]["sampling_revontuli_on_cuda_full"]["memory"],
        steps[1]["2"],
        steps[1]["10"],
    ):
        row = [f"{one[key]:.1f} GB" for key in ("counted_gb", "allocated_gb", "reserved_gb")]
        share = f"{one['allocated_to_counted_ratio']:.2f}"
        assert f"| {row[0]} | {row[1]} | {share} | {row[2]} |" in pages["docs/memory.md"]


EXAMPLES = {"frame_076", "video_12", "top_", "teacher_forced_", "horizon_", "damaged_step_N", "v_null", "v_states"}
"""Parts of names, names with a number, and letters of formulas that pages give."""


@lru_cache
def _known_words() -> set[str]:
    folders = (ROOT / name for name in ("src", "tests", "benchmarks", "scripts"))
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".sh", ".json")]
    return {word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}


@every_page
def test_names_and_files_in_the_text_are_those_of_the_code(page: Path) -> None:
    """Every name with an underscore or an inner capital in a code span, but for the log, which tells of the past."""
    if page.name in ("log.md", "log_first.md"):
        return
    named = {word for span in _spans(page) for word in re.findall(r"\b[A-Za-z]\w*\b", span)}
    special = {word for word in named if "_" in word or re.match(r"[A-Z][a-z]+[A-Z]", word)}
    assert special - _known_words() - EXAMPLES == set()
    paths = {found for span in _spans(page) for found in re.findall(r"^(?:[\w.-]+/)*[\w-]+\.py$", span)}
    roots = (ROOT, ROOT / "src/worldline", page.parent)
    assert [path for path in sorted(paths) if not any((root / path).exists() for root in roots)] == []


def test_every_kind_of_problem_is_explained() -> None:
    """The ids of `DataError.kind`, which `worldline data info` prints, and the table of them are the same."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/worldline").rglob("*.py"))
    raised = set(re.findall(r"DataError\((?:[^()]|\([^()]*\))*?kind=\"(\w+)\"", code))
    page = (ROOT / "docs/data_checks.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(raised) > 15
    assert raised <= explained
    assert [name for name in explained if f'"{name}"' not in code] == []


def test_figures_of_the_readme_are_those_of_the_results() -> None:
    pages = [
        ROOT / "docs" / f"{name}.md" for name in ("results", "results_g1", "horizon", "evidence", "driven", "ranking")
    ]
    results = "".join(page.read_text(encoding="utf-8") for page in pages)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    quoted = re.findall(r"-?[\d.]+ \[[^\]]+\](?!\()", readme)
    assert len(quoted) > 12
    assert [figure for figure in quoted if figure not in results] == []


# --- the whole project ---


def test_no_file_names_a_place_on_somebody_s_machine() -> None:
    places = [f"/{place}/" for place in ("work", "root", "home", "Users")]
    folders = [ROOT / name for name in ("src", "docs", "benchmarks", "tests", "scripts")]
    suffixes = {".py", ".md", ".json", ".jsonl", ".toml", ".yml", ".sh", ".j2", ""}
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()] + list(ROOT.glob("*"))
    texts = [path for path in files if path.is_file() and path.suffix in suffixes and path.name != ".git"]
    named = [str(p.relative_to(ROOT)) for p in texts if any(place in p.read_text(errors="replace") for place in places)]
    assert named == []
