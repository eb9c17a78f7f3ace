"""Episodes of any number of environments inside one forecaster: pure functions of their moments, batched.

`DreamEnv` is one of them, `DreamVectorEnv` several; what an episode is stands here once. Nothing changes where a call
is refused, because moments are values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from worldline.schema import UsageError

try:  # the first of the room's files: without Gymnasium it says what to install
    from gymnasium import spaces
except ModuleNotFoundError as error:
    raise UsageError(f"environments need Gymnasium ({error}): pip install worldline[envs]") from error

from worldline.checks import Checked, refuse_unknown
from worldline.envs.motion import Motion, MotionConfig
from worldline.envs.observation import Look, Observation, Shows, batched, observation
from worldline.envs.starts import Starts, draw
from worldline.envs.transition import Judge, Transition, judged
from worldline.forecasting.forecaster import Forecaster, Session, Snapshot, advance_together, signature
from worldline.formats.limits import StateLimits

OPTIONS = ("start",)
"""What `reset(options=...)` may say."""


@dataclass(frozen=True, kw_only=True)
class EnvConfig(MotionConfig, Checked):
    """How an environment behaves, whatever runs in it."""

    shows: Shows = "frame"
    reward: Judge | None = None
    """None: 1 for a step that succeeds, else 0."""
    success: Judge | None = None
    """Above 0.5 it ends the episode, and `info["is_success"]` says so."""
    failure: Judge | None = None
    """Above 0.5 it ends the episode, without success."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated; None: never."""
    lazy: bool = True
    """Decode pictures when they are read, not in every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unknown(self.shows, Shows.__args__, what="choice of shows")


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """One episode at one time."""

    session: Snapshot
    look: Look
    first: Look
    state: Float32[np.ndarray, " s"]
    """Measured; of a world, what it was given."""
    command: Float32[np.ndarray, " s"]
    """What the robot was commanded last: where actions are counted from."""
    first_state: Float32[np.ndarray, " s"]
    start: int
    seed: int
    history: tuple[tuple[Look, Float32[np.ndarray, " s"]], ...] = ()
    """Looks and states from the start on, where a judge reads whole episodes."""
    steps: int = 0
    ended: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Stepped:
    """What a step gives beside the observation."""

    moment: Moment
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any] = field(default_factory=dict)


class Core:
    """A forecaster, where episodes in it begin, and how it is used. Shared by an environment and all its forks."""

    def __init__(self, forecaster: Forecaster, starts: Starts, limits: StateLimits, config: EnvConfig) -> None:
        self.forecaster = forecaster if forecaster.lazy == config.lazy else replace(forecaster, lazy=config.lazy)
        self.starts, self.limits, self.config = starts, limits, config
        forecaster.refuse_standing()
        judges = (config.reward, config.success, config.failure)
        self.keeps = any(getattr(judge, "whole_episode", False) for judge in judges)
        self.motion = Motion(config=config, limits=limits, frames=forecaster.chunk_frames * config.chunks)
        """Frames of a step that are predicted, in all its chunks."""
        end = forecaster.context_frames + forecaster.chunk_frames
        self.shown = sum(time < end for time in forecaster.times) * config.chunks

    @cached_property
    def observation_space(self) -> spaces.Space[Any]:
        """States are any finite numbers: what is measured, or allowed, may lie outside of the limits of actions."""
        most = np.finfo(np.float32).max
        parts: dict[str, spaces.Space[Any]] = {"state": spaces.Box(-most, most, (len(self.limits.names),), np.float32)}
        if self.config.shows != "state":
            height, width, _ = self.picture.shape
            shape = (height, width, 3) if self.config.shows == "frame" else (self.shown, height, width, 3)
            parts = {self.config.shows: spaces.Box(0, 255, shape, np.uint8)} | parts
        return spaces.Dict(parts)

    @cached_property
    def picture(self) -> np.ndarray:
        """The picture that the first start shows. Raises `UsageError` where there are none."""
        try:
            return self.starts.begin(self.forecaster, [self.starts.numbers[0]], [0])[0].look.frames()[-1]
        except UsageError as error:
            raise UsageError(f"{error} (an environment without pictures is one that shows='state')") from error

    @cached_property
    def made_by(self) -> str:
        return signature(self.forecaster)

    def begin(self, rngs: Sequence[np.random.Generator], chosen: Sequence[Any]) -> list[Moment]:
        """New episodes, all together; the random numbers of each say its start, if none is chosen, and its seed."""
        numbers = [draw(self.starts, rng, one) for rng, one in zip(rngs, chosen, strict=True)]
        seeds = [int(rng.integers(2**31)) for rng in rngs]
        begun = self.starts.begin(self.forecaster, numbers, seeds)
        dims = len(self.limits.names)
        if begun[0].state.shape != (dims,):
            raise UsageError(f"episodes begin with {begun[0].state.shape[-1]} states, but limits are given for {dims}")
        return [
            Moment(
                session=one.session.snapshot(),
                look=one.look,
                first=one.look,
                state=one.state.astype(np.float32),
                command=(one.state if one.command is None else one.command).astype(np.float32),
                first_state=one.state.astype(np.float32),
                start=number,
                seed=seed,
                history=((one.look, one.state.astype(np.float32)),) if self.keeps else (),
            )
            for one, number, seed in zip(begun, numbers, seeds, strict=True)
        ]

    def advance(self, moments: Sequence[Moment], actions: Sequence[Any], names: Sequence[str]) -> list[Stepped]:
        """One step of each episode, in one call of the world per chunk. Raises `UsageError` for other actions.

        Args:
            names: put before what is said of an action: which environment it is for.
        """
        each = zip(actions, moments, names, strict=True)
        motions = [self.motion.path(action, moment.command, where=name) for action, moment, name in each]
        sessions = [Session(self.forecaster, moment.session) for moment in moments]
        paths, outside = [path for path, _ in motions], [count for _, count in motions]
        looks = self._continued(sessions, paths)
        after = [
            replace(
                moment,
                session=session.snapshot(),
                look=look,
                state=self._state(session, path[-1]),
                command=path[-1],
                steps=moment.steps + 1,
            )
            for moment, session, look, path in zip(moments, sessions, looks, paths, strict=True)
        ]
        if self.keeps:
            after = [replace(one, history=(*one.history, (one.look, one.state))) for one in after]
        transitions = [
            self.transition(one, other, np.asarray(action, np.float32), path)
            for one, other, action, path in zip(moments, after, actions, paths, strict=True)
        ]
        return self._judged(after, transitions, outside)

    def _state(self, session: Session, commanded: Float32[np.ndarray, " s"]) -> Float32[np.ndarray, " s"]:
        """The state after a step: what was commanded, unless the forecaster measures one."""
        measured = self.forecaster.measured(session)
        return commanded if measured is None else measured[0].numpy()

    def _continued(self, sessions: Sequence[Session], paths: Sequence[np.ndarray]) -> list[Look]:
        """Continue by all chunks of a step. Give what each session shows then."""
        chunk, ahead = self.forecaster.chunk_frames, self.forecaster.lookahead_frames
        parts: list[list[Look]] = []
        for number in range(self.config.chunks):
            rows = np.minimum(np.arange(number * chunk, number * chunk + ahead), self.motion.frames - 1)
            made = advance_together(sessions, [torch.from_numpy(path[rows])[None] for path in paths])
            parts.append([Look(lambda one=one: one.video[0, 0]) for one in made])
        if self.config.shows != "frames" or len(parts) == 1:
            return parts[-1]
        return [_one_after_another(own) for own in zip(*parts, strict=True)]

    def _judged(self, after: list[Moment], transitions: list[Transition], outside: list[int]) -> list[Stepped]:
        config, none = self.config, [0.0] * len(after)
        succeeded = judged(config.success, transitions, "success") if config.success else none
        failed = judged(config.failure, transitions, "failure") if config.failure else none
        won = [float(value > 0.5) for value in succeeded]
        rewards = judged(config.reward, transitions, "reward") if config.reward else won
        stepped = []
        for i, moment in enumerate(after):
            terminated = won[i] > 0.5 or failed[i] > 0.5
            truncated = config.max_episode_steps is not None and moment.steps >= config.max_episode_steps
            info = self.info(moment) | {"out_of_range": outside[i]}
            if config.success:
                info["is_success"] = won[i] > 0.5
            stepped.append(
                Stepped(
                    moment=replace(moment, ended=terminated or truncated),
                    reward=rewards[i],
                    terminated=terminated,
                    truncated=truncated and not terminated,
                    info=info,
                )
            )
        return stepped

    def transition(self, before: Moment, after: Moment, action: np.ndarray, path: np.ndarray) -> Transition:
        """The step between two moments of an episode."""
        seen = "frame" if self.config.shows == "state" else self.config.shows
        looked: dict[str, Any] = {
            name: observation(seen, self.shown, look, state)
            for name, look, state in (
                ("before", before.look, before.state),
                ("after", after.look, after.state),
                ("first", after.first, after.first_state),
            )
        }
        history = after.history or ((after.first, after.first_state), (after.look, after.state))
        place: dict[str, Any] = {
            "step": after.steps,
            "start": after.start,
            "session": Session(self.forecaster, after.session),
        }
        return Transition(action=action, path=path, history=history, **place, **looked)

    def info(self, moment: Moment) -> dict[str, Any]:
        """Where an episode is: number of its start, its seed, and video frames since its context."""
        frames = moment.steps * self.motion.frames
        return {"start": moment.start, "seed": moment.seed, "frames": frames}

    def observed(self, moment: Moment) -> dict[str, Any]:
        """What one environment observes."""
        return self._read(observation(self.config.shows, self.shown, moment.look, moment.state))

    def observed_all(self, moments: Sequence[Moment]) -> dict[str, Any]:
        """What several observe, stacked."""
        states = np.stack([moment.state for moment in moments])
        return self._read(batched(self.config.shows, self.shown, [moment.look for moment in moments], states))

    def _read(self, seen: Observation) -> dict[str, Any]:
        return seen if self.config.lazy else seen.copy()

    def fits(self, moment: Moment) -> None:
        """Raise `UsageError` where a moment is of another world."""
        Session(self.forecaster, replace(moment.session, made_by=self.made_by)).restore(moment.session)

    def close(self) -> None:
        """Free what the forecaster holds; it opens it again where it is used again."""
        self.forecaster.close()


def _one_after_another(looks: Sequence[Look]) -> Look:
    """All frames of several looks."""
    return Look(lambda: torch.from_numpy(np.concatenate([look.frames() for look in looks])).permute(0, 3, 1, 2))
