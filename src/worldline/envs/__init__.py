"""Gymnasium environments inside any forecaster: a run, a built-in world, an ensemble, a baseline or the live twin.

import gymnasium, worldline.envs

env = gymnasium.make("worldline/Dream-v0", world="compression-tiny")
seen, info = env.reset(seed=0)
seen, reward, terminated, truncated, info = env.step(env.action_space.sample())
"""

from worldline.envs.core import EnvConfig
from worldline.envs.made import register
from worldline.envs.observation import Observation
from worldline.envs.single import DreamEnv, EnvSnapshot
from worldline.envs.starts import Begun, ClipStarts, Starts
from worldline.envs.tasks import Physics, TaskStarts
from worldline.envs.transition import Seen, Transition
from worldline.envs.vector import DreamVectorEnv
from worldline.formats.limits import StateLimits

__all__ = [
    "Begun",
    "ClipStarts",
    "DreamEnv",
    "DreamVectorEnv",
    "EnvConfig",
    "EnvSnapshot",
    "Observation",
    "Physics",
    "Seen",
    "Starts",
    "StateLimits",
    "TaskStarts",
    "Transition",
]

register()
