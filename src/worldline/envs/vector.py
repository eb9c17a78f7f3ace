"""`DreamVectorEnv`: many environments in one forecaster, which forecasts for all of them in one call."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float64, UInt8

from worldline.envs.core import Moment, Stepped
from worldline.envs.single import EnvSnapshot, checked_mode, core_of, rate_of, refuse_options
from worldline.envs.starts import Starts
from worldline.families.load import Loaded
from worldline.forecasting.forecaster import Forecaster
from worldline.formats.limits import StateLimits
from worldline.formats.source import Source
from worldline.schema import Batch, Clip, UsageError

Stepping = tuple[
    dict[str, Any], Float64[np.ndarray, " n"], Bool[np.ndarray, " n"], Bool[np.ndarray, " n"], dict[str, Any]
]


class DreamVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` environments that give what as many `DreamEnv` in Gymnasium's `SyncVectorEnv` would, within rounding.

    Each has its own episode, which ends and begins anew by itself. Worlds are asked once for all of them, so that many
    cost far less than as many times one; the live twin runs one after the other.
    """

    def __init__(
        self,
        forecaster: Forecaster | Loaded,
        starts: Starts | Source | Sequence[Clip] | Batch,
        *,
        num_envs: int,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        limits: StateLimits | None = None,
        render_mode: str | None = None,
        fps: float | None = None,
        **options: Any,
    ) -> None:
        """As `DreamEnv`.

        Args:
            num_envs: how many.
            autoreset_mode: what happens to an episode that ends (Gymnasium's `AutoresetMode`): it begins anew at the
                next step (`NextStep`), at once (`SameStep`, its last observation is in `info`), or when you reset it
                (`Disabled`, `options["reset_mask"]`).
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise UsageError(f"num_envs is a whole number of at least 1, not {num_envs!r}")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError as error:
            raise UsageError(f"{error}; there are: {', '.join(mode.value for mode in AutoresetMode)}") from error
        self.core, self.num_envs = core_of(forecaster, starts, limits, options), num_envs
        self.single_observation_space, self.single_action_space = self.core.observation_space, self.core.motion.space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = checked_mode(render_mode)
        rate = rate_of(forecaster, fps) / self.core.motion.frames
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": rate, "autoreset_mode": self.autoreset_mode}
        self._moments: list[Moment | None] = [None] * num_envs
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin episodes everywhere, or where `options["reset_mask"]` is True.

        Args:
            seed: of environment 0, of which the next has one more, ...; or one for each.
            options: `start`, the number of a start, or one for each; `reset_mask`.
        """
        self._refuse_closed()
        refuse_options(options, "reset_mask")
        options = options or {}
        rows = np.flatnonzero(self._mask(options.get("reset_mask"))).tolist()
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else seed + i for i in range(self.num_envs)]
        starts = options.get("start")
        starts = list(starts) if isinstance(starts, Sequence | np.ndarray) else [starts] * self.num_envs
        seeds, starts = self._each("seed", seed), self._each("options['start']", starts)
        rngs = {row: self._rngs[row] if seeds[row] is None else seeding.np_random(seeds[row])[0] for row in rows}
        begun = self.core.begin(list(rngs.values()), [starts[row] for row in rows])
        infos: dict[str, Any] = {}
        for row, moment in zip(rows, begun, strict=True):
            self._rngs[row], self._moments[row] = rngs[row], moment
            infos = self._add_info(infos, self.core.info(moment), row)
        return self.core.observed_all(self._now()), infos

    def step(self, actions: Any) -> Stepping:
        """Go on by one step everywhere. Raises `UsageError` for actions that do not fit; then nothing has gone on."""
        moments = self._now()
        if not hasattr(actions, "__len__") or len(actions) != self.num_envs:
            raise UsageError(f"give one action for each of {self.num_envs} environments, not {actions!r:.80}")
        ended = [row for row, moment in enumerate(moments) if moment.ended]
        if ended and self.autoreset_mode is AutoresetMode.DISABLED:
            raise UsageError(f"the episodes of environments {ended} have ended; reset them (options['reset_mask'])")
        going = [row for row in range(self.num_envs) if row not in ended]
        done = self._advanced(moments, going, actions)
        infos: dict[str, Any] = {}
        at_once = self.autoreset_mode is AutoresetMode.SAME_STEP
        again = [row for row, one in done.items() if at_once and one.moment.ended]
        begun = self._begun(sorted([*ended, *again]))
        after = [begun[row] if row in begun else done[row].moment for row in range(self.num_envs)]
        for row in range(self.num_envs):
            if row in again:
                final = {"final_obs": self.core.observed(done[row].moment), "final_info": done[row].info}
                infos = self._add_info(infos, final, row)
            infos = self._add_info(infos, self.core.info(after[row]) if row in begun else done[row].info, row)
        self._moments = [*after]
        rewards = np.array([done[row].reward if row in done else 0.0 for row in range(self.num_envs)])
        ends = [[row in done and getattr(done[row], how) for row in range(self.num_envs)] for how in _ENDS]
        terminated, truncated = (np.array(one, dtype=np.bool_) for one in ends)
        return self.core.observed_all(after), rewards, terminated, truncated, infos

    def _advanced(self, moments: Sequence[Moment], going: Sequence[int], actions: Any) -> dict[int, Stepped]:
        """The steps of those whose episodes go on, by their numbers."""
        if not going:
            return {}
        given = [moments[row] for row in going], [actions[row] for row in going]
        names = [f"environment {row}: " for row in going]
        return dict(zip(going, self.core.advance(*given, names), strict=True))

    def _begun(self, rows: Sequence[int]) -> dict[int, Moment]:
        """New episodes of some, by their numbers."""
        rngs = [self._rngs[row] for row in rows]
        return dict(zip(rows, self.core.begin(rngs, [None] * len(rows)), strict=True)) if rows else {}

    def render(self) -> tuple[UInt8[np.ndarray, "h w 3"], ...] | None:
        """The last frame of each; None where no render mode was chosen."""
        moments = self._now()
        return None if self.render_mode is None else tuple(moment.look.frames()[-1].copy() for moment in moments)

    def snapshot(self) -> tuple[EnvSnapshot, ...]:
        """This moment of each, as `DreamEnv.snapshot`: either can restore the other's."""
        states = [deepcopy(rng.bit_generator.state) for rng in self._rngs]
        return tuple(EnvSnapshot(moment=one, random=own) for one, own in zip(self._now(), states, strict=True))

    def restore(self, snapshots: Sequence[EnvSnapshot]) -> dict[str, Any]:
        """Return each to a moment. Raises `UsageError` for another number of them, or of another forecaster."""
        self._refuse_closed()
        if len(snapshots) != self.num_envs:
            raise UsageError(f"give one snapshot for each of {self.num_envs} environments, not {len(snapshots)}")
        for snapshot in snapshots:
            self.core.fits(snapshot.moment)
        self._moments = [snapshot.moment for snapshot in snapshots]
        for rng, snapshot in zip(self._rngs, snapshots, strict=True):
            rng.bit_generator.state = snapshot.random
        return self.core.observed_all(self._now())

    def close_extras(self, **_: Any) -> None:
        """Free what the forecaster holds."""
        self.core.close()
        self._moments = [None] * self.num_envs

    def _now(self) -> list[Moment]:
        self._refuse_closed()
        begun = [moment for moment in self._moments if moment is not None]
        if len(begun) < self.num_envs:
            raise UsageError("no episode has begun in some environments: call reset() first")
        return begun

    def _mask(self, mask: Any) -> Bool[np.ndarray, " n"]:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        fits = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,)
        if not fits or not mask.any():
            raise UsageError(f"options['reset_mask'] is an array of {self.num_envs} truth values, one at least True")
        return mask

    def _each(self, what: str, values: Sequence[Any]) -> Sequence[Any]:
        if len(values) != self.num_envs:
            raise UsageError(f"{what} needs one value, or one for each of {self.num_envs} environments, not {values!r}")
        return values

    def _refuse_closed(self) -> None:
        if self.closed:
            raise UsageError("this environment is closed; make a new one")


_ENDS = ("terminated", "truncated")
