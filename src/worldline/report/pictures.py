"""Pictures of a page: curves as inline SVG, forecasts as moving pictures in data URIs. Knows nothing of HTML.

matplotlib draws with stand-in colours; they become CSS variables afterwards, so that one drawing serves the light and
the dark page. Legends are HTML, because text in a scaled drawing is too small on a phone. Every panel of a film has a
frame of its own, in the pixels: grey while it shows what the forecaster was given, orange while it shows what it made.
"""

import base64
import io
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worldline.evaluation.result import Evaluation, Role, label_of
from worldline.formats.video import encode
from worldline.metrics.table import METRICS

MAX_POINTS = 600
MUTED, RULE = "#010102", "#010103"
SERIES = [f"#0102{i:02d}" for i in range(6)]
VARIABLES = {"muted": MUTED, "rule": RULE, "ink": "#010101", **{f"s{i}": colour for i, colour in enumerate(SERIES)}}
DASHES: dict[Role, tuple[float, ...]]
DASHES = {"model": (), "baseline": (5.0, 2.5), "ceiling": (1.2, 2.0), "ablation": (6.0, 2.0, 1.2, 2.0)}
GIVEN, PREDICTED = (140, 145, 152), (230, 120, 40)
SHORTEST_SECONDS = 2.5
PANEL_WIDTH = 192
"""Narrower panels are enlarged to about this before encoding: H.264 keeps one colour per 2x2 pixels."""


# --- curves ---


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


def over_time(evaluation: Evaluation, metric: str) -> Drawing:
    """Draw a metric against the future frame, one line per row, with the band of its interval."""
    lines: list[Line] = []
    roles: dict[str, Role] = {row.id: row.role for row in evaluation.rows}
    for id, curve in evaluation.curves[metric].items():
        mean, low, high = np.array([(value.mean, value.low, value.high) for value in curve]).T
        lines.append(Line(label_of(id), np.arange(1, len(curve) + 1), mean, (low, high), DASHES[roles[id]]))
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


def _draw(title: str, x_label: str, y_label: str, lines: list[Line], note: str) -> Drawing:
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for number, line in enumerate(lines):
        colour = SERIES[number % len(SERIES)]
        if line.band:
            axes.fill_between(line.x, *line.band, color=colour, alpha=0.16, linewidth=0)
        marker = "" if line.band or len(line.x) > 40 else "o"
        style = {"color": colour, "linewidth": 1.7, "dashes": line.dashes or (1, 0), "marker": marker}
        axes.plot(line.x, line.y, markersize=3, **style)
    return Drawing(title, _svg(figure), lines, note)


def _svg(figure: Figure) -> str:
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
    for variable, colour in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


# --- films ---


class Forecasts(NamedTuple):
    """Example forecasts beside what really happened. Frames include the context, which comes first."""

    real: UInt8[np.ndarray, "n t h w 3"]
    rows: dict[str, UInt8[np.ndarray, "n t h w 3"]]
    context: int
    """Frames the forecasters were given."""
    psnr: Float[np.ndarray, " n"]
    """PSNR in dB of each clip's forecast by the first row."""


class Film(NamedTuple):
    """One clip as a page shows it, at `fps` frames per second, which is `speed` (say, `at 1/4 speed`)."""

    title: str
    psnr: float
    panels: tuple[str, ...]
    uri: str
    num_frames: int
    context: int
    fps: float
    speed: str


def films(forecasts: Forecasts, fps: float | None) -> list[Film]:
    """Film the best, median and worst clip by PSNR (of few clips fewer) of a recording at `fps`, if that is known."""
    order = [int(clip) for clip in np.argsort(-forecasts.psnr, kind="stable")]
    chosen = [("Best clip", order[0]), ("Median clip", order[(len(order) - 1) // 2]), ("Worst clip", order[-1])]
    few = {1: [("The only clip", order[0])], 2: [chosen[0], chosen[-1]]}
    return [_film(*one, forecasts, fps) for one in few.get(len(order), chosen)]


def strip(panels: list[UInt8[np.ndarray, "t h w 3"]], context: int) -> UInt8[np.ndarray, "t height width 3"]:
    """Put panels side by side, each in its frame. The first is the real video and stays grey throughout."""
    width = panels[0].shape[2]
    scale = -(-PANEL_WIDTH // width)
    border = max(4, scale * width // 96 * 2)
    framed = []
    for number, panel in enumerate(panels):
        big = repeat(panel, "t h w c -> t (h a) (w b) c", a=scale, b=scale)
        # H.264 wants even sizes.
        big = np.pad(big, ((0, 0), (0, big.shape[1] % 2), (0, big.shape[2] % 2), (0, 0)), mode="edge")
        canvas = np.empty((len(big), big.shape[1] + 2 * border, big.shape[2] + 2 * border, 3), np.uint8)
        canvas[:] = GIVEN
        if number:
            canvas[context:] = PREDICTED
        canvas[:, border:-border, border:-border] = big
        framed.append(canvas)
    return rearrange(framed, "n t h w c -> t h (n w) c")


def _film(title: str, clip: int, forecasts: Forecasts, fps: float | None) -> Film:
    real, context = forecasts.real[clip], forecasts.context
    panels = {"real": real, **{name: frames[clip] for name, frames in forecasts.rows.items()}}
    panels.setdefault("copy_last", np.concatenate([real[:context], real[[context - 1] * (len(real) - context)]]))
    if fps is None:
        shown, speed = 10.0, "at 10 frames per second; the recorded rate is not known"
    else:  # short clips are slowed down by powers of two
        slower = next((n for n in (1, 2, 4, 8) if len(real) * n / fps >= SHORTEST_SECONDS), 16)
        shown, speed = fps / slower, "in real time" if slower == 1 else f"at 1/{slower} speed"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        encode(path, strip(list(panels.values()), context), fps=shown, crf=16, gop=8)
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    names, uri = tuple(label_of(name) for name in panels), f"data:video/mp4;base64,{data}"
    return Film(title, float(forecasts.psnr[clip]), names, uri, len(real), context, shown, speed)
