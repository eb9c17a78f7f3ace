"""Curves as inline SVG that takes its colours and font from the page. Knows numbers, nothing of run folders.

matplotlib draws with stand-in colours; they become CSS variables afterwards, so that one drawing serves the
light and the dark page. Legends are HTML (`Key`), because text in a scaled drawing is too small on a phone.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldline.evaluation.result import Role, label_of
from worldline.metrics.bootstrap import Interval
from worldline.metrics.table import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 600
INK, MUTED, RULE = "#010101", "#010102", "#010103"
SERIES = tuple(f"#0102{i:02d}" for i in range(6))
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", **{colour: f"s{i}" for i, colour in enumerate(SERIES)}}
DASHES: dict[Role, tuple[float, ...]] = {
    "model": (),
    "baseline": (5.0, 2.5),
    "ceiling": (1.2, 2.0),
    "ablation": (6.0, 2.0, 1.2, 2.0),
}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of a legend."""

    label: str
    variable: str
    """CSS variable of its colour."""
    dashes: str
    """As `stroke-dasharray`; empty for a solid line."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """An inline SVG, its legend and what to say below it."""

    title: str
    svg: str
    keys: tuple[Key, ...]
    note: str = ""


def over_time(metric: str, curves: dict[str, list[Interval]], roles: dict[str, Role], fps: float) -> Drawing:
    """Draw a metric against the future frame, one line per row, with the band of its interval."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _blank("future frame", METRICS[metric].unit or METRICS[metric].label)
    keys = []
    for i, (name, curve) in enumerate(curves.items()):
        colour, dashes = SERIES[i % len(SERIES)], DASHES[roles[name]]
        frames = np.arange(1, len(curve) + 1)
        low, high = ([getattr(value, end) for value in curve] for end in ("low", "high"))
        axes.fill_between(frames, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(frames, [value.mean for value in curve], color=colour, linewidth=1.8, dashes=dashes or (1, 0))
        keys.append(Key(label=label_of(name), variable=VARIABLES[colour], dashes=_dasharray(dashes)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    longest = max(len(curve) for curve in curves.values())
    note = f"{longest} future frames are {longest / fps:.2f} s."
    if any(math.isnan(value.low) for curve in curves.values() for value in curve):
        note += " No band: one episode says nothing of how episodes differ."
    return Drawing(title=METRICS[metric].label, svg=_svg(figure), keys=tuple(keys), note=note)


def over_steps(title: str, series: dict[str, Sequence[tuple[float, float]]]) -> Drawing:
    """Draw logged series against the training step; values that are not finite leave a gap, counted below."""
    figure, axes = _blank("step", title)
    keys, note = [], ""
    for i, (name, points) in enumerate(series.items()):
        steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        broken = ~np.isfinite(values)
        if broken.any():
            note += f" {int(broken.sum())} values of {name} are not finite and left out."
            values = np.where(broken, math.nan, values)
        if len(steps) > MAX_POINTS:
            note += f" {name}: {len(steps)} values, averaged to {MAX_POINTS}."
            steps, values = (_thinned(column) for column in (steps, values))
        marker = "o" if len(steps) <= 40 else ""
        axes.plot(steps, values, color=SERIES[i], linewidth=1.6, marker=marker, markersize=3)
        keys.append(Key(label=name, variable=VARIABLES[SERIES[i]], dashes=""))
    return Drawing(title=title, svg=_svg(figure), keys=tuple(keys), note=note.strip())


def _thinned(values: np.ndarray) -> np.ndarray:
    return np.array([part.mean() for part in np.array_split(values, MAX_POINTS)])


def _dasharray(dashes: tuple[float, ...]) -> str:
    return " ".join(f"{dash * 1.8:g}" for dash in dashes)


def _blank(x_label: str, y_label: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.3), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=11, pad=5)
    axes.set_xlabel(x_label, color=MUTED, fontsize=11)
    axes.set_ylabel(y_label, color=MUTED, fontsize=11)
    axes.margins(x=0.02)
    return figure, axes


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
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" aria-hidden="true">', svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
