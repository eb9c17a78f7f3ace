"""The live twin: a forecaster with true frames, because it runs MuJoCo."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8

from worldline.forecasting.forecaster import Context, CopyLast, Seeds, Session, Snapshot, States, Step
from worldline.schema import Batch, Forecast, UsageError
from worldline.twin.generate import resume
from worldline.twin.scene import LAYOUT
from worldline.twin.simulation import Simulation, rate_of, substeps_of
from worldline.twin.tasks import Outcome, Start, start_of
from worldline.twin.trial import Facts, Trial

Drive = Literal["follow", "command"]
Place = tuple[int, int, int, int, int]
"""Where a clip's physics belong: place of its task in `TASKS`, or -1 of a recorded episode; number of the episode, or
seed of the start; physics' steps of a frame; size of the pictures; frames since it began."""
MOST_SCENES = 64
"""Simulations that are kept open; each has its own OpenGL context, of about 22 MB at 128x128."""


@dataclass(frozen=True, kw_only=True)
class LiveTwin(CopyLast):
    """Sessions with true frames, which begin in saved physics or at the start of a task, and go where states say.

    The origin of a clip says where it begins: a frame of a recorded episode, or a `Start` (`Start.clip`). Its frames
    are not read.
    """

    root: Path | None = None
    """Data set of the twin that the clips are of, read as a whole; not needed for starts of tasks."""
    drive: Drive = "follow"
    """How the states of a step move the robot: it is moved to each, whatever force that takes (`Simulation.follow`), or
    its motors are commanded to go there (`Simulation.step`), as when a policy acts."""
    scenes: dict[tuple[int, ...], Simulation] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Those that are open, the one used last at the end: the first is closed when there is no room."""

    def begin(self, batch: Batch) -> Context:
        """Where each clip belongs, and its physics and touches at the last frame of its context.

        Raises `UsageError` for clips that are not from anywhere or have other states, and `DataError` where the folder
        holds no physics of such an episode.
        """
        if len(batch.origins) != len(batch):
            raise UsageError("the live twin begins in saved physics: start it from clips (`start_clips`), not frames")
        if batch.states.shape[-1] != LAYOUT.dim:
            raise UsageError(f"the twin has {LAYOUT.dim} states, not {batch.states.shape[-1]}")
        places, moments = [], []
        for origin in batch.origins:
            start = start_of(origin, fps=batch.fps)
            if start is not None:
                size = 64 if batch.frames is None else batch.frames.shape[-1]
                place = (start.place, start.seed, substeps_of(start.fps), size, 0)
                simulation = self._scene(place)
                simulation.restore(start.snapshot)
            else:
                frame = origin.start + self.context_frames - 1
                place, simulation = (-1, origin.episode, 0, 0, 0), resume(self._folder(), origin.episode, frame)[0]
            places.append(place)
            moments.append(_moment(Trial(simulation)))
        return torch.tensor(places), *moments

    def joined(self, contexts: Sequence[Context]) -> Context:
        return torch.cat([places for places, *_ in contexts]), *(one for _, *moments in contexts for one in moments)

    def parted(self, context: Context, clips: Sequence[int]) -> list[Context]:
        places, *moments = context
        ends = np.cumsum(clips).tolist()
        parts = [slice(end - count, end) for end, count in zip(ends, clips, strict=True)]
        return [(places[part].clone(), *moments[part]) for part in parts]

    def step(self, context: Context, states: States, *, seeds: Seeds) -> Step:
        del seeds  # the truth is no matter of chance
        shown, seen, after = [time - self.context_frames for time in self.times], [], []
        for clip, own in enumerate(states[:, self.context_frames :].numpy()):
            trial, moments = self._trial(context, clip), []
            for i, state in enumerate(own):
                (trial.go if self.drive == "follow" else trial.step)(state)
                if i in shown:
                    moments.append(trial.simulation.snapshot() if self.lazy else trial.simulation.frame())
                if i == self.chunk_frames - 1:
                    after.append(_moment(trial))
            seen.append(moments)
        places = context[0] + torch.tensor([0, 0, 0, 0, self.chunk_frames])
        if self.lazy:
            made = Forecast(times=self.times, later=cache(lambda: self._drawn(places, seen)))
        else:
            made = Forecast(times=self.times, frames=self._stacked(seen))
        return made, lambda: (places, *after)

    def _drawn(
        self, places: torch.Tensor, physics: Sequence[Sequence[np.ndarray]]
    ) -> UInt8[torch.Tensor, "b k t 3 h w"]:
        """What the robot sees of each clip in some states of its physics."""
        frames = []
        for place, moments in zip(places.tolist(), physics, strict=True):
            scene, own = self._scene(place), []
            for moment in moments:
                scene.restore(moment)
                own.append(scene.frame())
            frames.append(own)
        return self._stacked(frames)

    def _stacked(self, frames: Sequence[Sequence[np.ndarray]]) -> UInt8[torch.Tensor, "b k t 3 h w"]:
        video = torch.from_numpy(np.array(frames, np.uint8)).permute(0, 1, 4, 2, 3)
        return video[:, None].repeat(1, self.num_samples, 1, 1, 1, 1)

    def measured(self, moment: Session | Snapshot) -> Float32[torch.Tensor, "b 25"]:
        return torch.from_numpy(np.stack([facts.state for facts in self.facts(moment)]))

    def facts(self, moment: Session | Snapshot) -> list[Facts]:
        """What physics knows of each clip at a moment of a session, and of who touched what since it began."""
        context = _context(moment)
        return [self._trial(context, clip).facts() for clip in range(len(context) - 1)]

    def outcomes(self, moment: Session | Snapshot) -> list[Outcome]:
        """Of each clip that began at the start of a task, whether it is over, and how; of others `open`."""
        starts = self.starts(moment)
        told = zip(starts, self.facts(moment), strict=True)
        return ["open" if start is None else start.outcome(facts) for start, facts in told]

    def starts(self, moment: Session | Snapshot) -> list[Start | None]:
        """Of each clip the start of a task at which it began; None of a recorded episode."""
        places = _context(moment)[0].tolist()
        return [None if place[0] < 0 else Start.at(place[0], place[1], fps=rate_of(place[2])) for place in places]

    def simulation_of(self, moment: Session | Snapshot, clip: int = 0) -> Simulation:
        """A clip's simulation at a moment of a session, to look at. It is lent: the next step of a session uses it."""
        return self._trial(_context(moment), clip).simulation

    def _trial(self, context: Context, clip: int) -> Trial:
        """A clip of a context, taken up again."""
        place, moment = context[0][clip].tolist(), context[1 + clip].numpy()
        scene = self._scene(place)
        objects = len(scene.scene.objects)
        split = len(moment) - 2 * objects
        scene.restore(moment[:split])
        return Trial(scene, touched=moment[split:].reshape(2, objects).astype(np.int64), frame=place[-1])

    def _scene(self, place: Sequence[int]) -> Simulation:
        task, number, substeps, size, _ = place
        key = (task, number, substeps, size)
        if (scene := self.scenes.pop(key, None)) is None:
            if len(self.scenes) >= MOST_SCENES:
                self.scenes.pop(next(iter(self.scenes))).close()
            recorded = task < 0
            scene = (
                resume(self._folder(), number, 0)[0]
                if recorded
                else Start.at(task, number, fps=rate_of(substeps)).open(size=size)
            )
        self.scenes[key] = scene
        return scene

    def _folder(self) -> Path:
        if self.root is None:
            raise UsageError("clips of recorded episodes begin in saved physics: give the folder of their data (root)")
        return self.root

    def close(self) -> None:
        """Free the OpenGL contexts."""
        while self.scenes:
            self.scenes.popitem()[1].close()


def _context(moment: Session | Snapshot) -> Context:
    return (moment.snapshot() if isinstance(moment, Session) else moment).context


def _moment(trial: Trial) -> torch.Tensor:
    """The physics of a trial and its touches, as one vector."""
    parts: list[Float64[np.ndarray, " p"]] = [trial.simulation.snapshot(), trial.facts().touched.ravel().astype(float)]
    return torch.from_numpy(np.concatenate(parts))
