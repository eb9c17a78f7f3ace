"""Verify a receipt: the files are its own, what it was made from is there again, and the numbers come out again."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from worldline import builtin
from worldline.checks import as_options
from worldline.evaluation.evaluate import EvaluateOptions, evaluate, identities
from worldline.evaluation.receipt import (
    RECEIPT,
    Difference,
    Receipt,
    beside,
    differences,
)
from worldline.files import read_json
from worldline.metrics.table import METRICS
from worldline.progress import say
from worldline.ranks import Ranks
from worldline.rundir import RunDir, built
from worldline.schema import UsageError

TOLERANCES = {"dB": 0.05, "nats": 0.01, "share": 0.003}
SHARE, OTHERWISE = 0.002, 0.003
"""How much another processor, library or version of the code may change a number, at most: so much in its unit (in any
other unit `OTHERWISE`), or this share of it, whichever is more.

Why so much: other kernels add in another order. That alone changes little: between PyTorch's narrowest and widest
instruction sets on one machine the numbers of `compression-tiny` on 60 clips differed by at most 1.3e-5 dB, 4e-7 nats
and 2e-6 of SSIM (docs/receipts.md). But where a token or a grey level is chosen at a near tie it may fall the other
way, and a roll-out of tokens goes on from there: then one clip of some tens has another future. Where nothing at all
differs on a CPU, nothing is tolerated: the same program on the same processor gives the same numbers.
"""
Verdict = Literal["equal", "within tolerance", "different", "not computed"]
SUBJECT = ("data", "model", "protocol", "option")
"""Kinds of differences that make it another evaluation; the others are circumstances."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Where things are now, if not where the receipt says, and how much is verified."""

    run_folder: Path | None = None
    """The run or model folder."""
    data: Path | tuple[Path, ...] | None = None
    """The evaluated data set."""
    tokenizer: Path | None = None
    """Folder of the tokenizer."""
    weights: Path | None = None
    """Folder of the pretrained backbone."""
    unconditional: Path | None = None
    """Run of the world without states."""
    members: tuple[Path, ...] = ()
    """The other worlds of an ensemble, in the order of the receipt."""
    inverse_dynamics: Path | None = None
    """Run that reads states from frames."""
    lpips_weights: Path | None = None
    """File of the weights of LPIPS; so are the next two of theirs."""
    fid_weights: Path | None = None
    fvd_weights: Path | None = None
    device: str | None = None
    """`cpu`, `cuda`, ...; the kind of device that the receipt names, if not given."""
    identities: bool = False
    """Compare what the numbers were made from, and run nothing."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number or a verdict of the evaluation, then and now."""

    name: str
    unit: str
    recorded: Any
    """Of a mean: mean, low, high, clips, episodes; otherwise a number or a text."""
    found: Any
    """None where it was not computed now."""
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What came of it."""

    receipt: str
    command: str
    differences: tuple[Difference, ...]
    """Between what the receipt names and what is here."""
    numbers: tuple[Number, ...] | None
    """None if nothing was run."""
    more: int = 0
    """Numbers that are computed now and are not in the receipt."""
    not_computed: dict[str, str] = field(default_factory=dict)
    """Why, by the id of a metric, a row or a finding, what is now not computed is not."""

    @property
    def holds(self) -> bool:
        """Whether all numbers are equal or within tolerance; where nothing was run, whether it is the same subject."""
        if self.numbers is None:
            return not any(one.kind in SUBJECT for one in self.differences)
        return all(number.verdict in ("equal", "within tolerance") for number in self.numbers)

    @property
    def summary(self) -> str:
        """One line."""
        others = ", ".join(one.part for one in self.differences) or "nothing"
        if self.numbers is None:
            same = "the same data, models and protocol" if self.holds else "ANOTHER EVALUATION"
            return f"{same}; not the same: {others}; no number was computed again"
        counts = Counter(number.verdict for number in self.numbers)
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        state = "verified" if self.holds else "NOT VERIFIED"
        return f"{state}: of {len(self.numbers)} numbers {told}; not the same: {others}"


def verify(receipt: str | Path, options: VerifyOptions | None = None) -> Verification:
    """Verify the receipt of an evaluation.

    Checks its checksums, finds run and data again, compares their identities, evaluates again into a temporary folder
    and compares every number.

    Args:
        receipt: the file, or a folder that holds one: of an evaluation, or of a run; or a built-in's name.

    Raises:
        DataError: the receipt or its metrics.json is absent, damaged or edited.
        UsageError: the run or the data are not there, or this version of worldline lacks an option of it.
    """
    options, path = options or VerifyOptions(), find_receipt(receipt)
    told = Receipt.load(path)
    told.refuse_other_files(path)
    run, asked = _request(told, options, path)
    with Ranks.start(asked.device) as ranks:
        with ranks.first():
            here = identities(run, asked)
        # What was asked for is asked for again: only a checkpoint may be called by another name.
        others = differences(told.identities, replace(here, options=told.identities.options))
        for one in others:
            say(f"not the same: {one.part}: {one.recorded} in the receipt, {one.found} here")
        result = Verification(receipt=str(path), command=told.command, differences=others, numbers=None)
        if options.identities:
            return result
        evaluated = _again(run, asked, ranks)
    recorded, found = numbers_of(read_json(beside(path)["metrics"])), numbers_of(evaluated)
    elsewhere = any(one.kind in ("code", "library", "processor") for one in others)
    exact = not elsewhere and here.processor.device == "cpu" and told.made.threads == torch.get_num_threads()
    return replace(
        result,
        numbers=tuple(_compared(name, *one, found.get(name), exact=exact) for name, one in recorded.items()),
        more=len(found.keys() - recorded.keys()),
        not_computed=evaluated["not_computed"],
    )


def _again(run: str | Path, asked: EvaluateOptions, ranks: Ranks) -> dict[str, Any]:
    """Evaluate again, into a folder that is gone afterwards; the content of its metrics.json."""
    with tempfile.TemporaryDirectory(prefix="worldline_verify_") as own:
        out = Path(ranks.agreed(own))
        evaluate(run, replace(asked, out=out), ranks=ranks)
        content = read_json(out / "metrics.json")
        ranks.agreed(None)  # nobody removes it before all have read it
        return content


# --- what was evaluated, found again ---


def find_receipt(place: str | Path) -> Path:
    """The receipt that is meant: a file, or in a folder of an evaluation or a run. Raises `UsageError` without one."""
    path = Path(place)
    if path.is_file():
        return path
    folder = path if path.is_dir() else builtin.results_of(builtin.resolve(place))
    places = (folder / RECEIPT, RunDir(folder).evaluation / RECEIPT)
    found = next((one for one in places if one.is_file()), None)
    if found is None:
        raise UsageError(f"there is no receipt in {folder}; `worldline evaluate {place}` writes one")
    return found


def _request(told: Receipt, options: VerifyOptions, path: Path) -> tuple[Path, EvaluateOptions]:
    """The run and the options of the evaluation, with the places where things are now."""
    given = told.identities.options | {name: getattr(options, name, None) or _place(told, name) for name in told.places}
    on_cpu = told.identities.processor.device == "cpu"
    given["device"] = options.device or ("cpu" if on_cpu else "auto")
    given["allow_different"] = ["tokenizer", "validation", "data", "backbone"]  # a difference is named, not refused
    try:
        asked = built(EvaluateOptions, given)
    except UsageError as error:
        by = told.made.commit
        raise UsageError(f"{path} was written by another version of worldline (commit {by}): {error}") from error
    run = options.run_folder or _found(told, told.run, "run")
    if run is None and RunDir(path.parent.parent).checkpoints():
        run = path.parent.parent  # the run folder that it lies in has moved
    if run is None:
        raise UsageError(f"{path}: the run {told.run} is not here; give its place (--run-folder RUN)")
    return run, _checkpoint(told, asked, builtin.resolve(run))


def _place(told: Receipt, name: str) -> Any:
    """Where a place of the receipt is now. Raises `UsageError` where it is not there."""
    value = told.places[name]
    if value is None:
        return None
    found = [_found(told, one, name) for one in (value if isinstance(value, list) else [value])]
    if None in found:
        option = as_options([name])
        raise UsageError(f"{option} {value} of the receipt is not here; give its place ({option} PLACE)")
    return found if isinstance(value, list) else found[0]


def _found(told: Receipt, place: str, name: str) -> Path | None:
    """A place as it was given, from where it was given or from here; or a built-in; or None."""
    candidates = [Path(place)] if told.folder is None else [Path(told.folder) / place, Path(place)]
    if there := [path for path in candidates if path.exists()]:
        return there[0]
    return builtin.NAMES.get(place)


def _checkpoint(told: Receipt, asked: EvaluateOptions, run: Path) -> EvaluateOptions:
    """The checkpoint that was evaluated, though the run has gone on since."""
    # Of a world it stands beside others; a tokenizer or a model that reads states is evaluated alone.
    models = told.identities.models
    model = models.get("world") or (next(iter(models.values())) if len(models) == 1 else None)
    if model is None or (run / "model.json").is_file():
        return asked
    there = RunDir(run).checkpoint(model.step)
    return replace(asked, checkpoint=str(model.step)) if there.is_dir() else asked


# --- its numbers ---

_Value = tuple[str, Any]
"""A unit, and `(mean, low, high, clips, episodes)`, a number or a text."""


def numbers_of(content: Mapping[str, Any]) -> dict[str, _Value]:
    """Every number and verdict of a metrics.json, by what it is of."""
    found: dict[str, _Value] = {}
    for row in content["rows"]:
        found |= {f"{row['id']}, {metric}": (_unit(metric), _ends(value)) for metric, value in row["metrics"].items()}
    for metric, curves in content["curves"].items():
        for row, curve in curves.items():
            points = {f"{row}, {metric}, frame {i}": _ends(value) for i, value in enumerate(curve, start=1)}
            found |= {name: (_unit(metric), value) for name, value in points.items()}
    for claim in content["comparisons"]:
        name = f"{claim['better']} minus {claim['than']}, {claim['metric']}"
        found[name] = (_unit(claim["metric"]), _ends(claim["difference"]))
    found |= {f"setting {name}": ("", value) for name, value in content["settings"].items() if name != "checkpoint"}
    for finding in content.get("findings", ()):
        found |= _of_finding(finding)
    return found


def _of_finding(finding: Mapping[str, Any]) -> dict[str, _Value]:
    found: dict[str, _Value] = {f"{finding['id']}, verdict": ("", finding["verdict"])}
    for table in finding["tables"]:
        for line in table["lines"]:
            for column, value in zip(table["columns"], line["values"], strict=True):
                name = f"{finding['id']}, {table['title']}, {line['label']}, {column['label']}"
                found |= {} if value is None else {name: (column["unit"], _ends(value))}
    for chart in finding["charts"]:
        for curve in chart["curves"]:
            name = f"{finding['id']}, {chart['title']}, {curve['label']}"
            found |= {f"{name} at {x:g}": ("", _ends(y)) for x, y in zip(curve["x"], curve["y"], strict=True)}
    return found


def _unit(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""


def _ends(value: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(value[name] for name in ("mean", "low", "high", "num_clips", "num_episodes"))


def tolerance(unit: str, value: float) -> float:
    """How much a number may change elsewhere, in its unit (see `TOLERANCES`)."""
    return max(TOLERANCES.get(unit, OTHERWISE), SHARE * abs(value))


def _compared(name: str, unit: str, recorded: Any, found: _Value | None, *, exact: bool) -> Number:
    """A number then and now.

    Args:
        exact: nothing differs that could change it, so that nothing is tolerated.
    """
    if found is None:
        return Number(name=name, unit=unit, recorded=recorded, found=None, verdict="not computed")
    now, verdict = found[1], "different"
    if now == recorded:
        verdict = "equal"
    elif not exact and _near(unit, recorded, now):
        verdict = "within tolerance"
    return Number(name=name, unit=unit, recorded=recorded, found=now, verdict=verdict)


def _near(unit: str, one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return one[3:] == other[3:] and all(_near(unit, a, b) for a, b in zip(one[:3], other[:3], strict=True))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return type(one) is not bool and abs(one - other) <= tolerance(unit, one)
    return one == other
