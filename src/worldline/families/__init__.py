"""Every kind of model is registered once this is imported."""

from worldline.families import compression, inverse_dynamics, sampling

__all__ = ["compression", "inverse_dynamics", "sampling"]
