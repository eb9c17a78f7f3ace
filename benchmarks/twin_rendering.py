"""How fast the twin makes data, and whether the data are worth learning. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/twin_rendering.py [--quick] [--episodes 16] [--size 64] [--workers 2]

`frames_per_second` counts everything: scenes, physics, rendering, encoding, writing, starting the workers.
`frames_per_core_second` is per second of processor time instead: what one idle core would do.
`copy_last_psnr_db` is what repeating the last frame seen scores `HORIZON` frames later: the mean over
all windows of the episodes. `episodes_with_contact` is the share that move an object by over 3 cm.
"""

import argparse
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from common import options, publish, skip, spread

from worldline.formats.video import stream_frames
from worldline.schema import UsageError
from worldline.twin.generate import TwinConfig, generate
from worldline.twin.simulation import load_mujoco

HORIZON = 17


def main() -> None:
    """Generate data sets in a temporary folder, measure them, print the result."""
    parser = options(__doc__)
    for name, default in (("episodes", 16), ("size", 64), ("workers", 2), ("seed", 0), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    try:
        load_mujoco()
    except UsageError as reason:
        skip(str(reason), quick=arguments.quick)
        return
    if arguments.quick:
        arguments.episodes = arguments.workers = arguments.repeats = 1
    found = [measure(arguments, seed=arguments.seed + 1000 * repeat) for repeat in range(arguments.repeats)]
    figures = {name: spread([one[name] for one in found]) for name in found[0]}
    setting = {"episodes": arguments.episodes, "size": arguments.size, "workers": arguments.workers}
    drawn = {"mujoco": version("mujoco"), "opengl": os.environ.get("MUJOCO_GL", "default")}
    publish({**setting, **drawn, **figures}, quick=arguments.quick)


def measure(arguments: argparse.Namespace, *, seed: int) -> dict[str, float]:
    """One data set from nothing."""
    frames = HORIZON + 3 if arguments.quick else TwinConfig(episodes=1).frames
    config = TwinConfig(episodes=arguments.episodes, size=arguments.size, seed=seed, frames=frames)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "twin"
        began, busy = time.perf_counter(), sum(os.times()[:4])
        generate(root, config, workers=arguments.workers)
        seconds, core_seconds = time.perf_counter() - began, sum(os.times()[:4]) - busy
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        return {
            "frames_per_second": config.episodes * config.frames / seconds,
            "frames_per_core_second": config.episodes * config.frames / core_seconds,
            "kilobytes_per_episode": size / config.episodes / 1000,
            "copy_last_psnr_db": copy_last_psnr(root, config),
            "episodes_with_contact": contact_share(root, config),
        }


def copy_last_psnr(root: Path, config: TwinConfig) -> float:
    """PSNR in dB between each frame and the one `HORIZON` later, per image, then averaged."""
    values = []
    for episode in range(config.episodes):
        video = stream_frames(root / f"videos/video_{episode}.mp4", range(config.frames))
        frames = np.concatenate([chunk.numpy() for chunk in video]).astype(np.float32)
        error = np.mean((frames[HORIZON:] - frames[:-HORIZON]) ** 2, axis=(1, 2, 3))
        values.append(10 * np.log10(255**2 / np.maximum(error, 1e-3)))
    return float(np.mean(values))


def contact_share(root: Path, config: TwinConfig) -> float:
    """Share of episodes in which an object ever is more than 3 cm from where it lay at first."""
    moved = 0
    for episode in range(config.episodes):
        with np.load(root / f"physics/physics_{episode}.npz") as physics:
            objects = physics["objects"]
        moved += np.linalg.norm(objects - objects[0], axis=-1).max() > 0.03
    return moved / config.episodes


if __name__ == "__main__":
    main()
