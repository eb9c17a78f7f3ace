"""`DreamEnv`: an environment inside a forecaster, be it a world, a baseline, an ensemble or the live twin."""

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import UInt8

from worldline.envs.core import OPTIONS, Core, EnvConfig, Moment
from worldline.envs.starts import Starts, refuse_unlike, starts_of
from worldline.families.load import Loaded
from worldline.forecasting.forecaster import Forecaster
from worldline.formats.limits import StateLimits
from worldline.formats.source import Source
from worldline.schema import Batch, Clip, UsageError


@dataclass(frozen=True, kw_only=True, eq=False)
class EnvSnapshot:
    """An environment at one moment: the episode in it, and its random numbers. It can be kept and pickled."""

    moment: Moment
    random: Mapping[str, Any]


class DreamEnv(gymnasium.Env[Any, Any]):
    """Act inside a forecaster. Observations are a dictionary of a picture (`frame`, RGB) and the robot's `state`.

    An action is the robot's next state or a change of it (`EnvConfig`), raw units. The forecaster shows what the robot
    sees when it gets there. Render mode `rgb_array` gives the last frame.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        forecaster: Forecaster | Loaded,
        starts: Starts | Source | Sequence[Clip] | Batch,
        *,
        limits: StateLimits | None = None,
        render_mode: str | None = None,
        fps: float | None = None,
        **options: Any,
    ) -> None:
        """Raises `UsageError` for options that are not those of `EnvConfig`, and what does not fit together.

        Args:
            forecaster: any; of several futures the first is shown.
            starts: a data set, clips or a batch of them, each with a context; `reset` draws one.
            limits: of the states; if not given, what the starts' data hold.
            fps: video frames per second, for renderers; if not given, a loaded world's own, of others 30.
            options: of `EnvConfig`.
        """
        self.core = core_of(forecaster, starts, limits, options)
        self.observation_space, self.action_space = self.core.observation_space, self.core.motion.space()
        self.render_mode = checked_mode(render_mode)
        self.metadata = {**self.metadata, "render_fps": rate_of(forecaster, fps) / self.core.motion.frames}
        self._moment: Moment | None = None
        self._closed = self._forked = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        """Begin an episode: at a start that the seed draws, or at `options["start"]`, the number of one."""
        self._refuse_closed()
        refuse_options(options)
        super().reset(seed=seed)
        (self._moment,) = self.core.begin([self.np_random], [(options or {}).get("start")])
        return self.core.observed(self._moment), self.core.info(self._moment)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Go on by one step. Raises `UsageError` for an action that does not fit; the episode is then as before."""
        moment = self._now()
        if moment.ended:
            raise UsageError("this episode has ended; call reset() before the next step")
        (done,) = self.core.advance([moment], [action], [""])
        self._moment = done.moment
        return self.core.observed(done.moment), done.reward, done.terminated, done.truncated, done.info

    def render(self) -> UInt8[np.ndarray, "h w 3"] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The last frame; None where no render mode was chosen."""
        moment = self._now()
        return None if self.render_mode is None else moment.look.frames()[-1].copy()

    def snapshot(self) -> EnvSnapshot:
        """This moment: the session's, the last picture, and the state of the random numbers."""
        return EnvSnapshot(moment=self._now(), random=deepcopy(self.np_random.bit_generator.state))

    def restore(self, snapshot: EnvSnapshot) -> dict[str, Any]:
        """Return to a moment of this or another environment of the same forecaster; what follows is the same again.

        Raises `UsageError` where another forecaster made it.
        """
        self._refuse_closed()
        self.core.fits(snapshot.moment)
        self._moment = snapshot.moment
        self.np_random.bit_generator.state = snapshot.random
        return self.core.observed(snapshot.moment)

    def fork(self) -> "DreamEnv":
        """A second environment that goes on from this moment. It shares the forecaster; closing it frees nothing."""
        other, snapshot = copy(self), self.snapshot()
        other.np_random, other._forked = np.random.Generator(np.random.PCG64()), True
        other.restore(snapshot)
        return other

    @property
    def now(self) -> dict[str, Any]:
        """What is observed now. Raises `UsageError` before the first reset."""
        return self.core.observed(self._now())

    def close(self) -> None:
        """Free what the forecaster holds. It may be called again; nothing else may be called then."""
        if not self._closed and not self._forked:
            self.core.close()
        self._closed, self._moment = True, None

    def _now(self) -> Moment:
        self._refuse_closed()
        if self._moment is None:
            raise UsageError("no episode has begun: call reset() first")
        return self._moment

    def _refuse_closed(self) -> None:
        if self._closed:
            raise UsageError("this environment is closed; make a new one")


def core_of(forecaster: Any, starts: Any, limits: StateLimits | None, options: dict[str, Any]) -> Core:
    """What environments share. Raises `UsageError` where a part does not fit the others."""
    given = forecaster.forecaster if isinstance(forecaster, Loaded) else forecaster
    if isinstance(forecaster, Loaded):
        refuse_unlike(forecaster.contract, starts)
    if not isinstance(given, Forecaster):
        raise UsageError(f"an environment needs a forecaster (worldline.load(...)), not {type(given).__name__}")
    try:
        config = EnvConfig(**options)
    except TypeError as error:
        names = ", ".join(field.name for field in fields(EnvConfig))
        raise UsageError(f"{error}; the options of an environment are {names}") from error
    found = starts_of(starts, given)
    return Core(given, found, limits or found.limits(), config)


def rate_of(forecaster: Any, fps: float | None) -> float:
    """Video frames per second: `fps`, or those that a loaded world was trained at, or 30."""
    return fps or (forecaster.contract.fps if isinstance(forecaster, Loaded) else 30.0)


def checked_mode(render_mode: str | None) -> str | None:
    """Raise `UsageError` for a render mode that there is not."""
    if render_mode not in (None, "rgb_array"):
        raise UsageError(
            f"render_mode is None or 'rgb_array', not {render_mode!r}; for a window, gymnasium.make(..., "
            "render_mode='human') wraps the environment (it needs pygame)"
        )
    return render_mode


def refuse_options(options: dict[str, Any] | None, *also: str) -> None:
    """Raise `UsageError` for an option of `reset` that there is not."""
    for name in options or {}:
        if name not in (*OPTIONS, *also):
            raise UsageError(f"reset has no option {name!r}; it has {', '.join((*OPTIONS, *also))}")
