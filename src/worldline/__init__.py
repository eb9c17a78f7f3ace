"""Generative world models of robots."""

from worldline.threads import choose

choose()
