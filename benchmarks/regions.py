"""What a mean over the whole picture hides: PSNR of objects, robot and room apart, on the twin. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/regions.py RUN ... [--data DIR] [--tokenizer TOKENIZER] [--clips 60]

A pixel belongs to what MuJoCo draws there in the true frame: an object on the table, the robot, or the room. Each
figure is over all pixels of one kind in the frames of a clip, then the mean over clips with a 95 % bootstrap interval
over episodes; a clip counts where it shows at least 20 such pixels. `last` is the last frame alone. Rows: the forecast
of a world and a copy of the last frame seen, and the reconstruction by its tokenizer, which bounds the forecast.
The data must have the physics beside the frames, as `worldline data twin` writes them.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from common import options, publish, skip
from torch import Tensor

from worldline import builtin
from worldline.data.clips import Clips
from worldline.evaluation.held_out import DataChoice, held_out
from worldline.families.config import LoadOptions
from worldline.families.load import load_forecaster
from worldline.forecasting.forecaster import CopyLast, clip_seeds
from worldline.metrics.bootstrap import interval
from worldline.schema import Origin, UsageError, stack
from worldline.twin.generate import resume
from worldline.twin.scene import CAMERA
from worldline.twin.simulation import load_mujoco

REGIONS = ("room", "robot", "objects")
FEWEST = 20
"""Pixels of a region below which a clip says nothing about it."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("compression-tiny")])
    parser.add_argument(
        "--data", type=Path, help="data of the twin, with physics; the built-in validation set if not given"
    )
    parser.add_argument("--tokenizer", type=Path, help="where the runs' tokenizer lies, if not in them")
    parser.add_argument("--clips", type=int, default=60)
    arguments = parser.parse_args()
    clips = 2 if arguments.quick else arguments.clips
    try:
        load_mujoco()
    except UsageError as reason:
        skip(str(reason), quick=arguments.quick)
        return
    publish({run.name: of_run(run, arguments, clips) for run in arguments.runs}, quick=arguments.quick)


def of_run(run: Path, arguments: argparse.Namespace, number: int) -> dict[str, object]:
    """All figures of one world, on clips spread evenly over its held-out data."""
    run = builtin.resolve(run)
    loaded = load_forecaster(run, LoadOptions(tokenizer=arguments.tokenizer))
    forecaster = loaded.forecaster
    root = builtin.TWIN_MINI_VAL if arguments.data is None else arguments.data
    found = held_out(run, loaded.contract, DataChoice(data=root), pattern=loaded.contract.pattern)
    clips: Clips = found.sized(forecaster.image_size)
    places = np.linspace(0, len(clips) - 1, min(number, len(clips))).astype(int)
    values: dict[str, list[Tensor]] = {}
    episodes = []
    for place in places:
        batch = stack([clips[int(place)]])
        frames, [origin] = batch.frames, batch.origins
        assert frames is not None, "the data hold frames"
        times = list(forecaster.times)
        truth, drawn = frames[:, times], regions(root, origin, times, forecaster.image_size)
        shown = {
            "forecast": forecaster.forecast_clips(batch, seeds=clip_seeds(0, batch.origins)).video[:, 0],
            "copy_last": CopyLast.beside(forecaster).forecast_clips(batch).video[:, 0],
            "reconstruction": forecaster.reconstruct(batch).video[:, 0],
        }
        episodes.append(origin.episode)
        for row, video in shown.items():
            values.setdefault(row, []).append(by_region(video, truth, drawn))
    return {
        "clips": len(places),
        "psnr_db": {row: summary(torch.stack(each), episodes) for row, each in values.items()},
    }


def regions(root: Path, origin: Origin, times: list[int], side: int) -> Tensor:
    """The number in `REGIONS` of every pixel of the frames at `times` of a clip: int64 (t, h, w)."""
    mujoco, seen = load_mujoco(), []
    simulation, commands = resume(root, origin.episode, origin.start)
    with simulation, mujoco.Renderer(simulation.model, side, side, max_geom=500) as renderer:
        renderer.enable_segmentation_rendering()
        model = simulation.model
        objects = {model.body(name).id for name in simulation.scene.objects}
        kinds = [2 if body in objects else 1 if body else 0 for body in model.geom_bodyid]
        kinds = np.array([*kinds, 0])  # the last for what is drawn without a geom
        for time, command in enumerate(commands[: times[-1] + 1]):
            if time in times:
                renderer.update_scene(simulation.data, camera=CAMERA)
                seen.append(kinds[renderer.render()[..., 0]])
            simulation.step(command)
    return torch.from_numpy(np.stack(seen))


def by_region(video: Tensor, truth: Tensor, drawn: Tensor) -> Tensor:
    """PSNR in dB of each region, over all frames and in the last: (2, regions); NaN where too little of it is seen."""
    error = (video[0].double() - truth[0].double()).square().mean(dim=1)  # t h w
    figures = torch.full((2, len(REGIONS)), torch.nan, dtype=torch.float64)
    for kind in range(len(REGIONS)):
        for row, frames in enumerate((slice(None), slice(-1, None))):
            chosen = error[frames][drawn[frames] == kind]
            if len(chosen) >= FEWEST:
                figures[row, kind] = 10 * torch.log10(255**2 / chosen.mean().clamp_min(1e-3))
    return figures


def summary(values: Tensor, episodes: list[int]) -> dict[str, object]:
    """Mean and interval of each region, over the clips that show it."""
    found: dict[str, object] = {}
    for row, name in enumerate(("all", "last")):
        for kind, region in enumerate(REGIONS):
            told = ~values[:, row, kind].isnan()
            each = asdict(interval(values[told, row, kind].float(), torch.tensor(episodes)[told]))
            figures = {key: round(each[key], 2) for key in ("mean", "low", "high")}
            found[f"{region}_{name}"] = {**figures, "clips": int(told.sum())}
    return found


if __name__ == "__main__":
    main()
