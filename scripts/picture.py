"""Make the README's moving picture from a run's evaluation: real | forecast | copy of the last frame, as a GIF.

python scripts/picture.py RUN docs/media/forecast.gif
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLIPS, SCALE, MARGIN = 3, 3, 2
ROWS = ("forecast", "copy_last")
GREY, ORANGE = (90, 90, 90), (230, 120, 20)


def framed(clip: np.ndarray, t: int, context: int) -> np.ndarray:
    """One frame with a border that turns orange where the forecast begins."""
    large = clip[t].repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    colour = GREY if t < context else ORANGE
    pad = [(MARGIN, MARGIN), (MARGIN, MARGIN)]
    return np.stack([np.pad(large[..., c], pad, constant_values=colour[c]) for c in range(3)], axis=-1)


def main(run: Path, out: Path) -> None:
    data = np.load(run / "evaluation" / "forecasts.npz", allow_pickle=False)
    context, names = int(data["context"]), [str(name) for name in data["rows"]]
    # The clips of median quality, not the best ones.
    order = np.argsort(data["psnr"])
    middle = (len(order) - CLIPS) // 2
    chosen = order[middle : middle + CLIPS]
    panels = [data["real"], *(data[f"forecast_{names.index(name)}"] for name in ROWS)]
    pages = []
    for t in range(panels[0].shape[1]):
        rows = [np.concatenate([framed(panel[i], t, context) for panel in panels], axis=1) for i in chosen]
        pages.append(Image.fromarray(np.concatenate(rows, axis=0)).quantize(128))
    out.parent.mkdir(parents=True, exist_ok=True)
    durations = [66] * (len(pages) - 1) + [800]
    pages[0].save(out, save_all=True, append_images=pages[1:], duration=durations, loop=0, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
