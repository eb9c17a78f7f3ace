"""Copy a run's latest checkpoint into the package as a built-in: weights in float16, curves thinned.

python scripts/ship.py RUN src/worldline/assets/NAME
"""

import json
import re
import shutil
import sys
from pathlib import Path

from worldline.rundir import RunDir, model_folder, new_folder, read_model, write_model

MAX_LINES = 200
ABSOLUTE = re.compile(r"(?<![\w./])/(?:[\w.-]+/)+")
"""Folders of the machine that trained, in front of a file's name: nobody else has them."""


def ship(run: Path, out: Path) -> None:
    description, weights = read_model(model_folder(run))
    description.pop("format")
    with new_folder(out) as folder:
        write_model(folder, description, {name: value.half() for name, value in weights.items()})
        if (run / "unigram.npy").exists():
            shutil.copy(run / "unigram.npy", folder / "unigram.npy")
        for name in ("config.json", "environment.json"):
            text = (run / name).read_text(encoding="utf-8")
            (folder / name).write_text(ABSOLUTE.sub("", text), encoding="utf-8")
        lines = RunDir(run).metrics.read_text(encoding="utf-8").splitlines()
        kept = lines[:: max(1, len(lines) // MAX_LINES)]
        kept += [] if kept[-1] == lines[-1] else [lines[-1]]
        records = [{k: float(f"{v:.5g}") for k, v in json.loads(line).items()} for line in kept]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]))
