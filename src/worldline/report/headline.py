"""The first thing a page says of a run: does it follow the robot, how far ahead is it good, what is it unsure of?

Put together from what the evaluation holds, and from nothing else. What it does not hold is said, with the reason.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from worldline.evaluation.result import Evaluation, Finding, Row, label_of
from worldline.metrics.bootstrap import Interval, intervals
from worldline.report.tables import format_number

Tone = Literal["yes", "partly", "no", "unknown"]
METRIC = "psnr_db"
TONES: dict[str, Tone] = {"follows": "yes", "follows partly": "partly", "ignores": "no"}
"""Of the audit's verdicts; any other is `unknown`."""


class Scores(NamedTuple):
    """The numbers of every clip, as the evaluation wrote them into scores.npz."""

    episodes: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " n"]
    values: Mapping[tuple[str, str], Float[np.ndarray, "n f"]]
    """(row, metric) -> a number for each predicted frame."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question."""

    question: str
    tone: Tone
    verdict: str
    """A few words."""
    clause: str
    """A part of a sentence whose subject is the world, without a full stop."""
    detail: str
    """The evidence in full, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One sentence, and the answers it is made of."""

    sentence: str
    answers: tuple[Answer, ...]


def headline(evaluation: Evaluation, scores: Scores | None = None) -> Headline:
    """Say in one sentence what an evaluation found.

    Args:
        scores: of every clip, for paired differences at each frame; else curves are compared, which is stricter.
    """
    if evaluation.protocol == "tokenizer":
        return _of_tokenizer(evaluation)
    if evaluation.protocol == "states":
        finding = finding_of(evaluation, "readable_states")
        said = why_not(evaluation, "readable_states") if finding is None else finding.sentence
        return Headline(sentence=f"This model reads states from pictures. {said}", answers=())
    answers = _follows(evaluation), _ahead(evaluation, scores), _unsure(evaluation)
    known = [answer.clause for answer in answers if answer.tone != "unknown" or answer.clause]
    return Headline(sentence=f"This world {_listed(known)}.", answers=answers)


def finding_of(evaluation: Evaluation, id: str) -> Finding | None:
    """The finding of a study, if there is one."""
    return next((one for one in evaluation.findings if one.id == id), None)


def why_not(evaluation: Evaluation, id: str) -> str:
    """Why there is no finding of a study."""
    if evaluation.protocol not in ("compression", "sampling"):
        return "this model makes no forecast"
    return evaluation.not_computed.get(id, "this evaluation is of a version without it; evaluate again")


def forecast_row(evaluation: Evaluation) -> Row | None:
    """The forecast that the other rows are compared with: the first one of the model."""
    return next((row for row in evaluation.rows if row.role == "model"), None)


# --- follows the robot ---


def _follows(evaluation: Evaluation) -> Answer:
    question, finding = "Does it follow the robot?", finding_of(evaluation, "audit")
    if finding is None:
        why, cost = why_not(evaluation, "audit"), _cost_of_other_states(evaluation)
        detail = f"Not computed: {why}.{f' {cost}' if cost else ''}"
        clause = "was not audited for whether it follows the robot"
        return Answer(question=question, tone="unknown", verdict="not computed", clause=clause, detail=detail)
    clauses = {
        "follows": "follows the robot",
        "follows partly": "follows the robot in part",
        "ignores": "ignores the robot",
    }
    clause = clauses.get(finding.verdict, f"is “{finding.verdict}” on whether it follows the robot")
    tone = TONES.get(finding.verdict, "unknown")
    return Answer(question=question, tone=tone, verdict=finding.verdict, clause=clause, detail=finding.sentence)


def _cost_of_other_states(evaluation: Evaluation) -> str:
    """What another clip's states cost, where no audit says it."""
    claims = [one for one in evaluation.comparisons if (one.than, one.metric) == ("shuffled_states", "psnr_db_last")]
    if not claims:
        return ""
    cost = _said(claims[0].difference)
    return f"With the states of another clip its last frame is {cost} dB worse."


# --- how far ahead ---


def _ahead(evaluation: Evaluation, scores: Scores | None) -> Answer:
    question, row = "How far ahead does it beat copy-last?", forecast_row(evaluation)
    found = _differences(evaluation, row.id, scores) if row else "the evaluation has no forecast"
    if isinstance(found, str):
        clause = "was not compared with copy-last frame by frame"
        return Answer(
            question=question, tone="unknown", verdict="not computed", clause=clause, detail=f"Not computed: {found}."
        )
    better, seconds = found.low > 0, found.seconds
    if not better.any():
        detail = (
            f"At no predicted frame is it better beyond doubt ({found.how}); the last is {_clock(seconds[-1])} ahead."
        )
        clause = "does not beat copy-last at any frame"
        return Answer(question=question, tone="no", verdict="at no frame", clause=clause, detail=detail)
    first, last = int(better.argmax()), len(better) - 1 - int(better[::-1].argmax())
    whole, to_end = bool(better[first : last + 1].all()), last == len(better) - 1
    gain = f"{format_number(float(found.mean[last]), 'dB')} dB there"
    reach = f"up to {_clock(seconds[last])} ahead{', the end of its horizon' if to_end else ''} ({gain})"
    since = "" if first == 0 else f"from {_clock(seconds[first])} "
    clause = f"beats copy-last {since}{reach}{'' if whole else ', though not at every frame before'}"
    of = f"{int(better.sum())} of {len(better)} predicted frames"
    detail = f"Its PSNR is higher beyond doubt at {of} ({found.how})."
    tone: Tone = "yes" if to_end else "partly"
    return Answer(question=question, tone=tone, verdict=f"to {_clock(seconds[last])}", clause=clause, detail=detail)


class _Differences(NamedTuple):
    """Forecast minus copy-last at each predicted frame: mean, lower end of the interval, and the time."""

    mean: np.ndarray
    low: np.ndarray
    seconds: np.ndarray
    how: str


def _differences(evaluation: Evaluation, row: str, scores: Scores | None) -> "_Differences | str":
    """The differences, or why there are none."""
    curves = evaluation.curves.get(METRIC, {})
    ours, copied = curves.get(row), curves.get("copy_last")
    if not ours or not copied:
        return evaluation.not_computed.get(METRIC, f"there is no PSNR of both {label_of(row)} and copy-last")
    if math.isnan(ours[0].low):
        return "all clips are of one episode, which says nothing of others"
    data = evaluation.data
    evenly = np.arange(1, len(ours) + 1) * data.horizon_frames / len(ours)
    seconds = (np.array(data.times) if data.times else evenly) / data.fps
    keys = (row, METRIC), ("copy_last", METRIC)
    if scores is not None and all(key in scores.values for key in keys):
        gap = torch.from_numpy(scores.values[keys[0]].astype(np.float64) - scores.values[keys[1]])
        paired = intervals(gap, torch.from_numpy(scores.episodes.astype(np.int64)))
        mean, low = np.array([(one.mean, one.low) for one in paired]).T
        return _Differences(mean, low, seconds, "paired 95 % intervals over episodes, above zero")
    mean = np.array([a.mean - b.mean for a, b in zip(ours, copied, strict=True)])
    low = np.array([a.low - b.high for a, b in zip(ours, copied, strict=True)])
    return _Differences(mean, low, seconds, "95 % intervals of the two do not overlap; without scores.npz no pairs")


# --- what it is unsure of ---


SURENESS: dict[str, tuple[Tone, str]] = {
    "yes": ("yes", "knows when it is unsure"),
    "no": ("no", "does not know when it is unsure"),
    "misleading": ("no", "is sure where it should not be"),
    "undecided": ("unknown", "has not shown whether it knows when it is unsure"),
}
"""What the verdicts of the study of uncertainty say of a world."""


def _unsure(evaluation: Evaluation) -> Answer:
    question, finding = "What is it unsure of?", finding_of(evaluation, "uncertainty")
    if finding is None:
        detail = f"Not computed: {why_not(evaluation, 'uncertainty')}."
        clause = "was not asked how sure it is"
        return Answer(question=question, tone="unknown", verdict="not computed", clause=clause, detail=detail)
    other = "unknown", f"is “{finding.verdict}” on whether it knows when it is unsure"
    tone, clause = SURENESS.get(finding.verdict, other)
    # The study's last sentence, if it has several, says of what.
    said = re.split(r"(?<=[.])\s+(?=[A-Z0-9])", finding.sentence.strip().rstrip("."))
    what = f": {said[-1][:1].lower()}{said[-1][1:]}" if len(said) > 1 else ""
    verdict = {"yes": "it knows", "no": "it does not know"}.get(finding.verdict, finding.verdict)
    return Answer(question=question, tone=tone, verdict=verdict, clause=f"{clause}{what}", detail=finding.sentence)


def _of_tokenizer(evaluation: Evaluation) -> Headline:
    """A tokenizer forecasts nothing: how well it keeps a picture is all there is to say."""
    kept = next((row.metrics["psnr_db_mean"] for row in evaluation.rows if "psnr_db_mean" in row.metrics), None)
    if kept is None:
        return Headline(sentence="This tokenizer was not scored on pictures.", answers=())
    said = f"This tokenizer gives back the pictures it encodes at {_said(kept)} dB PSNR; it makes no forecast."
    return Headline(sentence=said, answers=())


def _said(value: Interval) -> str:
    numbers = (format_number(number, "dB") for number in (value.mean, value.low, value.high))
    mean, low, high = (number.replace("-", "\N{MINUS SIGN}") for number in numbers)
    return mean if math.isnan(value.low) else f"{mean} ({low} to {high})"


def _clock(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
