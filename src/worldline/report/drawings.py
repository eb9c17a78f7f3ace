"""Curves of a page as inline SVG. Knows nothing of HTML.

matplotlib draws with stand-in colours; they become CSS variables afterwards, so that one drawing serves the light and
the dark page. Legends are HTML, because text in a scaled drawing is too small on a phone.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from worldline.evaluation.result import Chart, Evaluation, Role, label_of
from worldline.evaluation.rows import entry_of
from worldline.metrics.table import METRICS
from worldline.report.tables import listed

if TYPE_CHECKING:  # imported where it draws: most commands draw nothing, and it takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 600
MUTED, RULE = "#010102", "#010103"
SERIES = [f"#0102{i:02d}" for i in range(6)]
VARIABLES = {"muted": MUTED, "rule": RULE, "ink": "#010101", **{f"s{i}": colour for i, colour in enumerate(SERIES)}}
DASHES: dict[Role, tuple[float, ...]]
DASHES = {"model": (), "baseline": (5.0, 2.5), "ceiling": (1.2, 2.0), "ablation": (6.0, 2.0, 1.2, 2.0)}


class Line(NamedTuple):
    """A curve, its band and its dashes in widths of the line. The colour of the n-th is the n-th of `SERIES`."""

    label: str
    x: np.ndarray
    y: np.ndarray
    band: tuple[np.ndarray, np.ndarray] | None = None
    dashes: tuple[float, ...] = ()


class Drawing(NamedTuple):
    """An inline SVG, its lines for a legend, and what to say below it."""

    title: str
    svg: str
    lines: list[Line]
    note: str

    @property
    def said(self) -> str:
        """Where each line begins and ends, for who hears the page."""
        ends = [
            f"{line.label} from {line.y[0]:.4g} at {line.x[0]:g} to {line.y[-1]:.4g} at {line.x[-1]:g}"
            for line in self.lines
            if len(line.x)
        ]
        return f"{self.title}: {'; '.join(ends) or 'nothing to draw'}"


def over_time(evaluation: Evaluation, metric: str) -> Drawing:
    """Draw a metric against the future frame with bands of its intervals; of many rows the main ones."""
    curves = evaluation.curves[metric]
    rows = [row for row in listed(evaluation.rows) if row.id in curves]
    if len(rows) > len(SERIES):
        rows = [row for row in rows if row is rows[0] or ((entry := entry_of(row.id)) is not None and entry.shown)]
    lines: list[Line] = []
    for row in rows:
        mean, low, high = np.array([(value.mean, value.low, value.high) for value in curves[row.id]]).T
        lines.append(Line(label_of(row.id), np.arange(1, len(mean) + 1), mean, (low, high), DASHES[row.role]))
    longest = max(len(line.x) for line in lines)
    note = f"{longest} future frames are {evaluation.data.horizon_frames / evaluation.data.fps:.2f} s."
    if any(line.band and np.isnan(line.band[0]).any() for line in lines):
        note += " No band: one episode says nothing of how episodes differ."
    return _draw(METRICS[metric].label, "future frame", METRICS[metric].unit or METRICS[metric].label, lines, note)


def over_steps(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> Drawing:
    """Draw logged series against the training step; values that are not finite leave a gap, counted below."""
    lines, note = [], ""
    for name, points in series.items():
        steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        broken = ~np.isfinite(values)
        if broken.any():
            note += f" {int(broken.sum())} values of {name} are not finite and left out."
            values = np.where(broken, math.nan, values)
        if len(steps) > MAX_POINTS:
            note += f" {name}: {len(steps)} values, averaged to {MAX_POINTS}."
            parts = (np.array_split(column, MAX_POINTS) for column in (steps, values))
            steps, values = (np.array([part.mean() for part in column]) for column in parts)
        lines.append(Line(name, steps, values))
    return _draw(title, "step", title, lines, note.strip())


def of_chart(chart: Chart) -> Drawing:
    """Draw a chart of a finding; points that are not finite are left out."""
    lines = []
    for number, curve in enumerate(chart.curves):
        x = np.array(curve.x, dtype=np.float64)
        mean, low, high = np.array([(one.mean, one.low, one.high) for one in curve.y]).reshape(-1, 3).T
        dashes = () if number < len(SERIES) else DASHES["baseline"]
        lines.append(Line(curve.label, x, mean, (low, high), dashes))
    return _draw(chart.title, chart.x_label, chart.y_label, lines, "")


def scatter(
    title: str, x_label: str, y_label: str, x: Sequence[float], y: Sequence[float], *, label: str, note: str
) -> Drawing:
    """Draw a point for each pair of numbers, over the line on which both are the same."""
    figure, axes = _bare((4.4, 4.0), x_label, y_label, nbins=6)
    line = Line(label, np.array(x, dtype=np.float64), np.array(y, dtype=np.float64))
    known = np.concatenate([line.x, line.y])
    low, high = (float(end(known[np.isfinite(known)], initial=start)) for end, start in ((np.min, 1e9), (np.max, -1e9)))
    room = 0.06 * (high - low) or 1.0
    axes.plot([low - room, high + room], [low - room, high + room], color=MUTED, linewidth=1, dashes=(4, 3))
    axes.scatter(line.x, line.y, s=22, color=SERIES[0], alpha=0.75, linewidths=0)
    axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
    return Drawing(title, _svg(figure), [line], note)


def rates_drawing(
    title: str,
    x_label: str,
    y_label: str,
    x: Float[np.ndarray, "3 k"],
    y: Float[np.ndarray, "3 k"],
    *,
    note: str,
) -> Drawing:
    """Draw a numbered point for each pair of rates in per cent, with their intervals (rows: value, low, high)."""
    figure, axes = _bare((4.4, 4.0), x_label, y_label, nbins=6)
    axes.plot([-4, 104], [-4, 104], color=MUTED, linewidth=1, dashes=(4, 3))
    axes.hlines(y[0], x[1], x[2], color=SERIES[0], linewidth=0.8, alpha=0.35)
    axes.vlines(x[0], y[1], y[2], color=SERIES[0], linewidth=0.8, alpha=0.35)
    axes.scatter(x[0], y[0], s=22, color=SERIES[0], alpha=0.75, linewidths=0)
    for number, (across, up) in enumerate(zip(x[0], y[0], strict=True), start=1):
        if np.isfinite(across) and np.isfinite(up):
            axes.annotate(str(number), (across, up), (4, 3), textcoords="offset points", color=MUTED, fontsize=9)
    axes.set(xlim=(-4, 104), ylim=(-4, 104), aspect="equal")
    order = np.argsort(x[0], kind="stable")
    line = Line(f"{x.shape[1]} policies", x[0][order], y[0][order])
    return Drawing(title, _svg(figure), [line], note)


def _bare(size: tuple[float, float], x_label: str, y_label: str, **ticks: Any) -> "tuple[Figure, Axes]":
    """A drawing of a size in inches with no more than a line below and lines across; ticks of the line below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(**ticks))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=11, pad=5)
    axes.set_xlabel(x_label, color=MUTED, fontsize=11)
    axes.set_ylabel(y_label, color=MUTED, fontsize=11)
    return figure, axes


def _draw(title: str, x_label: str, y_label: str, lines: list[Line], note: str) -> Drawing:
    whole = all((line.x == line.x.round()).all() for line in lines)
    figure, axes = _bare((5.4, 3.3), x_label, y_label, nbins=7, steps=[1, 2, 5, 10], integer=whole)
    axes.margins(x=0.02)
    for number, line in enumerate(lines):
        colour = SERIES[number % len(SERIES)]
        if line.band:
            axes.fill_between(line.x, *line.band, color=colour, alpha=0.16, linewidth=0)
        marker = "" if len(line.x) > 12 and (line.band or len(line.x) > 40) else "o"
        style = {"color": colour, "linewidth": 1.7, "dashes": line.dashes or (1, 0), "marker": marker}
        axes.plot(line.x, line.y, markersize=3, **style)
    return Drawing(title, _svg(figure), lines, note)


def _svg(figure: "Figure") -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "worldline"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # A style inside an inline SVG would apply to the whole page; the page has these rules itself.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Namespaces are only for XML files; ids of groups would repeat from drawing to drawing.
    svg = re.sub(r' (xmlns(:xlink)?="[^"]*"|(?<=<g )id="[^"]*")', "", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    for variable, colour in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
