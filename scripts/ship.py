"""Copy a run's latest checkpoint into the package as a built-in: weights in float16, curves thinned.

python scripts/ship.py RUN src/worldline/assets/NAME [TOKENIZER] [--eight-bits]

With --eight-bits matrices are whole numbers with a scale for each row, which takes half the place.

A world's TOKENIZER is the built-in it is to be used with: what it was trained on, rounded to float16. That is checked,
and the world then names it.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import torch

from worldline.families.tokenizers import fingerprint
from worldline.files import read_json
from worldline.rundir import RunDir, in_eight_bits, load_tensors, model_folder, new_folder, write_model

MAX_LINES = 200
ABSOLUTE = re.compile(r"(?<![\w./])/(?:[\w.-]+/)+")
"""Folders of the machine that trained, in front of a file's name: nobody else has them."""


def ship(run: Path, out: Path, tokenizer: Path | None, *, eight_bits: bool = False) -> None:
    folder = model_folder(run)
    description, weights = read_json(folder / "model.json"), load_tensors(folder / "model.safetensors")
    description.pop("format")
    if tokenizer is not None:
        identity = {"tokenizer": _rounded(RunDir(run).tokenizer, tokenizer)}
        description["identity"] = description.get("identity", {}) | identity
    with new_folder(out) as folder:
        stored = in_eight_bits(weights) if eight_bits else {name: value.half() for name, value in weights.items()}
        write_model(folder, description, stored)
        for counts in ("unigram.npy", "kept.npy"):
            if (run / counts).exists():
                shutil.copy(run / counts, folder / counts)
        for name in ("config.json", "environment.json"):
            text = (run / name).read_text(encoding="utf-8")
            (folder / name).write_text(ABSOLUTE.sub("", text), encoding="utf-8")
        lines = RunDir(run).metrics.read_text(encoding="utf-8").splitlines()
        kept = lines[:: max(1, len(lines) // MAX_LINES)]
        kept += [] if kept[-1] == lines[-1] else [lines[-1]]
        records = [{k: float(f"{v:.5g}") for k, v in json.loads(line).items()} for line in kept]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _rounded(trained_on: Path, shipped: Path) -> str:
    """The fingerprint of a shipped tokenizer that is what a world was trained on, in float16."""
    original, rounded = load_tensors(trained_on / "model.safetensors"), load_tensors(shipped / "model.safetensors")
    different = [name for name, value in original.items() if not torch.equal(value.half(), rounded[name])]
    if different or original.keys() != rounded.keys():
        sys.exit(f"{shipped} is not the float16 of {trained_on}: {different[:3]}")
    return fingerprint(shipped)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("tokenizer", type=Path, nargs="?")
    parser.add_argument("--eight-bits", action="store_true")
    given = parser.parse_args()
    ship(given.run, given.out, given.tokenizer, eight_bits=given.eight_bits)
