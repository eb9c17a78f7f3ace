"""`worldline policies OUT`: make the built set of policies and the success classifier, try them, tell of them."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from worldline import builtin
from worldline.checks import options_of
from worldline.families.tokenizers import fingerprint, load_tokenizer
from worldline.judges.success import Errors
from worldline.policies.make import Made, MakeOptions, Tried, make
from worldline.progress import show
from worldline.rundir import to_json
from worldline.schema import UsageError
from worldline.tokenizers.tokenizer import reconstructed


@dataclass(frozen=True, kw_only=True)
class Policies(MakeOptions):
    """Make policies of the twin's tasks, and a classifier that reads success from pictures.

    For every task 16 policies that were made apart from one another: scripted ones with aim errors of 0 to 20 cm, one
    that holds still, one that waves, and networks that imitate successful episodes and differ in how they look, in what
    they were shown and in their seed. What is in OUT already is kept, so an interrupted command can be given again.
    `worldline.policies.load` loads a policy by its folder. Needs `pip install worldline[twin]`.

    Examples:
      worldline policies OUT
      worldline policies OUT --tasks touch push --measure 40
      worldline policies OUT --tasks touch --only aim-0 nothing convolution-10 --no-classifier
      worldline policies OUT --tokenizer tokenizer-driven --json
    """

    out: tyro.conf.Positional[Path]
    tokenizer: Path | None = None
    """Tokenizer of a world: the classifier also learns from frames through it, and its error on these is measured."""
    json: bool = False

    def carry_out(self) -> None:
        how: dict[str, Any] = {}
        if self.tokenizer and not self.classifier:
            raise UsageError("the classifier alone learns from frames through a tokenizer: leave out --no-classifier")
        if self.tokenizer:
            place = builtin.resolve(self.tokenizer)
            how = {"reconstruct": partial(reconstructed, load_tokenizer(place)), "tokenizer": fingerprint(place)}
        made = make(self.out, self, **how)
        show(to_json(Made, made), text=told(made), as_json=self.json)


def told(made: Made) -> str:
    """What there is, as text."""
    parts = [f"{made.out / task}: {len(names)} policies" for task, names in made.policies.items()]
    if made.tried:
        parts.append("\nSuccess in the twin, by physics (95 % interval)\n" + _tried(made.tried))
    if made.errors:
        parts.append("\nThe success classifier on held-out attempts\n" + _errors(made.errors))
    return "\n".join(parts)


def _tried(tried: Mapping[str, Mapping[str, Tried]]) -> str:
    names = list(dict.fromkeys(name for of_task in tried.values() for name in of_task))
    rows = [f"{'':18}" + "".join(f"{task:>22}" for task in tried)]
    for name in names:
        rates = [of_task.get(name) for of_task in tried.values()]
        rows.append(f"{name:18}" + "".join(f"{'-' if rate is None else _rate(rate):>22}" for rate in rates))
    return "\n".join(rows)


def _rate(one: Tried) -> str:
    return f"{one.successes}/{one.trials} [{one.low:.2f}, {one.high:.2f}]"


def _errors(errors: Mapping[str, Errors]) -> str:
    rows = [f"{'':32}{'episodes':>10}{'accuracy':>26}{'AUROC':>26}{'calibration error':>26}"]
    for name, one in errors.items():
        told = (one.accuracy, one.auroc, one.calibration)
        figures = "".join(f"{'-' if math.isnan(figure.mean) else figure.said():>26}" for figure in told)
        rows.append(f"{name:32}{one.episodes:>10}{figures}")
    return "\n".join(rows)


def parse(verb: str, arguments: list[str]) -> Any:
    with options_of():
        description = inspect.getdoc(Policies)
        return tyro.cli(Policies, prog=f"worldline {verb}", description=description, args=arguments)
