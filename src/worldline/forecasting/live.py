"""The live twin: a forecaster with true frames, because it runs MuJoCo."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from worldline.forecasting.forecaster import Context, CopyLast, Seeds, States, Step
from worldline.schema import Batch, Forecast, UsageError
from worldline.twin.generate import resume
from worldline.twin.scene import LAYOUT
from worldline.twin.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class LiveTwin(CopyLast):
    """Sessions with true frames: they begin in the saved physics of a recorded episode and follow the states.

    The origin of a clip says where it begins; its frames are not read (`Simulation.follow` says how states move it).
    """

    root: Path
    """Data set of the twin that the clips are of, read as a whole."""
    scenes: dict[int, Simulation] = field(default_factory=dict, init=False, repr=False, compare=False)

    def begin(self, batch: Batch) -> Context:
        """The numbers of the episodes, and the physics of each at the last frame of its context.

        Raises `UsageError` for clips that are not from anywhere or have other states, and `DataError` where the folder
        holds no physics of such an episode.
        """
        if len(batch.origins) != len(batch):
            raise UsageError("the live twin begins in saved physics: start it from clips (`start_clips`), not frames")
        if batch.states.shape[-1] != LAYOUT.dim:
            raise UsageError(f"the twin has {LAYOUT.dim} states, not {batch.states.shape[-1]}")
        begins = [(origin.episode, origin.start + self.context_frames - 1) for origin in batch.origins]
        scenes = [resume(self.root, *begin)[0] for begin in begins]
        return torch.tensor(begins)[:, 0], *(torch.from_numpy(scene.snapshot()) for scene in scenes)

    def joined(self, contexts: Sequence[Context]) -> Context:
        return torch.cat([episodes for episodes, *_ in contexts]), *(one for _, *physics in contexts for one in physics)

    def parted(self, context: Context, clips: Sequence[int]) -> list[Context]:
        episodes, *physics = context
        ends = np.cumsum(clips).tolist()
        parts = [slice(end - count, end) for end, count in zip(ends, clips, strict=True)]
        return [(episodes[part].clone(), *physics[part]) for part in parts]

    def step(self, context: Context, states: States, *, seeds: Seeds) -> Step:
        del seeds  # the truth is no matter of chance
        episodes, *physics = context
        shown, frames, after = [time - self.context_frames for time in self.times], [], []
        for episode, before, own in zip(episodes.tolist(), physics, states[:, self.context_frames :], strict=True):
            scene = self._scene(episode)
            scene.restore(before.numpy())
            seen = scene.follow(own[: self.chunk_frames].numpy())
            after.append(torch.from_numpy(scene.snapshot()))
            seen = np.concatenate([seen, scene.follow(own[self.chunk_frames :].numpy())])[shown]
            frames.append(torch.from_numpy(seen).permute(0, 3, 1, 2))
        made = torch.stack(frames)[:, None].repeat(1, self.num_samples, 1, 1, 1, 1)
        return Forecast(times=self.times, frames=made), lambda: (episodes, *after)

    def _scene(self, episode: int) -> Simulation:
        if episode not in self.scenes:
            if len(self.scenes) >= 16:  # each has its own OpenGL context
                self.scenes.pop(next(iter(self.scenes))).close()
            self.scenes[episode] = resume(self.root, episode, 0)[0]
        return self.scenes[episode]

    def close(self) -> None:
        """Free the OpenGL contexts."""
        while self.scenes:
            self.scenes.popitem()[1].close()
