"""The documentation keeps its word: links lead somewhere, commands and flags exist, figures are the code's."""

import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from worldline import builtin
from worldline.cli.main import VERBS
from worldline.recipes.all import RECIPES
from worldline.worlds.st_transformer import STTransformerConfig

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *DOCS]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
FLAG = re.compile(r"--[a-z][a-z0-9.-]*")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _blocks(page: Path, language: str) -> list[str]:
    return [body for info, body in FENCE.findall(page.read_text(encoding="utf-8")) if info.strip() == language]


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def _spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in SPAN.findall(_prose(page))]


def _commands(page: Path) -> list[list[str]]:
    """Every `worldline ...` of a page's shell blocks and code spans, in words; variables are filled in."""
    found = []
    for block in [*_blocks(page, "bash"), *_blocks(page, "bash test"), *_spans(page)]:
        variables = dict(re.findall(r'^(\w+)="([^"]*)"$', block, re.MULTILINE))
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
            filled = re.sub(r"\$(\w+)", lambda m, known=variables: known.get(m[1], m[0]), line)
            if filled.strip().startswith("worldline "):
                found.append(shlex.split(filled, comments=True)[1:])
    return [words for words in found if words and words[0].islower()]  # VERB stands for any verb


@lru_cache
def _flags(*words: str) -> frozenset[str]:
    """Flags in the help of a verb."""
    said = io.StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit) as exit_code:
        importlib.import_module(f"worldline.cli.{words[0]}").main([*words[1:], "--help"])
    assert exit_code.value.code == 0
    return frozenset(FLAG.findall(said.getvalue()))


def _known_flags(words: list[str]) -> frozenset[str]:
    match words:
        case ["train", "--resume", *_]:
            return _flags("train", "--resume") | {"--resume"}
        case ["data" | "train" as verb, under, *_] if not under.startswith("-"):
            return _flags(verb, under)
        case [verb, *_]:
            return _flags(verb)
        case _:
            raise AssertionError("a command has words")


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
def test_commands_name_verbs_recipes_and_flags_that_exist(page: Path) -> None:
    for words in _commands(page):
        assert words[0] in VERBS or words[0] == "--help", words
        if words[0] == "train" and not words[1].startswith("-"):
            assert words[1] in RECIPES, words
        given = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
        assert given <= _known_flags(words) if given else True, words


def test_the_check_of_commands_finds_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```bash\nset="--nonsense 3"\nworldline evaluate X $set && worldline report Y # why\n```\n`worldline VERB`'
    )
    assert _commands(page) == [["evaluate", "X", "--nonsense", "3"], ["report", "Y"]]
    assert "--nonsense" not in _known_flags(["evaluate"])
    assert {"--num-clips", "--blind"} <= _known_flags(["evaluate"])


@every_page
def test_recipes_and_flags_in_the_text_exist(page: Path) -> None:
    recipes = {span for span in _spans(page) if re.fullmatch(r"(compression|tokenizer|sampling)_\w+", span)}
    assert recipes <= set(RECIPES)
    flags = {flag for span in _spans(page) if span.startswith("--") for flag in FLAG.findall(span)}
    if flags:
        ours = [_known_flags([verb]) for verb in VERBS if verb not in ("data", "train")]
        data = [_flags("data", verb) for verb in ("info", "convert", "tokenize", "twin")]
        scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
        known = frozenset().union(*ours, *data, *(_flags("train", recipe) for recipe in RECIPES), FLAG.findall(scripts))
        assert flags <= known


@every_page
def test_scripts_that_are_to_be_run_exist(page: Path) -> None:
    named = re.findall(r"\b(?:benchmarks|scripts)/\w+\.(?:py|sh)", page.read_text(encoding="utf-8"))
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
    quoted = [head["logits_bf16_gb"], head["logits_fp32_gb"], head["naive"]["peak_gb"], head["chunked"]["peak_gb"]]
    assert [figure for figure in quoted if f"{figure:.1f} GB" not in text] == []
    table = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) GB \| ([\d.]+) GB \| (?:(\d+) GB)? ?\|$", text, re.MULTILINE)
    assert len(table) == 6
    for accumulate, piece, total, naive, card in table:
        row = rows[int(accumulate)]
        assert int(piece) == row["piece"]
        assert (total, naive) == (f"{row['total_gb']:.1f}", f"{row['total_with_naive_head_gb']:.1f}")
        assert not card or result["step"]["largest_piece_on"][f"{card}_gb"] == int(piece)


# --- the whole project ---


def test_no_file_names_a_place_on_somebody_s_machine() -> None:
    places = [f"/{place}/" for place in ("work", "root", "home", "Users")]
    folders = [ROOT / name for name in ("src", "docs", "benchmarks", "tests", "scripts")]
    suffixes = {".py", ".md", ".json", ".jsonl", ".toml", ".yml", ".sh", ".j2", ""}
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()] + list(ROOT.glob("*"))
    texts = [path for path in files if path.is_file() and path.suffix in suffixes]
    named = [str(p.relative_to(ROOT)) for p in texts if any(place in p.read_text(errors="replace") for place in places)]
    assert named == []
