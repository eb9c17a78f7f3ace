"""Open exports with the real `lerobot` package, in an environment of its own: it does not fit worldline's PyTorch.

    python scripts/lerobot_check.py DATA_SET [DATA_SET ...] [--env cache/lerobot_check]

Data sets of v3.0 are opened by lerobot 0.4.4, those of v2.1 by 0.3.3, the last release that reads them as they are. For
each it compares what `LeRobotDataset` gives (rows, frames, tasks, statistics, windows of several frames, batches) with
the files, read by pyarrow and PyAV alone, and ends with 1 where something differs.

What is installed, about 1.4 GB with a CPU build of PyTorch: what `lerobot.datasets` imports, and the package itself
without its other dependencies (simulators, drivers, policies). Where torchvision cannot be imported, a stand-in of the
few names that `lerobot.datasets` uses takes its place, in that environment alone; the result says so.
"""

import argparse
import json
import os
import subprocess
import sys
import types
import venv
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

BASE = ("torch==2.13.0", "datasets==4.8.5", "huggingface_hub==0.35.3", "pandas==3.1.1", "av==15.1.0", "pyarrow==26.0.1")
BASE += ("jsonlines==4.0.0", "draccus==0.10.0", "accelerate==1.15.0", "pillow==13.0.0", "einops==0.8.2", "packaging")
BASE += ("safetensors==0.8.0", "deepdiff", "termcolor")
RELEASES = {
    "v3.0": ("lerobot==0.4.4",),
    "v2.1": ("lerobot==0.3.3", "datasets==3.6.0", "dill==0.3.8", "multiprocess==0.70.16", "fsspec==2025.3.0"),
}
ITEMS = 200  # of each data set that are compared


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", nargs="+", type=Path)
    options.add_argument("--env", type=Path, default=Path("cache/lerobot_check"), help="where it is installed, once")
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.inside:
        print(json.dumps(_compare(given.data[0])))
        return
    failed = 0
    for root in given.data:
        version = json.loads((root / "meta/info.json").read_text())["codebase_version"]
        python, extra = _environment(given.env.resolve(), version)
        # Nothing is asked of a server, and nothing is kept in the user's own cache.
        around = {**os.environ, "PYTHONPATH": str(extra), "HF_HUB_OFFLINE": "1", "HF_HOME": str(given.env / "home")}
        done = subprocess.run([python, __file__, str(root), "--inside"], env=around, check=False)
        failed += done.returncode != 0
    raise SystemExit(1 if failed else 0)


def _environment(place: Path, version: str) -> tuple[Path, Path]:
    """The Python of the environment, and the folder of the release that opens a version; made where absent."""
    python, extra = place / "venv/bin/python", place / version
    if not (place / "made").exists():
        venv.create(place / "venv", with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *BASE], check=True)
        (place / "made").touch()
    if not (extra / "made").exists():
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", extra]
        subprocess.run([*install, *RELEASES[version]], check=True)
        (extra / "made").touch()
    return python, extra


def _stand_in() -> None:
    """What `lerobot.datasets` uses of torchvision: its reader of videos, by PyAV as torchvision's own `pyav` is."""
    import av
    import torch

    class VideoReader:
        def __init__(self, path: str, stream: str) -> None:
            self.container = av.open(path)
            self.stream = self.container.streams.video[0]

        def seek(self, time: float, keyframes_only: bool) -> None:
            self.container.seek(int(time / self.stream.time_base), stream=self.stream, backward=keyframes_only)

        def __iter__(self) -> Any:
            for frame in self.container.decode(self.stream):
                pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                yield {"data": pixels, "pts": float(frame.pts * self.stream.time_base)}

    names = ("torchvision", "torchvision.io", "torchvision.transforms", "torchvision.transforms.v2")
    for name in (*names, "torchvision.transforms.v2.functional"):
        module: Any = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
    found: Any = sys.modules
    found["torchvision"].set_video_backend = lambda backend: None
    found["torchvision.io"].VideoReader = VideoReader
    found["torchvision.transforms.v2"].Transform = found["torchvision.transforms.v2"].Compose = type(
        "Transform", (), {}
    )


def _compare(root: Path) -> dict[str, Any]:
    """Compare a data set as lerobot gives it with its files. Raises `AssertionError` where they differ."""
    try:
        import torchvision

        seen = str(torchvision.__version__)
    except Exception:  # absent, or of another PyTorch: then it raises what it likes
        _stand_in()
        seen = "a stand-in"
    from importlib.metadata import version

    import numpy as np
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    info, rows, films = _by_hand(root)
    data = LeRobotDataset("local/check", root=root, video_backend="pyav")
    assert (len(data), data.num_episodes, data.fps) == (len(rows), info["total_episodes"], info["fps"])
    assert data.meta.stats.keys() == info["features"].keys()
    (camera,) = data.meta.camera_keys
    numbers = np.unique(np.linspace(0, len(rows) - 1, min(ITEMS, len(rows))).astype(int)).tolist()
    for number in numbers:
        item, row = data[number], rows[number]
        for name, value in row["columns"].items():
            assert np.array_equal(item[name].numpy(), np.array(value, item[name].numpy().dtype)), (number, name)
        assert item["task"] == row["task"], (number, item["task"])
        film, place = row["frame"]
        assert torch.equal((item[camera] * 255).round().byte().permute(1, 2, 0), torch.from_numpy(films[film][place]))
    step = 1 / info["fps"]
    windows = LeRobotDataset(
        "local/check",
        root=root,
        video_backend="pyav",
        delta_timestamps={"observation.state": [-step, 0.0], "action": [0.0, step, 2 * step], camera: [-step, 0.0]},
    )
    several = windows[len(rows) - 1]
    assert several[camera].shape[0] == several["observation.state"].shape[0] == 2
    assert several["action_is_pad"].tolist() == [False, True, True]
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=min(8, len(rows)))))
    assert batch[camera].shape[0] == min(8, len(rows))
    one = LeRobotDataset("local/check", root=root, episodes=[info["total_episodes"] - 1], video_backend="pyav")
    assert one.num_episodes == 1
    return {
        "data": root.name,
        "version": info["codebase_version"],
        "lerobot": version("lerobot"),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": seen,
        "episodes": info["total_episodes"],
        "frames": len(rows),
        "items compared": len(numbers),
        "differences": 0,
    }


def _by_hand(root: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[Path, Any]]:
    """info.json, the rows in order, each with its task and its frame (video, place in it), and all decoded videos."""
    import av
    from pyarrow import parquet

    info = json.loads((root / "meta/info.json").read_text())
    old = info["codebase_version"] == "v2.1"
    if old:
        tasks = {one["task_index"]: one["task"] for one in map(json.loads, (root / "meta/tasks.jsonl").open())}
    else:
        table = parquet.read_table(root / "meta/tasks.parquet").to_pydict()
        tasks = dict(zip(table["task_index"], table["task"], strict=True))
    films: dict[Path, Any] = {}
    for path in sorted((root / "videos").rglob("*.mp4")):
        with av.open(str(path)) as container:
            films[path] = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    # Rows and frames both follow the episodes, in the order of the files' names.
    shown = [(path, place) for path, frames in films.items() for place in range(len(frames))]
    rows: list[dict[str, Any]] = []
    for path in sorted((root / "data").rglob("*.parquet")):
        for columns in parquet.read_table(path).to_pylist():
            rows.append({"columns": columns, "task": tasks[columns["task_index"]], "frame": shown[len(rows)]})
    return info, rows, films


if __name__ == "__main__":
    main()
