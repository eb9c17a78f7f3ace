"""Every kind of model is registered once this is imported."""

from worldline.families import compression, sampling

__all__ = ["compression", "sampling"]
