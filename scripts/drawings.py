"""Draw the pages' flows and the house as SVG, which a browser shows by itself: no plugin, no network.

python scripts/drawings.py [FOLDER]      (docs/media if not given; a test compares it with what is there)

Boxes lie on a grid and arrows join them. Colours say what a box is: data, a model or function, something on disk.
They are readable on a light page and on a dark one.
"""

import sys
import tomllib
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 148, 46, 44, 34, 8
COLOURS = {"data": "#00695c", "step": "#3949ab", "disk": "#8d5a00", "layer": "#455a64"}
ARROW = "#8a8f98"


@dataclass(frozen=True)
class Box:
    """A box on the grid; its text may have two lines."""

    column: float
    row: float
    text: str
    kind: str = "step"

    @property
    def left(self) -> float:
        return MARGIN + self.column * (WIDTH + GAP_X)

    @property
    def top(self) -> float:
        return MARGIN + self.row * (HEIGHT + GAP_Y)


@dataclass(frozen=True)
class Drawing:
    title: str
    boxes: dict[str, Box]
    arrows: str
    """Pairs such as `frames>tokenizer`, apart by spaces; `a>b>c` is two."""


FLOWS = {
    "flow": Drawing(
        "From disk to a report",
        {
            "disk": Box(0, 0, "1X, LeRobot,\nlatents on disk", "disk"),
            "source": Box(1, 0, "Source", "data"),
            "clip": Box(2, 0, "Clips", "data"),
            "batch": Box(3, 0, "Batch", "data"),
            "tokenizer": Box(3, 1, "Tokenizer.encode"),
            "loss": Box(2, 1, "World.loss"),
            "run": Box(1, 1, "run folder", "disk"),
            "forecaster": Box(1, 2, "Forecaster"),
            "forecast": Box(2, 2, "Forecasts", "data"),
            "metrics": Box(3, 2, "metrics.json", "disk"),
            "report": Box(3, 3, "report.html", "disk"),
            "states": Box(0, 2, "context\nand states", "data"),
        },
        "disk>source>clip>batch>tokenizer>loss>run>forecaster>forecast>metrics>report states>forecaster",
    ),
    "data": Drawing(
        "Data: from a folder to a batch",
        {
            "disk": Box(0, 0, "folder on disk", "disk"),
            "source": Box(1, 0, "open_source:\nSource", "step"),
            "held": Box(2, 0, "held-out check on\nresolved episodes"),
            "windows": Box(3, 0, "source_windows"),
            "clip": Box(3, 1, "Clip: frames,\nstates, origin", "data"),
            "augment": Box(2, 1, "size, crop\nand colours"),
            "loader": Box(1, 1, "Loader: order by\nseed and step"),
            "batch": Box(0, 1, "Batch", "data"),
        },
        "disk>source>held>windows>clip>augment>loader>batch",
    ),
    "data_checks": Drawing(
        "What is checked, and when",
        {
            "files": Box(0, 0, "files", "disk"),
            "meta": Box(1, 0, "metadata\nagainst files"),
            "pairs": Box(2, 0, "rows and frames\npaired by time"),
            "episodes": Box(3, 0, "episodes checked"),
            "work": Box(4, 0, "costly work", "data"),
            "refused": Box(2, 1, "refused: what is\nwrong, what to do", "layer"),
        },
        "files>meta>pairs>episodes>work meta>refused pairs>refused episodes>refused",
    ),
    "twin": Drawing(
        "The twin: from a seed to data",
        {
            "seed": Box(0, 0.5, "seed and number\nof the episode", "data"),
            "scene": Box(1, 0, "scene: room,\nobjects, light"),
            "behaviour": Box(1, 1, "behaviour:\nwhat it is to do"),
            "physics": Box(2, 0.5, "MuJoCo physics"),
            "camera": Box(3, 0, "head camera:\nframes", "data"),
            "states": Box(3, 1, "25 measured\nstates", "data"),
            "disk": Box(4, 0.5, "1X raw layout", "disk"),
        },
        "seed>scene>physics seed>behaviour>physics physics>camera>disk physics>states>disk",
    ),
    "compression": Drawing(
        "The compression track: tokens in, tokens out",
        {
            "frames": Box(0, 0, "17 frames", "data"),
            "tokenizer": Box(1, 0, "tokenizer"),
            "grids": Box(2, 0, "3 token grids", "data"),
            "world": Box(3, 0.5, "transformer:\nspace, time, MLP"),
            "states": Box(0, 1, "34 rows of states", "data"),
            "encoder": Box(1, 1, "state encoder"),
            "codes": Box(2, 1, "one vector\nfor each grid", "data"),
            "next": Box(4, 0.5, "the next grid", "data"),
            "again": Box(4, 1.6, "joins the past,\nthree times"),
            "decoder": Box(5, 0.5, "tokenizer:\n17 future frames"),
        },
        "frames>tokenizer>grids>world states>encoder>codes>world world>next>decoder next>again>world",
    ),
    "sampling": Drawing(
        "The sampling track: from noise to the future",
        {
            "frames": Box(0, 0, "17 frames", "data"),
            "vae": Box(1, 0, "VAE"),
            "context": Box(2, 0, "2 clean latents", "data"),
            "noise": Box(0, 1, "noise for\n4 latents", "data"),
            "mix": Box(2, 1, "4 noisy latents", "data"),
            "states": Box(0, 2, "77 rows of states", "data"),
            "modulation": Box(2, 2, "shift, scale and gate\nfor each latent"),
            "world": Box(3, 1, "Wan's transformer,\n20 steps"),
            "latents": Box(4, 1, "4 future latents", "data"),
            "decoder": Box(4, 0, "VAE: frames to\n2 seconds ahead"),
        },
        "frames>vae>context>world noise>mix>world states>modulation>world world>latents>decoder",
    ),
    "runs": Drawing(
        "A run, and what stops and goes on",
        {
            "recipe": Box(0, 0, "recipe and options"),
            "checks": Box(1, 0, "values and data\nare checked"),
            "prepare": Box(2, 0, "prepare: caches,\nmodel"),
            "loop": Box(3, 0, "training loop"),
            "config": Box(1, 1, "config.json", "disk"),
            "checkpoints": Box(3, 1, "checkpoints", "disk"),
            "resume": Box(2, 1, "--resume"),
            "evaluate": Box(4, 1, "evaluate, forecast"),
        },
        "recipe>checks>prepare>loop>checkpoints>evaluate prepare>config>resume>prepare checkpoints>resume",
    ),
    "forecasts": Drawing(
        "A forecast",
        {
            "context": Box(0, 0, "context: frames\nor tokens", "data"),
            "states": Box(0, 1, "states of context\nand horizon", "data"),
            "forecaster": Box(1, 0.5, "Forecaster:\ntokenizer and world"),
            "samples": Box(2, 0.5, "samples, each by\n(seed, clip, number)", "data"),
            "video": Box(3, 0, "mp4, png", "disk"),
            "arrays": Box(3, 1, "npz: frames, tokens,\nlog-probabilities", "disk"),
        },
        "context>forecaster states>forecaster forecaster>samples samples>video samples>arrays",
    ),
    "memory": Drawing(
        "What lies in memory, one after the other",
        {
            "stays": Box(0, 0, "weights, moments,\naverage: they stay", "layer"),
            "encode": Box(1, 0, "encoding of frames,\nin pieces"),
            "forward": Box(2, 0, "forward:\nactivations"),
            "backward": Box(3, 0, "backward:\ngradients"),
            "validate": Box(4, 0, "validation: decoding,\nin pieces"),
        },
        "stays>encode>forward>backward>validate",
    ),
    "inverse_dynamics": Drawing(
        "Inverse dynamics: what was commanded, and what is shown",
        {
            "states": Box(0, 0, "states that\nare given", "data"),
            "world": Box(1, 0, "world"),
            "forecast": Box(2, 0, "forecast:\neach frame", "data"),
            "truth": Box(2, 1, "true frames", "data"),
            "reader": Box(3, 0.5, "inverse dynamics:\nframe, one before"),
            "read": Box(4, 0.5, "states that\nare shown", "data"),
            "error": Box(5, 0.5, "error of\neach joint"),
        },
        "states>world>forecast>reader>read>error truth>reader",
    ),
    "metrics": Drawing(
        "From forecasts to a figure that can be trusted",
        {
            "forecast": Box(0, 0, "forecasts", "data"),
            "truth": Box(0, 1, "what was recorded", "data"),
            "metric": Box(1, 0.5, "metric: one number\nfor each clip"),
            "bootstrap": Box(2, 0.5, "bootstrap over\nepisodes"),
            "interval": Box(3, 0.5, "mean and interval,\ndifferences", "data"),
            "json": Box(4, 0.5, "metrics.json,\ntables, plots", "disk"),
        },
        "forecast>metric truth>metric metric>bootstrap>interval>json",
    ),
}


def house() -> Drawing:
    """The layers of the import contract: a line may import from any line below it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    boxes: dict[str, Box] = {}
    for row, layer in enumerate(project["tool"]["importlinter"]["contracts"][0]["layers"]):
        for column, name in enumerate(part.strip() for part in layer.split("|")):
            boxes[name] = Box(column, row * 0.72, name.removeprefix("worldline."), "layer")
    first = [name for name, box in boxes.items() if box.column == 0]
    return Drawing("The house: a line may import from any line below it", boxes, ">".join(first))


def svg(drawing: Drawing) -> str:
    """The drawing as an SVG file."""
    boxes = drawing.boxes.values()
    width = max(box.left for box in boxes) + WIDTH + MARGIN
    height = max(box.top for box in boxes) + HEIGHT + MARGIN
    pairs = [pair for chain in drawing.arrows.split() for pair in pairwise(chain.split(">"))]
    parts = [_arrow(drawing.boxes[a], drawing.boxes[b]) for a, b in pairs] + [_box(box) for box in boxes]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">',
            f"<title>{escape(drawing.title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{ARROW}"/></marker></defs>',
            *parts,
            "</svg>\n",
        ]
    )


def _box(box: Box) -> str:
    lines = box.text.split("\n")
    middle = box.top + HEIGHT / 2 + 4.5 - 8 * (len(lines) - 1)
    said = "".join(
        f'<tspan x="{box.left + WIDTH / 2:g}" y="{middle + 16 * number:g}">{escape(line)}</tspan>'
        for number, line in enumerate(lines)
    )
    return (
        f'<rect x="{box.left:g}" y="{box.top:g}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{COLOURS[box.kind]}"/>'
        f'<text fill="#fff" font-family="sans-serif" font-size="13" text-anchor="middle">{said}</text>'
    )


def _arrow(a: Box, b: Box) -> str:
    """From the side of one box that faces the other to the side of the other that faces it."""
    if a.column == b.column:
        down = b.row > a.row
        x = a.left + WIDTH / 2
        ends = (x, a.top + (HEIGHT if down else 0), x, b.top + (0 if down else HEIGHT))
    else:
        right = b.column > a.column
        ends = (
            a.left + (WIDTH if right else 0),
            a.top + HEIGHT / 2,
            b.left + (0 if right else WIDTH),
            b.top + HEIGHT / 2,
        )
    x1, y1, x2, y2 = ends
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{ARROW}" stroke-width="1.6" marker-end="url(#tip)"/>'


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in {**FLOWS, "house": house()}.items():
        (folder / f"{name}.svg").write_text(svg(drawing), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "media")
