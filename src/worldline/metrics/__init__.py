"""Pure functions. Those of the modules below that are metrics are in the table (`METRICS`) when this is imported."""

from worldline.metrics import image, learned, states, tokens

__all__ = ["image", "learned", "states", "tokens"]
