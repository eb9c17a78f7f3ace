"""`worldline data info|convert|tokenize|encode|twin`: inspect data, convert them, make some."""

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union

import tyro

from worldline import builtin
from worldline.checks import MOST_WORKERS, Checked, Limit, Natural, Share, as_only, options_of, refuse_unknown
from worldline.contract import FramePattern
from worldline.data.clips import Side, check_episodes
from worldline.data.info import Info, inspect
from worldline.encoding.encode import Made, convert, encode, tokenize
from worldline.encoding.export import to_lerobot
from worldline.families.tokenizers import fingerprint, load_tokenizer
from worldline.formats.lerobot.write import Actions, Version
from worldline.formats.open import OpenOptions, choose_episodes, only
from worldline.formats.source import Source, summarise
from worldline.formats.states import implausible, warn
from worldline.progress import say, show, speaks
from worldline.ranks import Ranks
from worldline.rundir import to_json
from worldline.schema import UsageError
from worldline.twin.generate import Content, Pairs, Play, TaskEpisodes, TwinConfig, generate
from worldline.twin.tasks import TaskId

EXAMPLES = """
Under torchrun, the processes that convert, tokenize or encode share the episodes.

Examples:
  worldline data info twin-mini
  worldline data info MY_LEROBOT_SET --conditioning action --json
  worldline data convert MY_LEROBOT_SET OUT --size 256
  worldline data convert MY_1X_SET OUT --to lerobot-v3.0
  worldline data tokenize MY_LEROBOT_SET OUT --tokenizer runs/tokenizer --size 64
  worldline data encode MY_LEROBOT_SET OUT --tokenizer runs/vae --size 64
  worldline data twin OUT --episodes 100 --seed 7 --size 64
  worldline data twin OUT --episodes 100 --pairs --frames 34
  worldline data twin OUT --episodes 100 --view table --size 128 --fps 15 --tasks touch push --failures 0.5
"""


@dataclass(frozen=True, kw_only=True)
class Opening(OpenOptions):
    """Which data set, and which of its episodes."""

    path: tyro.conf.Positional[Path]
    """Folder: 1X v2.0 (tokens or raw), LeRobot v2.1 or v3.0; or a built-in name such as twin-mini."""
    join: tuple[Path, ...] = ()
    """Further data sets of the same layout, whose episodes follow."""
    episodes: str = ":"
    """Python slices and numbers of episodes, for example `:-10` or `:40,45,50:60`."""
    exclude_episodes: tuple[Natural, ...] = ()
    """Episodes to leave out, by the data set's own numbers; the places of all others stay the same."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    @property
    def paths(self) -> Path | tuple[Path, ...]:
        return builtin.resolve_all((self.path, *self.join) if self.join else self.path)


@dataclass(frozen=True, kw_only=True)
class InfoJob(Opening):
    """Print the content of a data set and all its problems. Exits with 2 if there is a problem."""

    thorough: bool = False
    """Decode every frame of every video instead of the first and last."""

    def carry_out(self) -> None:
        info = inspect(self.paths, self, episodes=self.episodes, exclude=self.exclude_episodes, thorough=self.thorough)
        show(to_json(Info, info), text=str(info), as_json=self.json)
        if info.problems:
            raise SystemExit(2)


@dataclass(frozen=True, kw_only=True)
class Making(Opening, Checked):
    """Makes a folder from a source of frames."""

    out: tyro.conf.Positional[Path]
    size: Side | None = None
    """Centre-crop and resize to this square; as stored if not given."""

    @property
    def computes_on(self) -> str:
        """The device of the processes that share the work."""
        return "cpu"

    def carry_out(self) -> None:
        """Check the chosen episodes, warn of implausible states, make the folder and report it."""
        source = self.open(self.paths)
        chosen = choose_episodes(source, self.episodes, exclude=self.exclude_episodes)
        check_episodes(source, chosen, size=self.size)
        if source.left_out:
            say(f"{source.path}: left out {summarise(source.left_out)}")
        if speaks():
            warn(implausible(source, chosen))
        with Ranks.start(self.computes_on) as ranks:
            done = self.make(source, chosen, size=self.size, ranks=ranks)
        show({"folder": str(done.folder), **done.found}, text=str(done), as_json=self.json)

    def make(self, source: Source, chosen: tuple[int, ...], *, ranks: Ranks, **how: Any) -> Made:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ConvertJob(Making):
    """Write any source of frames in the 1X raw layout, or as LeRobot."""

    to: Literal["1x-raw", "lerobot-v2.1", "lerobot-v3.0"] = "1x-raw"
    append: bool = False
    """LeRobot: add to the data set in OUT, which worldline wrote, the episodes that are not there yet."""
    task: str | None = None
    """LeRobot: what the robot is told to do, in words; if not given, what the source says, or `unknown`."""
    actions: Actions | None = None
    """LeRobot: what `action` holds; if not given, the source's own actions where it has some, else the next state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lerobot = {"--append": self.append, "--task": self.task is not None, "--actions": self.actions is not None}
        if self.to == "1x-raw" and (idle := [name for name, given in lerobot.items() if given]):
            raise UsageError(f"{' and '.join(idle)} would change nothing of 1X data; give --to lerobot-v3.0 too")

    def make(self, source: Source, chosen: tuple[int, ...], **how: Any) -> Made:
        if self.to == "1x-raw":
            return convert(only(source, chosen), self.out, **how)
        version: Version = "v3.0" if self.to == "lerobot-v3.0" else "v2.1"
        how |= {"append": self.append, "task": self.task, "actions": self.actions}
        return to_lerobot(only(source, chosen), self.out, version=version, **how)


@dataclass(frozen=True, kw_only=True)
class Encoding(Making):
    """Frames go through a tokenizer that `makes` tokens or latents: `by` puts them through it."""

    makes: ClassVar[Any]
    by: ClassVar[Any]
    tokenizer: Path
    """Run or model folder of ours; a folder with Cosmos' encoder.jit and decoder.jit; Wan2.2's folder or file."""
    device: str = "auto"

    @property
    def computes_on(self) -> str:
        return self.device

    def make(self, source: Source, chosen: tuple[int, ...], *, ranks: Ranks, **how: Any) -> Made:
        place, device = builtin.resolve(self.tokenizer), ranks.device(self.device)
        own = {field.name for field in fields(self)} - {field.name for field in fields(Encoding)}
        how |= {name: getattr(self, name) for name in own}
        how |= {"episodes": chosen, "fingerprint": fingerprint(place), "device": device, "ranks": ranks}
        return self.by(source, load_tokenizer(place, self.makes).to(device), self.out, **how)


@dataclass(frozen=True, kw_only=True)
class TokenizeJob(Encoding):
    """Write any source of frames as tokens in the 1X token layout."""

    makes, by = "tokens", staticmethod(tokenize)
    start_offsets: int = 1
    """Start offsets per episode, at even distances within a block: more places for a world to start from."""


@dataclass(frozen=True, kw_only=True)
class EncodeJob(Encoding):
    """Write any source of frames as windows of continuous latents, to train a world on without decoding video."""

    makes, by = "latents", staticmethod(encode)
    pattern: FramePattern = field(default_factory=FramePattern.report_77)
    """Which frames of a window are encoded; 77 -> 21 as in the report if not given."""
    window_stride: int = 8
    """Frames between the starts of successive windows."""
    batch_size: int = 8


@dataclass(frozen=True, kw_only=True)
class TwinJob(TwinConfig):
    """Make a data set of the humanoid twin in the 1X raw layout. Needs `pip install worldline[twin]`."""

    out: tyro.conf.Positional[Path]
    pairs: bool = False
    """Instead of episodes, starts from which one command touches an object and others just miss it: for each start an
    episode of each, which share their first 17 frames."""
    tasks: tuple[TaskId, ...] | None = None
    """Instead of play, episodes of these tasks in turn, some of which fail. They end when the time of their task is
    over, or after --frames."""
    failures: Share | None = None
    """Share of the episodes of tasks that fail; half if not given."""
    miss: float | None = None
    """Largest aim error of episodes of tasks, in m; 0.25 if not given."""
    workers: Annotated[int, Limit(least=1, most=MOST_WORKERS)] = os.cpu_count() or 1
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        own = {"--failures": self.failures, "--miss": self.miss}
        given = {name: value for name, value in own.items() if value is not None}
        if given and self.tasks is None:
            raise UsageError(f"{' and '.join(given)} would change nothing without tasks; give --tasks too")
        if self.pairs and self.tasks is not None:
            raise UsageError("--pairs and --tasks are two kinds of data; give one of the two")

    def carry_out(self) -> None:
        config = as_only(TwinConfig, self)
        content: Content = Pairs() if self.pairs else Play()
        if self.tasks is not None:
            given = {"failures": self.failures, "miss": self.miss}
            content = TaskEpisodes(tasks=self.tasks, **{k: value for k, value in given.items() if value is not None})
        generate(self.out, config, workers=self.workers, content=content)
        what = f"episodes of {', '.join(self.tasks)}" if self.tasks else "episodes"
        what = "starts of touches and near misses" if self.pairs else what
        length = "at most " if self.tasks else ""
        text = f"{self.out}: {self.episodes} {what} of {length}{self.frames} frames, {self.size} px, 1X raw layout"
        said = {"out": str(self.out), **asdict(config), "pairs": self.pairs, **content.record()}
        show(said, text=text, as_json=self.json)


VERBS = {"info": InfoJob, "convert": ConvertJob, "tokenize": TokenizeJob, "encode": EncodeJob, "twin": TwinJob}


def parse(verb: str, arguments: list[str]) -> Any:
    for word in [argument for argument in arguments if not argument.startswith("-")][:1]:
        refuse_unknown(word, VERBS, what="data verb")
    jobs: Any = Union[tuple(Annotated[job, tyro.conf.subcommand(name)] for name, job in VERBS.items())]  # noqa: UP007 - made at run time
    with options_of({FramePattern: "pattern."}):
        return tyro.cli(jobs, prog=f"worldline {verb}", description="Work with data sets." + EXAMPLES, args=arguments)
