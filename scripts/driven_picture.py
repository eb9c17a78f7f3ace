"""Make the README's first picture: what the robot saw, and below it the forecast of a driven world, as a GIF.

python scripts/driven_picture.py driven-tiny docs/media/driven.gif

Needs the built-ins and the twin. One attempt at each task: the world sees the second before its start, and is then
driven by the robot's states alone, one frame a step, while the twin shows what really happens. Of `STARTS` starts of a
task the one of middle PSNR is shown, not the best one. No training saw them (docs/tasks.md). Also says how much of the
objects is left, and whether it is where the real ones are (docs/driven.md).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from PIL import Image
from torch import Tensor

import worldline
from worldline.metrics.bootstrap import interval, statistics
from worldline.metrics.image import psnr
from worldline.schema import stack
from worldline.twin.tasks import TASKS, Start, solve

SHOWN = ("touch", "push", "topple")
STARTS = 20
SCALE, MARGIN, LAST_MS, COLOURS = 2, 3, 1500, 160
GREY, ORANGE = (90, 90, 90), (230, 120, 20)


def executed(start: Start) -> tuple[UInt8[Tensor, "t 3 h w"], Float32[Tensor, "t s"]]:
    """What the robot sees, and its measured states, while it does the task in physics."""
    commands, frames, states = solve(start), [], []
    with start.open() as simulation:
        for t in range(start.frames):
            simulation.step(commands[min(t, len(commands) - 1)])
            frames.append(simulation.frame())
            states.append(simulation.state())
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(states))


def films(world: str) -> tuple[UInt8[Tensor, "b t 3 h w"], UInt8[Tensor, "b t 3 h w"], int]:
    """Real and forecast frames of all attempts, behind those of the context, and how many these are."""
    forecaster = worldline.load(world).forecaster
    starts = [TASKS[task].start(seed) for task in SHOWN for seed in range(STARTS)]
    before = stack([start.clip(forecaster.context_frames) for start in starts])
    frames, states = (torch.stack(parts) for parts in zip(*map(executed, starts), strict=True))
    session = forecaster.start(before.frames, before.states)
    made = [session.advance(states[:, t : t + 1]).frames[:, 0] for t in range(states.shape[1])]
    return torch.cat([before.frames, frames], 1), torch.cat([before.frames, *made], 1), before.frames.shape[1]


def objects(frames: UInt8[Tensor, "b 3 h w"]) -> Bool[np.ndarray, "b p"]:
    """Where the objects to handle are: saturated, and green to blue, which nothing else of a task's room is."""
    hsv = [np.asarray(Image.fromarray(frame.permute(1, 2, 0).numpy()).convert("HSV")) for frame in frames]
    hue, saturation, value = np.moveaxis(np.stack(hsv), -1, 0)
    return ((hue > 60) & (hue < 180) & (saturation > 90) & (value > 60)).reshape(len(frames), -1)


def shared(one: Bool[np.ndarray, "b p"], other: Bool[np.ndarray, "b p"]) -> str:
    """Intersection over union of two places, the mean over starts with its interval."""
    found = (one & other).sum(axis=1) / (one | other).sum(axis=1).clip(1)
    return interval(torch.from_numpy(found), torch.arange(len(found))).said()


def left(real: Bool[np.ndarray, "b p"], made: Bool[np.ndarray, "b p"]) -> str:
    """Pixels of the objects in the forecast, as a share of those in the real pictures of all starts."""
    counts = np.stack([made.sum(axis=1), real.sum(axis=1)], axis=1).astype(float)
    drawn = statistics(lambda w: (w @ counts[:, :1]) / (w @ counts[:, 1:]).clip(1), torch.arange(len(counts)))
    return drawn[0].said()


def framed(frame: UInt8[Tensor, "3 h w"], colour: tuple[int, int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """One frame, larger, in a border that is orange where it is predicted."""
    large = frame.permute(1, 2, 0).numpy().repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    pad = [(MARGIN, MARGIN), (MARGIN, MARGIN)]
    return np.stack([np.pad(large[..., c], pad, constant_values=colour[c]) for c in range(3)], axis=-1)


def write(real: UInt8[Tensor, "b t 3 h w"], made: UInt8[Tensor, "b t 3 h w"], context: int, out: Path) -> None:
    """Two rows of pictures, in the palette of all of them, so that what does not move is written once."""
    pages = []
    for t in range(real.shape[1]):
        border = GREY if t < context else ORANGE
        rows = [np.concatenate([framed(one[t], colour) for one in films], axis=1)
                for films, colour in ((real, GREY), (made, border))]  # fmt: skip
        pages.append(Image.fromarray(np.concatenate(rows)))
    some = Image.fromarray(np.concatenate([np.asarray(page) for page in pages[:: len(pages) // 6]]))
    palette = some.quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    pages = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    durations = [70, 70, 60] * (len(pages) // 3 + 1)  # 15 a second, in hundredths
    durations = [*durations[: len(pages) - 1], LAST_MS]
    pages[0].save(out, save_all=True, append_images=pages[1:], duration=durations, loop=0, optimize=True)


def main(world: str, out: Path) -> None:
    real, made, context = films(world)
    score = psnr(made[:, context:], real[:, context:]).mean(dim=1)
    chosen = [place * STARTS + int(part.argsort()[STARTS // 2]) for place, part in enumerate(score.split(STARTS))]
    write(real[chosen], made[chosen], context, out)
    names = [f"{SHOWN[number // STARTS]} {number % STARTS}: {score[number]:.1f} dB" for number in chosen]
    for place, task in enumerate(SHOWN):
        part = slice(place * STARTS, (place + 1) * STARTS)
        first = objects(real[part, context])
        for t in (context + 14, context + 29, real.shape[1] - 1):  # before the hand arrives, while it acts, at the end
            true, seen = objects(real[part, t]), objects(made[part, t])
            places = (
                f"shared with the real ones {shared(true, seen)}, of these with where they began {shared(true, first)}"
            )
            print(f"{task}, frame {t - context + 1}: {left(true, seen)} of the objects; {places}")
    print(f"{out}: {', '.join(names)}; {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
