"""Conditions of the action-following audit: the forecast given other states than those that were to come.

Each is one function from a scene to states of context and horizon. The context's states stay true, except for
`shuffled_states`, so that only what is commanded differs. What a condition costs says how the picture answers to it.
"""

import re
from functools import partial

import torch
from jaxtyping import Float32
from torch import Tensor

from worldline.evaluation.rows import Commands, Scene, condition
from worldline.forecasting.forecaster import States
from worldline.metrics.table import NotComputed

SHIFTS = {"states_early_0_5s": -0.5, "states_early_0_2s": -0.2, "states_late_0_2s": 0.2, "states_late_0_5s": 0.5}
"""Seconds by which commands come late (positive) or early, by the id of the row."""
NOISES = {"states_noise_0_25": 0.25, "states_noise_0_5": 0.5, "states_noise_1": 1.0, "states_noise_2": 2.0}
"""Deviations of the noise, in those of the states over the evaluated clips, by the id of the row."""
_SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}


@condition("shuffled_states", "shuffled states", shown=True)
def _(scene: Scene) -> States:
    """The forecast given the states of another clip. A world that scores the same here ignores its robot."""
    if scene.foreign is None:
        raise NotComputed("the data hold one clip only")
    return scene.foreign


@condition("frozen_states", "frozen states", shown=True)
def _(scene: Scene) -> States:
    """The forecast given states that stay as they were in the last context frame: told that nothing moves."""
    return scene.commanding(frozen(scene.commands, scene.now))


def frozen(commands: Commands, now: Float32[Tensor, "b s"]) -> Commands:
    """Commands of a robot that stays as it is."""
    return now[:, None].expand_as(commands)


def _shifted(scene: Scene, *, seconds: float) -> States:
    """Commands that come late or early; before the first and after the last, that one is held."""
    commands, frames = scene.commands, round(seconds * scene.batch.fps)
    if frames == 0:
        raise NotComputed(f"{abs(seconds):g} s are less than half a frame")
    places = torch.arange(commands.shape[1]) - frames
    last = torch.cat([scene.now[:, None], commands], dim=1)  # late commands begin with the state that is there
    return scene.commanding(last[:, (places + 1).clamp(0, commands.shape[1])])


def _noisy(scene: Scene, *, size: float) -> States:
    """Commands with white noise of a stated size, drawn anew for each frame and dimension."""
    noise = [
        torch.randn(scene.commands.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in scene.seeds
    ]
    return scene.commanding(scene.commands + size * scene.state_std * torch.stack(noise))


for _id, _seconds in SHIFTS.items():
    _label = f"states {abs(_seconds):g} s {'late' if _seconds > 0 else 'early'}"
    condition(_id, _label, study="audit")(partial(_shifted, seconds=_seconds))
for _id, _size in NOISES.items():
    condition(_id, f"states with noise of {_size:g} deviations", study="audit")(partial(_noisy, size=_size))


@condition("limb_frozen", "one limb frozen", study="audit")
def _(scene: Scene) -> States:
    """The forecast given states in which the limb that moves most stays as it was."""
    return scene.commanding(torch.where(_limb(scene), frozen(scene.commands, scene.now), scene.commands))


@condition("limb_mirrored", "one limb mirrored", study="audit")
def _(scene: Scene) -> States:
    """The forecast given states in which the limb that moves most does the opposite of each of its moves."""
    opposite = 2 * scene.now[:, None] - scene.commands
    return scene.commanding(torch.where(_limb(scene), opposite, scene.commands))


def sides_of(names: tuple[str, ...]) -> list[str | None]:
    """Whether each state is of the left or of the right limb, as its name says: `LEFT_ELBOW`, `l_wrist.pos`."""
    words = [re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in names]
    return [next((_SIDES[word] for word in some if word in _SIDES), None) for some in words]


def _limb(scene: Scene) -> Tensor:
    """Of each clip the states of that limb whose commands differ most from where it is: `b 1 s`."""
    sides = sides_of(scene.clips.source.layout.names)
    groups = torch.tensor([[side == one for side in sides] for one in ("left", "right")])
    if not groups.any():
        raise NotComputed("no state's name says left or right, so there is no limb to take")
    moved = ((scene.commands - scene.now[:, None]) / scene.state_std).square().mean(dim=1)
    return groups[(moved @ groups.float().T).argmax(dim=1)][:, None]
