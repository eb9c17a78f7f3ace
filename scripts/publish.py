"""Publish an evaluation: copy its metrics.json and its receipt into docs/results, with no place of this machine inside.

python scripts/publish.py EVALUATION NAME

EVALUATION is what `worldline verify` takes: a folder with metrics.json and receipt.json, a run folder, or a built-in.
Built-ins keep their names and relative places stay; of an absolute one only a word is left (RUN, DATA, ...), for which
`worldline verify docs/results/NAME.receipt.json --run-folder RUN --data DATA` gives the place.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldline import builtin
from worldline.evaluation.evaluate import EvaluateOptions
from worldline.evaluation.receipt import Receipt, Request, beside
from worldline.evaluation.verify import find_receipt
from worldline.files import hash_of_file, read_json, write_json
from worldline.schema import UsageError


def main(evaluation: Path, name: str, out: Path) -> list[Path]:
    """Write NAME.json and NAME.receipt.json; give their paths."""
    told = Receipt.load(path := find_receipt(evaluation))
    told.refuse_other_files(path)
    metrics, receipt = out / f"{name}.json", out / f"{name}.receipt.json"
    content = read_json(beside(path)["metrics"])
    request = Request(
        run=public(told.run, "run"),
        places={option: public(value, option) for option, value in told.places.items()},
        options=told.identities.options,
    )
    command = request.command(EvaluateOptions())
    content["environment"]["command"] = command
    refuse_places(content, metrics)
    out.mkdir(parents=True, exist_ok=True)
    write_json(metrics, content)
    files = {"metrics": hash_of_file(metrics)}
    published = replace(told, command=command, run=request.run, places=request.places, folder=None, files=files)
    published.write(receipt)
    refuse_places(read_json(receipt), receipt)
    return [metrics, receipt]


def public(value: Any, option: str) -> Any:
    """A place as everybody may read it."""
    if isinstance(value, list):
        return [public(one, option) for one in value]
    if value is None or value in builtin.NAMES:
        return value
    names = {os.path.realpath(place): name for name, place in builtin.NAMES.items()}
    found = names.get(os.path.realpath(value), value)
    return option.upper() if os.path.isabs(found) else found


def refuse_places(content: Any, path: Path) -> None:
    """Raise `UsageError` where a place of this machine is left in any text."""
    texts = [content] if isinstance(content, str) else []
    for inner in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        refuse_places(inner, path)
    here = {str(Path.home()), str(Path.cwd())}
    if named := [text for text in texts if any(place in text for place in here if len(place) > 1)]:
        raise UsageError(f"{path}: {named[0]!r} names a place of this machine; evaluate with relative places")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("name")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "docs/results")
    given = parser.parse_args()
    print("\n".join(map(str, main(given.evaluation, given.name, given.results))))
