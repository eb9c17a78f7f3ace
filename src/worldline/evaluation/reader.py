"""The reader of an evaluation: an inverse-dynamics model that says which states the frames of a row show."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from worldline.forecasting.forecaster import Forecaster
from worldline.judges.inverse_dynamics import READABLE, InverseDynamics
from worldline.metrics.states import state_error
from worldline.metrics.table import NotComputed
from worldline.schema import StateKind


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """A model that reads states from frames, and the data that it reads them of."""

    model: InverseDynamics
    kinds: tuple[StateKind, ...]
    fps: float
    """Frames per second that the forecaster's times count."""

    @property
    def scale(self) -> Float32[Tensor, " s"]:
        """The deviations of the states it was trained on, which are the unit of its errors."""
        return self.model.scale.cpu()

    @property
    def readable(self) -> Bool[Tensor, " s"]:
        """The joints that it read well enough when it was validated."""
        return self.model.readable.cpu()

    def read(
        self,
        frames: UInt8[Tensor, "b f 3 h w"],
        context: UInt8[Tensor, "b c 3 h w"],
        now: Float32[Tensor, "b s"],
        forecaster: Forecaster,
    ) -> Float32[Tensor, "b f s"]:
        """The states that frames at the forecaster's times show.

        What is read in the last frame of the context, whose state is known, is taken away: the model errs alike in the
        frames of one clip, by its light, its camera and how the robot stands, and that error is not the forecast's.

        Args:
            context: true frames; where there is only one, nothing is taken away.
            now: the true state at the last of them.
        """
        at = forecaster.context_frames - 1
        read = self._seconds(frames, context[:, at], forecaster.times, at)
        if at == 0:
            return read
        earlier = at - min(forecaster.pace, at)
        return read - self._seconds(context[:, at : at + 1], context[:, earlier], [at], earlier) + now[:, None]

    def _seconds(self, frames: Tensor, before: Tensor, times: Sequence[int], began: int) -> Tensor:
        return self.model.read(frames, before, times=[time / self.fps for time in times], began=began / self.fps)

    def error(self, read: Float32[Tensor, "b f s"], given: Float32[Tensor, "b f s"]) -> Float32[Tensor, "b f"]:
        """The metric `state_error`. Raises `NotComputed` where no state can be read."""
        if not self.readable.any():
            raise NotComputed(
                "the inverse-dynamics model reads no state well enough from true frames (R^2 of at least "
                f"{READABLE:g}, which is measured when its training ends)"
            )
        return state_error(read, given, self.scale, self.readable)
