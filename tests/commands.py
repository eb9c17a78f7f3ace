"""Where the project tells a reader what to type: pages, scripts, help texts and messages; and how each is parsed."""

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from worldline.cli import main as entry
from worldline.schema import UsageError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), *sorted((ROOT / "runs").glob("*.sh"))]
SOURCES = [
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "scripts").glob("*.py")),
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
COMMAND = re.compile(r"^(?:torchrun .*--no-python )?worldline (?!VERB|.*RECIPE)\S")
OPTION = re.compile(
    r"(?<![\w-])(?<!var\()(--[a-z][a-z0-9.-]*[a-z0-9])(?:[ =]((?:True|False|None|[-+]?\d[\d.e-]*)(?![\w.-])))?"
)


@dataclass(frozen=True)
class Told:
    """A piece of text somebody may type from, and where it stands."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def page_commands(page: Path) -> Iterator[Told]:
    """Every command in a page's shell blocks and code spans. A variable holds what a block above gave it."""
    text, variables = page.read_text(encoding="utf-8"), {}
    blocks = [body for info, body in FENCE.findall(text) if info.split()[:1] == ["bash"]]
    for block in [*blocks, *(" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text)))]:
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
            filled = re.sub(r"\$(\w+)", lambda m: variables.get(m[1], m[0]), line)
            if found := re.fullmatch(r'(\w+)="([^"]*)"', filled.strip()):
                variables[found[1]] = found[2]
            elif COMMAND.match(filled.strip()):
                yield Told(page.name, filled.strip())


def script_commands(script: Path, folder: Path) -> list[Told]:
    """What a script really starts: it runs, with a `worldline` that writes down how it was called."""
    folder.mkdir()
    for name in ("worldline", "python", "rm"):
        (folder / name).write_text(f'#!/bin/bash\necho "{name} ${{*@Q}}" >>"{folder}/calls"\n')
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    given = ["RUN", *(["--num-clips", "None"] if script.name == "table2.sh" else [])]
    for words, family in product(([], given), ("compression", "sampling")):
        chosen = {"PATH": path, "WORK": "w", "FAMILY": family}
        subprocess.run(["bash", script, *words], env={**os.environ, **chosen}, check=True)
    lines = dict.fromkeys((folder / "calls").read_text().splitlines())
    return [Told(script.name, line) for line in lines if line.startswith("worldline ")]


def source_texts(path: Path) -> Iterator[Told]:
    """Every string of a source file; what an f-string fills in reads X."""
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield Told(f"{path.name}:{node.lineno}", "".join(map(str, parts)))
            nodes += (part for part in node.values if isinstance(part, ast.FormattedValue))
        elif not isinstance(node, ast.Constant):
            nodes += ast.iter_child_nodes(node)
        elif isinstance(node.value, str):
            yield Told(f"{path.name}:{node.lineno}", node.value)


def source_commands(path: Path) -> Iterator[Told]:
    """Every command in a source file: lines of examples, and what stands in backticks."""
    for told in source_texts(path):
        lines = told.text.replace("\\\n", " ").splitlines() if "\n" in told.text else []
        for line in [*lines, *(" ".join(span.split()) for span in SPAN.findall(told.text))]:
            if COMMAND.match(line.strip()):
                yield Told(told.place, line.strip())


def options(told: Told) -> set[tuple[str, str | None]]:
    """The options in a text, each with the value that follows it, where that shows its kind."""
    return {(name, value or None) for name, value in OPTION.findall(told.text)}


def words_of(command: str) -> list[str]:
    """The words behind `worldline`, as the shell and, where it is named, torchrun hand them on."""
    words = shlex.split(command, comments=True)
    if words[0] == "torchrun":
        started = get_args_parser().parse_args(words[1:])
        assert started.no_python
        words = [started.training_script, *started.training_script_args]
    assert words[0] == "worldline"
    return words[1:]


def parse(words: list[str]) -> Any:
    """What a verb's own parser makes of these words. Nothing is done."""
    return entry.parse(words)


def do(verb: str, words: list[str]) -> None:
    """Do what a command line says, in this process; errors are raised."""
    entry.parse([verb, *words]).carry_out()


def parses(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Nothing where the words parse or ask for help; else what the parser says about them."""
    try:
        parse(words)
    except UsageError as error:
        return str(error)
    except SystemExit as ended:
        said = capsys.readouterr()
        return "" if ended.code == 0 else said.err or f"exit {ended.code}"
    return ""
