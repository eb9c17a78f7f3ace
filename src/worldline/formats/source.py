"""`Source`: where clips come from. Every file format derives from it, and says the same about the same fault."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from worldline.contract import FramePattern, Reading
from worldline.files import read_json, unreadable
from worldline.schema import Clip, DataError, Episode, LatentGrid, Origin, StateLayout, TokenGrid, UsageError

Report = Callable[[DataError], None]  # called with what is wrong, where that is collected and not raised
T = TypeVar("T")
_adapter: Any = lru_cache(maxsize=64)(TypeAdapter)  # of a form
JOINED = " + "  # between the paths of data sets that are read as one
_LOOKED_AT = 8  # episodes, for the size of frames


@contextmanager
def noting(report: Report) -> Iterator[None]:
    """Report what is wrong with what the block reads, and continue."""
    try:
        yield
    except DataError as problem:
        report(problem)


@dataclass(frozen=True, kw_only=True)
class LeavingOut:
    """How faulty parts of a data set are handled on opening, with a line for each part left out."""

    allowed: bool
    """Whether parts may be left out; without it the first raises."""
    report: Report | None = None
    """Given by an inspection: then nothing raises."""
    lines: list[str] = field(default_factory=list)

    def leave(self, what: str, problem: DataError, *, harmless: bool = False) -> None:
        """Leave out a part, or raise what is wrong with it; what is `harmless` (nothing is lost) needs no leave."""
        if self.report is not None:
            self.report(problem)
        elif not (self.allowed or harmless):
            raise problem
        self.lines.append(what)

    @contextmanager
    def around(self, what: str) -> Iterator[None]:
        """Leave out the part that is read in the block, if it is faulty."""
        try:
            yield
        except DataError as problem:
            self.leave(f"{what} ({problem.found})", problem)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Episodes and their lengths, and any window of one. Opening is cheap: nothing is decoded before `read`.

    A format gives the states of an episode (`states_of`), the file that shows it (`footage`), and its frames (`frames`)
    or what else windows show (`shows`). Its episodes may be of a class that says where they lie.
    """

    kind: str
    """`1x-tokens`, `1x-test`, `1x-raw`, `lerobot-v2.0`, `lerobot-v2.1`, `lerobot-v3.0`, `latents`."""
    path: Path
    fps: float
    layout: StateLayout
    """Names and kinds of the dimensions of `Clip.states`."""
    episodes: tuple[Episode, ...]
    image_size: tuple[int, int] | None = None
    """Height and width of stored frames in pixels; None where the source holds none."""
    grid: TokenGrid | None = None
    """How tokens lie over frames; None where the source holds none."""
    latent_grid: LatentGrid | None = None
    """How latents lie over the frames of a window; None where the source holds none."""
    pattern: FramePattern | None = None
    """Which frames of a window the latents show."""
    stride: int = 1
    """Windows begin at multiples of this frame: those of latents, where they were encoded."""
    tokenizer: str | None = None
    """Fingerprint of what made the tokens or latents, where that is known."""
    reading: Reading = field(default_factory=Reading)
    """How the data were read, or those that they were made from."""
    context_only: bool = False
    """Whether episodes are test samples: frames or tokens of a context alone, and states beyond it."""
    left_out: tuple[str, ...] = ()
    """Listed episodes that the source does not give, one line each: missing or damaged (only with `allow_missing`),
    without frames, or listed twice."""

    def read(self, episode: int, start: int, stop: int) -> Clip:
        """Frames `start .. stop-1` of an episode.

        Raises:
            DataError: the bytes are missing, damaged or of another shape than the metadata say.
            IndexError: the window leaves the episode.
            UsageError: a window of tokens off the block grid of their file, or of latents that was not encoded.
        """
        states = torch.from_numpy(self.read_states(episode, start, stop))
        origin = Origin(source=str(self.path), episode=episode, start=start)
        fps = self.fps / (self.pattern.stride if self.pattern else 1)
        return Clip(states=states, fps=fps, origin=origin, **self.shows(episode, start, stop))

    def shows(self, episode: int, start: int, stop: int) -> dict[str, Tensor]:
        """The frames, tokens or latents of a window within an episode, by their name in a `Clip`."""
        return {"frames": torch.cat(list(self.frames(episode, start, stop)))}

    def read_states(self, episode: int, start: int = 0, stop: int | None = None) -> Float32[np.ndarray, "t s"]:
        """States of frames `start .. stop-1` alone, or of all, a copy. Never touches video or tokens.

        Raises what `read` raises, and `DataError` for a value that is not a finite number.
        """
        of = self.episodes[episode]
        stop = of.length if stop is None else stop
        if not 0 <= start < stop <= of.length:
            raise IndexError(f"{of.name}: frames {start}..{stop - 1} are not within 0..{of.length - 1}")
        path, stored = self.states_of(episode)
        states = np.array(stored[start:stop], np.float32)
        rows, columns = np.nonzero(~np.isfinite(states))
        if len(rows):
            value, name = states[rows[0], columns[0]], self.layout.names[columns[0]]
            found = f"{value} in row {start + rows[0]}, {name}, of {of.name} ({len(rows)} such values)"
            expected = f"{self.layout.dim} finite numbers in every row"
            raise DataError(path, expected=expected, found=found, kind="states")
        return states

    def states_of(self, episode: int) -> tuple[Path, Float[np.ndarray, "n s"]]:
        """The file of an episode's states, and all of them as they are stored, perhaps a map. Raises `DataError`."""
        raise NotImplementedError

    def column(self, episode: int, name: str) -> Float[np.ndarray, "n d"] | None:
        """What else a recording has a row of for each frame, by name (`action`); None where it has no such column."""
        return None

    def action_names(self, episode: int) -> tuple[str, ...]:
        """The names of the actions recorded beside an episode; empty where there are none. Joined sets may differ."""
        return ()

    def frames(self, episode: int, start: int, stop: int, *, threads: int = 1) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
        """Decode frames `start .. stop-1` of an episode in pieces of bounded size; 0 threads are as many as cores."""
        raise UsageError(f"{self.path}: no video in this data set, it is {self.kind}; give the one it was made from")

    def video_size(self, size: int | None = None) -> tuple[int, int]:
        """Height and width of frames, as stored or scaled to `size`. Raises `UsageError` where there are none."""
        if self.image_size is None:
            raise UsageError(f"{self.path}: only video will do here, this is {self.kind}")
        return (size, size) if size else self.image_size

    def footage(self, episode: int) -> tuple[Path, int]:
        """The video, token or latent file that shows an episode, and the episode's first frame in it."""
        raise NotImplementedError

    def pairing(self, episode: int) -> str:
        """What of that file its rows show, where its bytes and the first frame do not say; empty where they do."""
        return ""

    def check(self, episode: int) -> tuple[int, int] | None:
        """Check all of an episode but its pixels, as cheaply as can be; give the size of its frames, if it has any."""
        self.read_states(episode)
        if not self.surely_shown(episode):
            self.shown(episode)
        return self.frame_size(episode)

    def surely_shown(self, episode: int) -> bool:
        """Whether headers alone say that its video shows all rows of an episode, so that no times need be read."""
        return True

    def frame_size(self, episode: int) -> tuple[int, int] | None:
        """Height and width of an episode's frames as they are stored; None where it has none."""
        if self.grid is not None or self.latent_grid is not None:
            return None
        _, _, height, width = next(iter(self.frames(episode, 0, 1))).shape
        return height, width

    def shown(self, episode: int) -> Int64[np.ndarray, "n"]:
        """Which frame of its video shows each row of an episode. Raises `DataError` where they do not fit together."""
        return self.footage(episode)[1] + np.arange(self.episodes[episode].length)

    def check_footage(self, episodes: Sequence[int], report: Report) -> None:
        """Report faults of a whole file that shows some episodes, in addition to those of each episode."""

    def claims(self, report: Report, extremes: Float64[np.ndarray, "2 s"] | None = None) -> None:
        """Report where the files do not hold what the metadata claim; states lie between `extremes`."""

    def notes(self) -> Iterator[str]:
        """Facts worth knowing that are no faults."""
        return iter(())

    def sound(self, leaving: LeavingOut) -> "Source":
        """The source with the size of its frames as stored, and without damaged episodes, if they may be left out."""
        kept: list[Episode] = []
        for episode in self.episodes:
            with leaving.around(episode.name):
                if leaving.allowed and leaving.report is None:
                    self.check(episode.index)
                kept.append(replace(episode, index=len(kept)))
        size = self.image_size
        for episode in self.episodes[:_LOOKED_AT] if self.grid is None else ():
            with suppress(DataError):  # what is wrong with it is said on reading
                size = self.frame_size(episode.index) or size
                break
        return replace(self, image_size=size, episodes=tuple(kept), left_out=tuple(leaving.lines))

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folder of the data set, or those of several that are read as one."""
        if self.path.exists():  # also where its name looks like two
            return (self.path,)
        return tuple(Path(path) for path in str(self.path).split(JOINED))

    @property
    def name(self) -> str:
        """Name of that folder, or of each of several."""
        return JOINED.join(root.resolve().name for root in self.roots)

    @property
    def alike(self) -> dict[str, object]:
        """Properties that joined data sets must share, by their names in messages."""
        return {
            "format": self.kind.partition("-")[0],
            "content": "tokens" if self.grid else "latents" if self.latent_grid else "frames",
            "state names": self.layout.names,
            "frames per second": round(self.fps, 3),
            "picture size": self.image_size,
            "tokens": self.grid,
            "latents": self.latent_grid,
            "frames of a window": self.pattern,
            "window strides": self.stride,
            "tokenizers": self.tokenizer,
            "state kinds": self.layout.kinds,
        }

    def read_at(self, size: int | None) -> Reading:
        """How the data were read, or those that they were made from, where frames are scaled to `size` now."""
        own = self.reading.image_size
        return replace(self.reading, image_size=size or own if self.image_size else own or size)


def validated(path: Path, form: type[T], content: Any, where: str = "") -> T:
    """Give content of a file, or a line of JSON, the type it should have. Raises `DataError` naming a misfit."""
    try:
        check = _adapter(form)
        return check.validate_json(content) if isinstance(content, bytes) else check.validate_python(content)
    except UsageError as error:  # a configuration that checks itself
        raise DataError(path, expected="sound settings", found=str(error), kind="metadata") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
        value = first["input"].decode(errors="replace") if isinstance(first["input"], bytes) else first["input"]
        expected = f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise unreadable(path, expected=expected, found=repr(value)[:80], fix="", kind="metadata") from error


def leave_out_absent(root: Path, needed: Mapping[str, Sequence[Path]], leaving: LeavingOut) -> list[int]:
    """Leave out the parts, by name, of which a file is absent; give the positions of the others."""
    absent = {
        name: [file.name + " is a link to nothing" * os.path.islink(file) for file in files if not os.path.exists(file)]
        for name, files in needed.items()
    }
    missing = [f"{name} ({' '.join(names)})" for name, names in absent.items() if names]
    if missing and not leaving.allowed:
        missing = [summarise(missing)]
    for what in missing:
        expected, found = "all files that are listed", f"missing {what}"
        leaving.leave(what, DataError(root, expected=expected, found=found, kind="missing_files"))
    return [i for i, names in enumerate(absent.values()) if not names]


def check_totals(path: Path, counted: dict[str, int], report: Report) -> None:
    """Report totals in a JSON file that are not what was counted."""
    stated = read_json(path)
    for key, count in counted.items():
        if stated.get(key, count) != count:
            report(DataError(path, expected=f"{key} {str(stated[key])[:80]}", found=f"{count}", kind="metadata"))


def summarise(items: Sequence[str], limit: int = 4) -> str:
    """Join a few examples of a long list: `100: a, b, c, d, ...`."""
    return f"{len(items)}: {', '.join(items[:limit])}{', ...' if len(items) > limit else ''}"


def some_lengths(lengths: Sequence[int]) -> str:
    """The span of some lengths for a message: `20 to 33`, or `60`."""
    least, most = min(lengths, default=0), max(lengths, default=0)
    return f"{least} to {most}" if least < most else f"{least}"


def own_number(episode: Episode) -> int:
    """The number of an episode in its data set."""
    return episode.index if episode.number is None else episode.number


@contextmanager
def with_way_out(source: Source, episode: int, *, of_val_path: bool = False) -> Iterator[None]:
    """Within it, a fault of the data also says how to go on without that episode."""
    try:
        yield
    except DataError as problem:
        how, allow = how_to_leave_out(source, episode, of_val_path=of_val_path), "data." * of_val_path + "allow-missing"
        name = source.episodes[episode].name
        fix = f"{problem.fix} Or leave {name} out: {how}, or whatever is damaged with --{allow}."
        raise DataError(**vars(problem) | {"fix": fix}) from problem


def how_to_leave_out(source: Source, episode: int, *, of_val_path: bool = False) -> str:
    """The option that leaves an episode out, for messages; of a recipe's `val_path` it is another."""
    before, after = f":{episode}" * (episode > 0), f"{episode + 1}:" * (episode + 1 < len(source.episodes))
    others = ",".join(part for part in (before, after) if part)
    if of_val_path:
        return f"--data.val-episodes {others}"
    number = own_number(source.episodes[episode])
    if sum(own_number(other) == number for other in source.episodes) == 1:
        return f"--exclude-episodes {number} (in recipes --data.exclude-episodes)"
    return f"--episodes {others} (in recipes --data.train-episodes)"
