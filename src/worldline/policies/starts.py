"""Which starts are used for what: by ranges of seeds that do not overlap, written here and nowhere else.

A start is replayed from (task, seed). A policy is ranked on starts that no policy, classifier or choice has seen, nor a
world: recorded episodes of tasks (`worldline data twin` with tasks) have seeds of `twin.tasks.KEPT` or more, and all of
these are below it.
"""

from typing import Literal

Use = Literal["ranking", "demonstrations", "classifier", "choosing", "testing"]

STARTS: dict[Use, range] = {
    "ranking": range(0, 100_000),
    "demonstrations": range(100_000, 200_000),
    "classifier": range(200_000, 300_000),
    "choosing": range(300_000, 400_000),
    "testing": range(400_000, 500_000),
}
"""What the ranking is over, what policies imitate, what the success classifier is trained on, on what settings are
chosen (also how the classifier's frames are degraded), and on what the classifier's error is measured."""
