"""A verified receipt as text."""

from typing import Any

from worldline.evaluation.result import label_of
from worldline.evaluation.verify import Verification


def verification_text(found: Verification, *, most: int = 20) -> str:
    """Say of a verified receipt what differs, and of the numbers those that do: at most so many."""
    lines = [f"receipt: {found.receipt}", f"command: {found.command}", ""]
    lines += [f"not the same: {one.part}: {one.recorded} in the receipt, {one.found} here" for one in found.differences]
    numbers = [one for one in found.numbers or () if one.verdict not in ("equal", "within tolerance")]
    for one in numbers[:most]:
        now = "not computed" if one.found is None else f"{_value(one.found, one.unit)} now"
        lines.append(f"{one.verdict}: {one.name}: {_value(one.recorded, one.unit)} in the receipt, {now}")
    lines += [f"... and {len(numbers) - most} more (--json names all)"] if len(numbers) > most else []
    absent = found.not_computed if any(one.found is None for one in numbers) else {}
    lines += [f"not computed: {label_of(id)}: {why}" for id, why in absent.items()]
    lines += [f"{found.more} numbers are computed now that the receipt does not have"] if found.more else []
    return "\n".join([*lines, found.summary])


def _value(value: Any, unit: str) -> str:
    """A number of a verification as text, with enough digits to see a difference."""
    if not isinstance(value, tuple):
        return str(value)
    mean, low, high = ("-" if one is None else f"{one:.6g}" for one in value[:3])
    return f"{mean} [{low}, {high}] {unit}".rstrip()
