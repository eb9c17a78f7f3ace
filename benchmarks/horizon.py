"""How far worlds can be rolled on: PSNR over 300 imagined frames, beside copying the last frame. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/horizon.py [--quick] [--episodes 12] [--samples 5]
    OMP_NUM_THREADS=1 python benchmarks/horizon.py --runs RUN ... --data DIR --held-out 68:80

Without `--runs` both built-in worlds are rolled over episodes of the twin that are generated for it, with a seed that
no built-in data has. Each clip begins with its 17 true frames; after them a session knows its own frames only, and the
true states. Every figure is the mean over a second of video and over episodes, with a 95 % bootstrap interval over
episodes; `minus_copy_last` is the difference on the same episodes. Rows:

| row | what is rolled on |
|---|---|
| `forecast` | the world, its first sample |
| `mean_of_N` | the mean of N samples, where N are drawn (worlds over latents) |
| `shuffled_states` | the world, given the states of the next episode |
| `copy_last` | the last true frame |
| `live_twin` | the simulator itself, moved through the states, where the data have physics |
| `true_context` | the world, but every chunk begins with true frames: what its own mistakes do not cost |
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from common import options, publish, skip
from torch import Tensor

from worldline import builtin
from worldline.contract import FramePattern
from worldline.data.clips import Clips
from worldline.evaluation.held_out import DataChoice, held_out
from worldline.families.config import LoadOptions
from worldline.families.load import load_forecaster
from worldline.forecasting.forecaster import CopyLast, Forecaster
from worldline.forecasting.live import LiveTwin
from worldline.forecasting.postprocess import mean
from worldline.metrics.bootstrap import interval
from worldline.metrics.image import psnr
from worldline.schema import Batch, UsageError, stack
from worldline.twin.generate import TwinConfig, generate
from worldline.twin.simulation import load_mujoco

AHEAD, SECOND = 300, 30
SEED = 4000
"""Of the episodes that are generated; the built-in data have 0 and 1000."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", nargs="+", type=Path, default=[Path("compression-tiny"), Path("sampling-tiny")])
    parser.add_argument("--data", type=Path, help="data set; if not given, the twin's are generated")
    parser.add_argument("--held-out", help="its episodes, as in `worldline evaluate RUN --episodes :`")
    parser.add_argument("--tokenizer", type=Path, help="where the runs' tokenizer lies, if not in them")
    parser.add_argument("--decode-mode", default="tokens", help="worlds over tokens: tokens or mean")
    parser.add_argument("--blend-last-frame", action="store_true", help="worlds over tokens: keep in view what stays")
    for name, default in (("episodes", 12), ("samples", 5), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments, ahead = parser.parse_args(), AHEAD
    if arguments.quick:
        arguments.episodes, arguments.samples, arguments.steps, ahead = 2, 1, 1, 2 * SECOND
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data is None:
            try:
                load_mujoco()
            except UsageError as reason:
                skip(str(reason), quick=arguments.quick)
                return
            arguments.data, frames = Path(folder), 17 + ahead + 60
            generate(arguments.data, TwinConfig(episodes=arguments.episodes, frames=frames, seed=SEED), workers=1)
        found = {run.name: rolled_on(run, arguments, ahead) for run in arguments.runs}
    publish({"frames_ahead": ahead, "bin_frames": SECOND, **found}, quick=arguments.quick)


def rolled_on(run: Path, arguments: argparse.Namespace, ahead: int) -> dict[str, object]:
    """All rows of one world."""
    run = builtin.resolve(run)
    names = ("tokenizer", "steps", "decode_mode", "blend_last_frame")
    loaded = load_forecaster(run, LoadOptions(**{name: getattr(arguments, name) for name in names}))
    forecaster, physics = loaded.forecaster, arguments.data / "physics"
    chunks = -(-ahead // forecaster.chunk_frames)
    window = forecaster.context_frames + (chunks - 1) * forecaster.chunk_frames + forecaster.lookahead_frames
    choice = DataChoice(data=arguments.data, episodes=arguments.held_out)
    clips = held_out(run, loaded.contract, choice, pattern=FramePattern(window=window))
    batch = one_per_episode(clips.sized(forecaster.image_size))
    score = Scores(batch, forecaster.context_frames, ahead)
    score.add("copy_last", CopyLast.beside(forecaster))
    score.add("forecast", forecaster)
    if forecaster.token_grid is None and arguments.samples > 1:
        several = forecaster.drawing(arguments.samples)
        score.add(f"mean_of_{arguments.samples}", several, shown=mean)
    score.add("shuffled_states", forecaster, states=batch.states.roll(1, dims=0))
    score.add("true_context", forecaster, refreshed=True)
    if physics.is_dir():
        score.add("live_twin", LiveTwin.beside(forecaster, root=arguments.data))
    chosen: dict[str, object] = {"chunk_frames": forecaster.chunk_frames, "episodes": len(batch)}
    shown = ("steps",) if forecaster.token_grid is None else ("decode_mode", "blend_last_frame")
    chosen |= {name: getattr(arguments, name) for name in shown}
    return {**chosen, "psnr_db": score.bins(), "minus_copy_last_psnr_db": score.bins(than="copy_last")}


def one_per_episode(clips: Clips) -> Batch:
    """The first window of every episode that is long enough."""
    first = {episode: number for number, episode in reversed(list(enumerate(clips.windows[:, 0].tolist())))}
    return stack([clips[number] for number in sorted(first.values())])


def first_frame(frames: Tensor) -> Tensor:
    return frames[:, 0]


class Scores:
    """PSNR of each clip in each second after the context, row by row."""

    def __init__(self, batch: Batch, context: int, ahead: int) -> None:
        self.batch, self.context, self.ahead = batch, context, ahead
        self.rows: dict[str, Tensor] = {}

    def add(
        self,
        row: str,
        forecaster: Forecaster,
        *,
        states: Tensor | None = None,
        shown: Callable[[Tensor], Tensor] = first_frame,
        refreshed: bool = False,
    ) -> None:
        """Roll a forecaster on over all clips; `refreshed` begins every chunk with true frames."""
        batch, states = self.batch, self.batch.states if states is None else states
        assert batch.frames is not None, "the data hold frames"
        end, chunk = self.context + self.ahead, forecaster.chunk_frames
        sums, counts = torch.zeros(2, len(batch), self.ahead // SECOND)
        session = forecaster.start_clips(batch, seed=range(len(batch)))
        for now in range(self.context, end, chunk):
            if refreshed:
                begun = now - self.context
                frames, own = (x[:, begun:now] for x in (batch.frames, batch.states))
                session = forecaster.start(frames, own, seed=range(begun, begun + len(batch)))
            shift = now - session.time
            made = session.advance(states[:, now : now + forecaster.lookahead_frames])
            times = [time + shift for time in made.times if time + shift < end]
            values = psnr(shown(made.video)[:, : len(times)], batch.frames[:, times])
            for place, time in enumerate(times):
                sums[:, (time - self.context) // SECOND] += values[:, place]
                counts[:, (time - self.context) // SECOND] += 1
        self.rows[row] = sums / counts

    def bins(self, than: str | None = None) -> dict[str, list[dict[str, float]]]:
        """Mean and interval of each second, of the rows themselves or of their differences to one."""
        episodes = torch.tensor([origin.episode for origin in self.batch.origins])
        found = {}
        for row, values in self.rows.items():
            if row == than:
                continue
            differences = values if than is None else values - self.rows[than]
            each = [asdict(interval(second, episodes)) for second in differences.unbind(dim=1)]
            found[row] = [{name: round(one[name], 3) for name in ("mean", "low", "high")} for one in each]
        return found


if __name__ == "__main__":
    main()
