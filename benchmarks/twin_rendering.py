"""How fast the twin makes data, and whether the data are worth learning. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/twin_rendering.py [--episodes 24] [--size 64] [--workers 2] [--seed 0]

`frames_per_second` counts everything: scenes, physics, rendering, encoding, writing, starting the workers.
`frames_per_core_second` is per second of processor time instead: what one idle core would do.
`copy_last_psnr` is what repeating the last frame seen scores `HORIZON` frames later: the mean over
all windows of the episodes, in dB. `episodes_with_contact` is the share that move an object by over 3 cm.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from worldline.data.video import decode
from worldline.twin.generate import TwinConfig, generate

HORIZON = 17


def main() -> None:
    """Generate a data set in a temporary folder, measure it, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("episodes", 24), ("size", 64), ("workers", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    config = TwinConfig(episodes=arguments.episodes, size=arguments.size, seed=arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "twin"
        start, busy = time.perf_counter(), sum(os.times()[:4])
        generate(root, config, workers=arguments.workers)
        seconds = time.perf_counter() - start
        core_seconds = sum(os.times()[:4]) - busy
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        result = {
            "frames_per_second": round(config.episodes * config.frames / seconds, 1),
            "frames_per_core_second": round(config.episodes * config.frames / core_seconds, 1),
            "kilobytes_per_episode": round(size / config.episodes / 1000, 1),
            "copy_last_psnr": round(copy_last_psnr(root, config), 2),
            "episodes_with_contact": round(contact_share(root, config), 3),
        }
    print(json.dumps(result | {"command": " ".join(sys.argv), "machine": machine()}, indent=2))


def copy_last_psnr(root: Path, config: TwinConfig) -> float:
    """PSNR in dB between each frame and the one `HORIZON` later, per image, then averaged."""
    values = []
    for episode in range(config.episodes):
        frames = decode(root / f"videos/video_{episode}.mp4", 0, config.frames).numpy().astype(np.float32)
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


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load_of_the_last_quarter_hour": round(os.getloadavg()[2], 2),
        "python": platform.python_version(),
        "mujoco": version("mujoco"),
        "opengl": os.environ.get("MUJOCO_GL", "default"),
    }


if __name__ == "__main__":
    main()
