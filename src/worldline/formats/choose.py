"""Several data sets as one, and some episodes of one. Reads nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from worldline.formats.source import Source
from worldline.schema import Episode, UsageError

JOINED = " + "
"""Between the paths of data sets that are read as one."""


def choose_episodes(source: Source, text: str = ":", *, exclude: Sequence[int] = ()) -> tuple[int, ...]:
    """Positions of the chosen episodes, each once, in the order in which they are named.

    Args:
        text: Python slices and numbers, joined by commas (`:40,45,50:60`), over all episodes of the source, whether or
            not some are excluded.
        exclude: episodes to leave out by their own numbers (`Episode.number`).

    Raises `UsageError` for other text, a part that selects nothing, an unknown number, or where nothing is left.
    """
    left_out = {_position(source, number) for number in exclude}
    chosen = dict.fromkeys(i for part in text.split(",") for i in _part(source, part, text))
    kept = tuple(i for i in chosen if i not in left_out)
    if not kept:
        raise UsageError(f"{source.path}: all of the episodes {text!r} are excluded; nothing is left")
    return kept


def _part(source: Source, part: str, text: str) -> range:
    """Positions that one slice or number names."""
    every = range(len(source.episodes))
    try:
        numbers = [int(number) if number.strip() else None for number in part.split(":")]
        if len(numbers) > 1:
            found = every[slice(*numbers)]
        else:
            one = int(part)
            found = every[one : one + 1 or None]
    except (ValueError, TypeError):  # a step of 0, more than three numbers
        raise UsageError(
            f"{text!r} is no choice of episodes; write slices and numbers, for example ':-10' or ':40,45,50:60'"
        ) from None
    if not found:
        raise UsageError(f"{source.path}: {part!r} selects none of its {len(every)} episodes")
    return found


def _position(source: Source, number: int) -> int | None:
    """Position of an episode by its own number; None for one that is left out already."""
    numbers = [own_number(episode) for episode in source.episodes]
    found = [i for i, own in enumerate(numbers) if own == number]
    if len(found) > 1:
        names, way = " and ".join(source.episodes[i].name for i in found), how_to_leave_out(source, found[0])
        raise UsageError(f"{source.path}: {number} is the number of {names}; choose by position, for example {way}")
    if not found and not any(line.startswith(f"episode {number} ") for line in source.left_out):
        span = f"{min(numbers, default=0)} to {max(numbers, default=0)}"
        raise UsageError(f"{source.path}: there is no episode {number} to exclude; numbers are {span}")
    return found[0] if found else None


def own_number(episode: Episode) -> int:
    """The number of an episode in its data set."""
    return episode.index if episode.number is None else episode.number


def how_to_leave_out(source: Source, episode: int) -> str:
    """The option that leaves an episode out, for messages."""
    number = own_number(source.episodes[episode])
    if sum(own_number(other) == number for other in source.episodes) == 1:
        return f"--exclude-episodes {number} (in recipes --data.exclude-episodes)"
    before, after = f":{episode}" * (episode > 0), f"{episode + 1}:" * (episode + 1 < len(source.episodes))
    return f"--episodes {','.join(part for part in (before, after) if part)} (in recipes --data.train-episodes)"


def only(source: Source, episodes: Sequence[int]) -> Source:
    """A source of some episodes of another; the others count as left out."""
    others = set(range(len(source.episodes))) - set(episodes)
    return replace(
        source,
        episodes=_numbered(source.episodes[i] for i in episodes),
        left_out=(*source.left_out, *(f"{source.episodes[i].name} (not chosen)" for i in sorted(others))),
    )


def join(sources: Sequence[Source]) -> Source:
    """Several data sets as one, whose path names them all. Raises `UsageError` where they are not `alike`."""
    first, *others = sources
    for other in others:
        for what, one in first.alike.items():
            if one != (two := other.alike.get(what)):
                raise UsageError(
                    f"{first.path} and {other.path} cannot be joined, they differ in {what}: {one} and {two}. "
                    f"{_REMEDIES.get(what, 'Leave one of them out')}"
                )
    if not others:
        return first
    return replace(
        first,
        path=Path(JOINED.join(str(source.path) for source in sources)),
        episodes=_numbered(
            replace(episode, name=f"{source.path.name}: {episode.name}")
            for source in sources
            for episode in source.episodes
        ),
        left_out=tuple(f"{source.path.name}: {line}" for source in sources for line in source.left_out),
    )


def _numbered(episodes: Iterable[Episode]) -> tuple[Episode, ...]:
    """Episodes of a new source, which keep their own numbers."""
    return tuple(replace(one, index=index, number=own_number(one)) for index, one in enumerate(episodes))


_REMEDIES = {
    "format": "Bring both to one (worldline data convert)",
    "picture size": "Convert one of them (worldline data convert --size)",
    "cameras": "Name the one to take (--data.camera)",
    "state names": "Choose columns that both have (--data.state-keys)",
    "columns of states": "Choose columns that both have (--data.state-keys)",
    "state kinds": "Say what the states are (--data.state-kinds)",
}
