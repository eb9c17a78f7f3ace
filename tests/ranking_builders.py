"""Small real parts of rankings: policies, starts and a reader for worlds of two joints and 16x16 pixels."""

import time
from functools import cache
from typing import Any

import numpy as np
import torch
from builders import GRID_200, noise_frames, small_tokenizer, small_world

from worldline.forecasting.forecaster import CopyLast, Forecaster, signature
from worldline.forecasting.tokens import TokenForecaster
from worldline.process.categorical import Sampling
from worldline.ranking.actors import Contender, Named
from worldline.ranking.conclude import Outcome, conclude
from worldline.ranking.protocol import Place, Starts
from worldline.ranking.result import Failure, Film, Provenance, Ranking
from worldline.schema import Batch, Origin


class Constant:
    """Commands one state."""

    def __init__(self, value: float = 0.3, dim: int = 2) -> None:
        self.value, self.dim = value, dim

    def act(self, observation: Any) -> np.ndarray:
        del observation
        return np.full(self.dim, self.value, np.float32)


class Wandering:
    """A random walk from the state it sees; remembers its seed."""

    def __init__(self, size: float = 0.1) -> None:
        self.size, self.rng = size, np.random.default_rng()

    def reset(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def act(self, observation: Any) -> np.ndarray:
        state = observation["state"]
        return (state + self.size * self.rng.standard_normal(state.shape)).astype(np.float32)


class WanderingTogether(Wandering):
    """The same for all rows at once."""

    def reset_batch(self, seeds: list[int], starts: Any = None) -> None:
        self.rngs = [np.random.default_rng(seed) for seed in seeds]

    def act_batch(self, observations: Any) -> np.ndarray:
        drawn = [rng.standard_normal(observations["state"].shape[1]) for rng in self.rngs]
        return (observations["state"] + self.size * np.stack(drawn)).astype(np.float32)


class Looking:
    """Commands what it sees: the mean brightness."""

    def act(self, observation: Any) -> np.ndarray:
        return np.full(observation["state"].shape, observation["frame"].mean() / 255, np.float32)


class Slow(Constant):
    """Never answers."""

    def act(self, observation: Any) -> np.ndarray:
        while True:
            time.sleep(0.005)


class Broken(Constant):
    """Fails in a stated way from a stated step on."""

    def __init__(self, how: str, after: int = 0) -> None:
        super().__init__()
        self.how, self.left = how, after

    def act(self, observation: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            return super().act(observation)
        if self.how == "raises":
            raise KeyError("lidar")
        wrong = {"nan": [0.0, np.nan], "shape": [0.0, 1.0, 2.0], "text": ["a", "b"], "ragged": [[1.0], [1.0, 2.0]]}
        return wrong[self.how]


def make_constant() -> Constant:
    return Constant()


def make_wandering() -> Wandering:
    return Wandering()


def make_nothing() -> object:
    return object()


class Bright:
    """Success is a picture that is brighter at the end than a limit."""

    identity, label = "bright", "brightness"

    def __init__(self, limit: float = 127.5, looks: int | None = None) -> None:
        self.limit, self.looks = limit, looks

    def chances(self, task: str, frames: np.ndarray, states: np.ndarray) -> np.ndarray:
        assert frames.shape[:2] == states.shape[:2]
        bright = frames[:, -1].mean(axis=(1, 2, 3))
        return 1 / (1 + np.exp(self.limit - bright))


def contender(make: Any, label: str = "mine") -> Contender:
    return Contender(label=label, make=make, identity=label)


def small_starts(count: int = 3, context: int = 17, task: str = "squares") -> Starts:
    frames = noise_frames(count, context, 3, 16, 16)
    states = torch.randn(count, context, 2, generator=torch.Generator().manual_seed(5))
    origins = tuple(Origin(source=task, episode=i, start=0) for i in range(count))
    batch = Batch(states=states, fps=30.0, origins=origins, frames=frames)
    seeds = tuple(range(count))
    return Starts(task=task, named=Named(ids=tuple(f"{task} {i}" for i in seeds), seeds=seeds), batch=batch)


def token_forecaster(**changes: Any) -> TokenForecaster:
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    settings: dict[str, Any] = {"sampling": Sampling(temperature=1.0), **changes}
    return TokenForecaster(
        world=small_world(grid=GRID_200), grid=tokenizer.grid(16, 16), tokenizer=tokenizer, **settings
    )


def place(forecaster: Forecaster, id: str = "world", **changes: Any) -> Place:
    return Place(id=id, label=id, forecaster=forecaster, identity=signature(forecaster), **changes)


def still(**changes: Any) -> Place:
    one = CopyLast(context_frames=5, times=(5,), chunk_frames=1)
    return place(one, "copy_last", **changes)


# --- results ---

LEVELS = np.array([0.05, 0.3, 0.5, 0.7, 0.95])


def outcome_of(flip: float = 0.0, **changes: Any) -> Outcome:
    """Five policies whose world gives the truth but for a share of the episodes; those are the doubtful ones."""
    rng = np.random.default_rng(0)
    truth = LEVELS[:, None] > rng.random((1, 30))  # starts are hard for all alike
    wrong = np.random.default_rng(1).random(truth.shape) < flip
    made: dict[str, Any] = {
        "id": "touch",
        "label": "touch",
        "seconds": 3.0,
        "policies": ("nothing", "miss_10cm", "blind_10", "patch_40", "oracle"),
        "columns": {"physics": truth, "twin": truth, "world": truth ^ wrong, "copy_last": np.zeros_like(truth)},
        "chances": {"twin": np.where(truth, 0.9, 0.1), "replayed": np.where(truth ^ wrong, 0.9, 0.1)},
        "doubt": wrong + 0.01 * rng.random(truth.shape),
        "gap": {"angle": 0.02},
    }
    return Outcome(**made | changes)


@cache
def ranking_of(hopeless: bool = False) -> Ranking:
    """A ranking of one task; in a hopeless world nobody succeeds."""
    outcome = outcome_of(flip=0.15)
    if hopeless:
        outcome = outcome_of(flip=0.15, columns=outcome.columns | {"world": outcome.columns["copy_last"]})
    provenance = Provenance(
        command="worldline rank runs/world --policies runs/policies",
        commit="0123456789ab",
        code="code",
        world="signature",
        reader="reader",
        policies={"touch/oracle": "hash"},
        seeds={"touch": tuple(range(30))},
        environment={"cpu": "a processor"},
    )
    said = "policy 'mine', start touch 3, step 5: its action is no finite number in entry 1 (1 of 25)"
    return Ranking(
        world="runs/world",
        labels={"physics": "physics", "twin": "twin, read from pixels", "world": "world", "copy_last": "copy-last"}
        | {"unconditional": "world without states"},
        tasks=(conclude(outcome),),
        overall=None,
        signal="round_trip",
        reader="runs/policies/success",
        failures=(Failure(policy="mine", task="touch", place="world", said=said),),
        not_computed={"unconditional": "no world without states was given (--unconditional)"},
        settings={"starts": 30, "seed": 0},
        provenance=provenance,
        seconds=61.0,
        fps=15.0,
    )


def films_of() -> tuple[Film, ...]:
    """One start, as the five policies played it."""
    frames = np.random.default_rng(0).integers(0, 255, (5, 10, 16, 16, 3), dtype=np.uint8)
    return (Film("touch", "touch 0", outcome_of().policies, frames, frames[:, ::-1].copy()),)
