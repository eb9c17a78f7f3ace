"""Whatever a file of a data set holds, the outcome is data or an error that names a file: never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mutations
import numpy as np
import pytest

from worldline.data.info import inspect
from worldline.formats.open import open_source
from worldline.schema import DataError, UsageError


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return mutations.build(tmp_path_factory.mktemp("sound"))


@contextmanager
def _named(root: Path) -> Iterator[None]:
    """Do something that may find the damage: then the message names the data set, or a file of it."""
    try:
        yield
    except (DataError, UsageError) as problem:
        if str(root) not in str(problem):
            raise AssertionError(f"no file is named: {problem}") from problem


def _exercise(root: Path) -> None:
    """Open in both ways, read all states and some frames of every episode, and look at everything."""
    with _named(root):
        inspect(root)
    for allow_missing in (False, True):
        with _named(root):
            _read_all(root, allow_missing)


def _read_all(root: Path, allow_missing: bool) -> None:
    source = open_source(root, allow_missing=allow_missing)
    for episode in source.episodes:
        with _named(root):
            source.read_states(episode.index, 0, episode.length)
        block = 5 if source.kind == "latents" else 1 if source.grid is None else source.grid.block
        start = -episode.block_offset % block
        if start + block <= episode.length:
            with _named(root):
                source.read(episode.index, start, start + block)


def _mutate(sound: dict[str, Path], folder: Path, seeds: range) -> None:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        kind = mutations.SETS[seed % len(mutations.SETS)]
        root = mutations.copy(sound[kind], folder / str(seed))
        how = mutations.mutate(root, rng)
        try:
            _exercise(root)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {kind}, {how}") from error


@pytest.mark.parametrize("kind", mutations.SETS[:-1])
def test_the_sets_are_sound_before_they_are_damaged(sound: dict[str, Path], kind: str) -> None:
    info = inspect(sound[kind])
    assert (info.kind, info.problems) == (kind.removesuffix(" images"), ())


def test_some_mutations(sound: dict[str, Path], tmp_path: Path) -> None:
    _mutate(sound, tmp_path, range(24))


@pytest.mark.slow
def test_five_hundred_mutations(sound: dict[str, Path], tmp_path: Path) -> None:
    _mutate(sound, tmp_path, range(1_000, 1_500))
