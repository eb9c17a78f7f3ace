"""What is read from frames, against the states that they should show. No model is here: what it read is given."""

from jaxtyping import Bool, Float, Float32
from torch import Tensor

from worldline.metrics.table import Metric


@Metric("state_error", "State error", "deviations", "states", higher_is_better=False)
def state_error(
    read: Float[Tensor, "b f s"], given: Float[Tensor, "b f s"], scale: Float[Tensor, " s"], judged: Bool[Tensor, " s"]
) -> Float32[Tensor, "b f"]:
    """What an inverse-dynamics model reads in the frames, against the states that the row was given: mean absolute
    error over the joints that it can read, in deviations of the training states.

    Counted from the last context frame, whose state is known. The row `reconstruction` and the study `inverse_dynamics`
    say how much of it is the model's own error.
    """
    return ((read - given).abs() / scale)[..., judged].mean(dim=-1).float()
