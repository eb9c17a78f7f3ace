"""Is a folder of forecasts a complete submission? Every sample of a test set once, sound, by one run, and nothing else.

Reads one sample at a time, so a test set of any size needs little memory, and collects all problems. Formats of the
challenge's own submissions are not public: what is checked is the layout that `worldline.forecasts` writes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worldline import builtin
from worldline.data.splits import content_of
from worldline.files import hash_of_file, reading
from worldline.forecasts import INDEX, SUMS, UNFINISHED, Index, files_of, named, read_index, read_sample
from worldline.formats.open import OpenOptions, open_source
from worldline.progress import watched
from worldline.schema import DataError, Forecast, UsageError

FIX = "Delete what is wrong and run the same forecast command again: it makes what is not there."


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a folder of forecasts holds, and all that is wrong with it."""

    folder: str
    run: str
    checkpoint: str
    layout: str
    samples: int
    contents: str
    """What each sample holds."""
    test_set: str | None
    """The data that it was compared with."""
    problems: tuple[str, ...]

    def __str__(self) -> str:
        by = f"{self.folder}: {self.samples} samples as {self.layout} by {self.run} ({self.checkpoint})"
        lines = [by, f"each: {self.contents}"]
        if self.test_set is None:
            lines.append("not compared with a test set: give it (--data)")
        if not self.problems:
            every = "" if self.test_set is None else f", every sample of {self.test_set} once"
            return "\n".join(
                [*lines, f"no problem found: files as {SUMS} says, all readable, ranges and sums right{every}"]
            )
        return "\n".join([*lines, f"{len(self.problems)} problems:", *(f"  {problem}" for problem in self.problems)])


def check_submission(folder: Path, data: Path | None = None) -> Submission:
    """Check a folder of forecasts completely, and compare it with the test set that it is of.

    Raises:
        DataError: there is no forecast, it is not finished, or it does not say what it is.
        UsageError: it holds videos, or the data are no test set.
    """
    if not (folder / INDEX).exists() and (folder / UNFINISHED).exists():
        fix = "Run the same forecast command again: it goes on where it was stopped."
        raise DataError(folder / UNFINISHED, expected="a finished forecast", found="one that was stopped", fix=fix)
    index = read_index(folder)
    problems = [*_names(index), *_files(folder, index)]
    if data is not None:
        problems += _against(index, builtin.resolve(data))
    shapes: Counter[str] = Counter()
    for sample in watched(index.samples, "checking samples"):
        try:
            shapes[_shape(read_sample(folder, sample, index))] += 1
        except DataError as problem:
            problems.append(str(problem))
    if len(shapes) > 1:
        problems.append(
            f"samples differ in what they hold: {', '.join(f'{n} with {what}' for what, n in shapes.items())}"
        )
    return Submission(
        folder=str(folder),
        run=index.run,
        checkpoint=index.checkpoint,
        layout=index.layout,
        samples=len(index.samples),
        contents=next(iter(shapes), "nothing that can be read"),
        test_set=None if data is None else str(data),
        problems=tuple(problems),
    )


def _names(index: Index) -> Iterator[str]:
    """Samples that are listed twice, or nowhere."""
    if not index.samples:
        yield f"{INDEX} lists no samples"
    for name, count in Counter(sample.name for sample in index.samples).items():
        if count > 1:
            yield f"{INDEX} lists {name} {count} times"
    if not index.made_from:
        yield f"{INDEX} does not say what the forecast was made from. {FIX}"


def _against(index: Index, data: Path) -> Iterator[str]:
    """Samples of a test set that are missing, others that are not its, and other data under its names."""
    source = open_source(data, OpenOptions())
    if not source.context_only:
        raise UsageError(f"{data} is no test set: its episodes hold their future, {source.kind} (--data)")
    expected, found = {named(episode.name) for episode in source.episodes}, {sample.name for sample in index.samples}
    for what, names in (("has no", expected - found), ("has foreign", found - expected)):
        if names:
            yield f"{INDEX} {what} {_some(sorted(names))} ({len(names)} of {len(expected)} samples of {data}). {FIX}"
    if expected == found and content_of(source, range(len(source.episodes))) != index.content:
        yield f"{data} holds other data than were forecast, under the same names. {FIX}"


def _files(folder: Path, index: Index) -> Iterator[str]:
    """Files that are missing, changed, listed by nobody, or left by a writer that was killed."""
    sums, path = {}, folder / SUMS
    try:
        with reading(path, UnicodeDecodeError, expected="hashes of files, as sha256sum writes them", fix=FIX):
            lines = path.read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except DataError as problem:
        yield str(problem)
    there = {str(file.relative_to(folder)) for file in files_of(folder)} - {INDEX, SUMS}
    stems = {sample.name for sample in index.samples}
    listed = {name for name in sums if name.split("/")[0].removesuffix(f".{index.layout}") in stems}
    for what, names in (
        ("are missing", sums.keys() - there),
        ("are of no sample", there - listed),
        (f"are not in {SUMS}", (there - sums.keys()) if sums else set()),
    ):
        if names:
            yield f"{folder}: {len(names)} files {what}: {_some(sorted(names))}. {FIX}"
    changed = [
        name for name in watched(sorted(sums.keys() & there), "hashing") if hash_of_file(folder / name) != sums[name]
    ]
    if changed:
        yield f"{folder}: {len(changed)} files are not as they were written: {_some(changed)}. {FIX}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _shape(made: Forecast) -> str:
    """What one sample holds, in words."""
    parts = []
    if made.frames is not None:
        _, futures, frames, _, height, width = made.frames.shape
        parts.append(f"{futures} future{'s' * (futures > 1)} of {frames} frames {height}x{width}")
    if made.tokens is not None and made.top_ids is not None:
        _, futures, *grid = made.tokens.shape
        parts.append(
            f"{futures} x {'x'.join(map(str, grid))} tokens, {made.top_ids.shape[-1]} log-probabilities of each"
        )
    return ", ".join(parts)
