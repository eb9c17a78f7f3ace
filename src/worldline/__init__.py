"""Generative world models of robots.

    import worldline

    data = worldline.open_data("twin-mini-val")
    world = worldline.load("compression-tiny")
    clip = data.read(0, 0, 34)
    forecast = world.forecast(clip.frames[None, :17], clip.states[None])
    session = world.start(clip.frames[None, :17], clip.states[None, :17])

What is named here is loaded when it is first used: importing worldline takes no time, and loads no PyTorch.
"""

from typing import TYPE_CHECKING, Any

from worldline.threads import choose

if TYPE_CHECKING:
    from worldline.api import evaluate, forecast, load, open_data, rank, resume, train

__all__ = ["evaluate", "forecast", "load", "open_data", "rank", "resume", "train"]

choose()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'worldline' has no attribute {name!r}")
    from worldline import api

    return api.told(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
