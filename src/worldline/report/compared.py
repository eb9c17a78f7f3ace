"""A comparison of evaluations as text, and as one page."""

import math
from pathlib import Path

from markupsafe import Markup

from worldline.evaluation.compare import Compared, Paired
from worldline.evaluation.result import label_of
from worldline.files import atomic
from worldline.metrics.table import METRICS
from worldline.report.drawings import Drawing, of_chart, scatter
from worldline.report.tables import format_interval, format_number, laid
from worldline.report.write import TEMPLATES, engine
from worldline.schema import UsageError

TOGETHER = (
    "Differences are paired: on the same clips, so what is difficult in a clip cancels. The second interval holds "
    "together with all others of this table (max-T over whole episodes); a run is called better by that one alone."
)


def compared_text(found: Compared) -> str:
    """Lay out a comparison for a terminal: what to know first, rows, then differences or the points of curves."""
    lines = [found.facts, *(f"note: {note}" for note in found.notes), ""]
    heads = ["", *(METRICS[metric].heading for metric in found.metrics)]
    body = []
    for runs, row in found.rows:
        cells = [row.metrics.get(metric) for metric in found.metrics]
        if any(cell is not None for cell in cells):
            shown = (
                "-" if cell is None else format_interval(cell, METRICS[metric].unit)
                for cell, metric in zip(cells, found.metrics, strict=True)
            )
            body.append([f"{runs}: {label_of(row.id)}", *shown])
    lines += laid([heads, *body])
    if found.differences:
        heads = ["difference", "metric", "95 % by itself", "95 % together", "p", "better"]
        lines += ["", *laid([heads, *map(paired_cells, found.differences)]), "", TOGETHER]
    for chart, metric in zip(found.curves, found.metrics, strict=False):
        unit, points = METRICS[metric].unit, [[f"{chart.x_label}", chart.y_label, "run"]]
        for curve in chart.curves:
            pairs = zip(curve.x, curve.y, strict=True)
            points += [[f"{x:g}", format_interval(y, unit), curve.label] for x, y in pairs]
        lines += ["", *laid(points)]
    return "\n".join(lines)


def write_compared(found: Compared, out: Path) -> Path:
    """Write a comparison as one self-contained page; return its path.

    Args:
        out: an HTML file, or a folder for a `compare.html`.

    Raises:
        UsageError: a file of another kind.
    """
    if out.suffix not in ("", ".html"):
        raise UsageError(f"{out} is no page; give a name that ends with .html, or a folder (--out compare.html)")
    path = out if out.suffix else out / "compare.html"
    page = (
        engine()
        .get_template("compare.html.j2")
        .render(
            found=found,
            runs=list(found.commands),
            metrics=[METRICS[metric] for metric in found.metrics],
            differences=[paired_cells(one) for one in found.differences],
            drawings=[*map(of_chart, found.curves), *_scatters(found)],
            together=TOGETHER,
            style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _scatters(found: Compared) -> list[Drawing]:
    note = "Each point is an episode. On the dashed line both runs are the same"
    drawn = []
    for one in found.scatters:
        better = "below" if METRICS[one.metric].higher_is_better else "above"
        said = f"{note}; {better} it, {one.one} is better." if METRICS[one.metric].target is None else f"{note}."
        points = {"x": one.x, "y": one.y, "label": f"{len(one.x)} episodes"}
        drawn.append(scatter(METRICS[one.metric].heading, one.one, one.other, **points, note=said))
    return drawn


def paired_cells(one: Paired) -> list[str]:
    """A line of the table of differences."""
    unit, low, high, p = METRICS[one.metric].unit, one.together.low, one.together.high, one.together.p
    together = "-" if math.isnan(low) else f"[{format_number(low, unit)}, {format_number(high, unit)}]"
    alone = format_interval(one.difference, unit)
    chance = "-" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"
    return [
        f"{one.one} minus {one.other}",
        METRICS[one.metric].heading,
        alone,
        together,
        chance,
        one.better or ("undecided" if METRICS[one.metric].target is None else "-"),
    ]
