"""`worldline data info|convert|tokenize|encode|twin`: look at data, change its format, make some."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from worldline import builtin
from worldline.checks import MOST_WORKERS, seed, whole
from worldline.cli.console import choose, options_of, show
from worldline.contract import FramePattern
from worldline.data.clips import MOST_PIXELS
from worldline.data.convert import convert
from worldline.data.info import Info, inspect
from worldline.formats.checks import summarise
from worldline.formats.choose import choose_episodes, only
from worldline.formats.faults import check_episodes
from worldline.formats.open import OpenOptions, contract_of
from worldline.formats.plausible import implausible, warn
from worldline.formats.source import Source
from worldline.progress import Progress, say
from worldline.ranks import Ranks
from worldline.rundir import to_json

EXAMPLES = """
Examples:
  worldline data info twin-mini
  worldline data info MY_LEROBOT_SET --conditioning action --json
  worldline data convert MY_LEROBOT_SET OUT --size 256
  worldline data tokenize MY_LEROBOT_SET OUT --tokenizer runs/tokenizer --size 64
  worldline data encode MY_LEROBOT_SET OUT --tokenizer runs/vae --size 64
  worldline data twin OUT --episodes 100 --seed 7 --size 64
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
    exclude_episodes: tuple[int, ...] = ()
    """Episodes to leave out, by the data set's own numbers; no other changes its place in a slice."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    @property
    def paths(self) -> Path | tuple[Path, ...]:
        paths = tuple(builtin.resolve(path) for path in (self.path, *self.join))
        return paths if self.join else paths[0]

    def source(self, size: int | None) -> tuple[Source, tuple[int, ...]]:
        """The opened data, and the chosen episodes, checked; says what is strange in their states."""
        source = self.open(self.paths)
        chosen = choose_episodes(source, self.episodes, exclude=self.exclude_episodes)
        check_episodes(source, chosen, size=size)
        if os.environ.get("RANK", "0") == "0":
            if source.left_out:
                say(f"{source.path}: left out {summarise(source.left_out)}")
            warn(implausible(source, chosen))
        return source, chosen


@dataclass(frozen=True, kw_only=True)
class InfoJob(Opening):
    """Print what a data set holds and everything that is wrong with it. Exits with 2 where there is a problem."""

    thorough: bool = False
    """Decode every frame of every video instead of the first and last."""


@dataclass(frozen=True, kw_only=True)
class ConvertJob(Opening):
    """Write any source of frames in the 1X raw layout.

    Under torchrun every process takes its share of the episodes.
    """

    out: tyro.conf.Positional[Path]
    size: int | None = None
    """Centre-crop and resize to this square; as stored if not given."""

    def __post_init__(self) -> None:
        whole(self, "size", most=MOST_PIXELS)


@dataclass(frozen=True, kw_only=True)
class TokenizeJob(Opening):
    """Write any source of frames as tokens in the 1X token layout.

    Under torchrun every process takes its share of the episodes.
    """

    out: tyro.conf.Positional[Path]
    tokenizer: Path
    """Run or model folder of ours, or a folder with Cosmos' encoder.jit and decoder.jit."""
    size: int | None = None
    start_offsets: int = 1
    """Start offsets per episode, spread over a block of frames: more places for a world to start from."""
    device: str = "auto"

    def __post_init__(self) -> None:
        whole(self, "size", most=MOST_PIXELS)
        whole(self, "start_offsets")


@dataclass(frozen=True, kw_only=True)
class EncodeJob(Opening):
    """Write any source of frames as windows of continuous latents, to train a world on without decoding video.

    Under torchrun every process takes its share of the episodes.
    """

    out: tyro.conf.Positional[Path]
    tokenizer: Path
    """A VAE of ours, or Wan2.2's folder or Wan2.2_VAE.pth."""
    size: int | None = None
    pattern: FramePattern = field(default_factory=FramePattern.report_77)
    """Frames of a window that are encoded; 77 -> 21 as in the report if not given."""
    window_stride: int = 8
    """Frames between the starts of successive windows."""
    batch_size: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        whole(self, "size", most=MOST_PIXELS)
        whole(self, "window_stride", "batch_size")


@dataclass(frozen=True, kw_only=True)
class TwinJob:
    """Make a data set of the humanoid twin in the 1X raw layout. Needs `pip install worldline[twin]`."""

    out: tyro.conf.Positional[Path]
    episodes: int
    seed: int = 0
    size: Literal[64, 128, 256, 512] = 64
    frames: int = 120
    """Per episode."""
    snapshot_every: int = 10
    """Frames between saved physics states."""
    workers: int = os.cpu_count() or 1
    json: bool = False

    def __post_init__(self) -> None:
        whole(self, "episodes", "frames", "snapshot_every")
        whole(self, "workers", most=MOST_WORKERS)
        seed(self, "seed")


JOBS = (
    Annotated[InfoJob, tyro.conf.subcommand("info")]
    | Annotated[ConvertJob, tyro.conf.subcommand("convert")]
    | Annotated[TokenizeJob, tyro.conf.subcommand("tokenize")]
    | Annotated[EncodeJob, tyro.conf.subcommand("encode")]
    | Annotated[TwinJob, tyro.conf.subcommand("twin")]
)


def parse(arguments: list[str]) -> InfoJob | ConvertJob | TokenizeJob | EncodeJob | TwinJob:
    choose(arguments, ("info", "convert", "tokenize", "encode", "twin"), what="data verb")
    with options_of(EncodeJob):
        return tyro.cli(JOBS, prog="worldline data", description="Work with data sets." + EXAMPLES, args=arguments)  # pyright: ignore


def main(arguments: list[str]) -> None:
    """Parse and do what is asked."""
    job = parse(arguments)
    match job:
        case InfoJob():
            _info(job)
        case ConvertJob():
            _convert(job)
        case TokenizeJob():
            _tokenize(job)
        case EncodeJob():
            _encode(job)
        case TwinJob():
            _twin(job)


def _info(job: InfoJob) -> None:
    progress = Progress()
    info = inspect(
        job.paths,
        job,
        episodes=job.episodes,
        exclude=job.exclude_episodes,
        thorough=job.thorough,
        progress=progress.named("checking files"),
    )
    progress.close()
    show(to_json(Info, info), text=_info_text(info), as_json=job.json)
    if info.problems:
        raise SystemExit(2)


def _info_text(info: Info) -> str:
    size = f"{info.image_size[0]}x{info.image_size[1]}" if info.image_size else "tokens only"
    lines = [
        f"{info.path}: {info.kind}",
        f"  episodes     {info.episodes} ({len(info.left_out)} more listed and left out)",
        f"  frames       {info.frames} at {info.fps:g} fps, {size}",
        f"  cameras      {', '.join(info.cameras) or '-'} (using {info.camera})" if info.cameras else "",
        f"  tokens       {info.grid}" if info.grid else "",
        f"  samples      {info.samples} (34 frames), windows of 77 frames at stride 8: {info.windows_77}",
        f"  states       {info.state_dim} dimensions",
    ]
    statistics = info.statistics
    for i, (name, kind) in enumerate(zip(info.state_names, info.state_kinds, strict=True)):
        spread = f"{statistics.minimum[i]:9.3f} .. {statistics.maximum[i]:8.3f}" if statistics else ""
        lines.append(f"    {i:3} {name:28} {kind:9} {spread}")
    lines += [f"  note: {note}" for note in info.notes]
    lines += [f"  problem: {problem}" for problem in info.problems] or ["  no problems found"]
    return "\n".join(line for line in lines if line)


def _convert(job: ConvertJob) -> None:
    source, chosen = job.source(job.size)
    source, progress = only(source, chosen), Progress()
    with Ranks.start("cpu") as ranks:
        done = convert(source, job.out, size=job.size, ranks=ranks, progress=progress.named("converting"))
    if not ranks.writes:
        return
    left_out = f", {len(source.left_out)} listed episodes were left out" if source.left_out else ""
    text = f"{done.out}: {done.episodes} episodes, {done.frames} frames, {done.bytes / 1e6:.1f} MB{left_out}"
    show(to_json(type(done), done) | {"left_out": len(source.left_out)}, text=text, as_json=job.json)


def _tokenize(job: TokenizeJob) -> None:
    from worldline.encoding.tokens import tokenize
    from worldline.tokenizers.load import fingerprint, load_tokenizer

    source, chosen = job.source(job.size)
    place = builtin.resolve(job.tokenizer)
    progress = Progress()
    with Ranks.start(job.device) as ranks:
        device = ranks.device(job.device)
        done = tokenize(
            source,
            load_tokenizer(place).to(device),
            job.out,
            fingerprint=fingerprint(place),
            episodes=chosen,
            size=job.size,
            start_offsets=job.start_offsets,
            device=device,
            ranks=ranks,
            progress=progress.named("tokenizing"),
        )
    if not ranks.writes:
        return
    text = (
        f"{done.folder}: {done.blocks} blocks of {done.episodes} episodes ({done.reused} were there already); "
        f"{done.frames_left_out} frames behind the last whole block left out, "
        f"{done.episodes_too_short} episodes too short for a sample"
    )
    show(to_json(type(done), done), text=text, as_json=job.json)


def _encode(job: EncodeJob) -> None:
    from worldline.encoding.latents import encode
    from worldline.tokenizers.load import fingerprint, load_vae

    source, chosen = job.source(job.size)
    place, progress = builtin.resolve(job.tokenizer), Progress()
    with Ranks.start(job.device) as ranks:
        device = ranks.device(job.device)
        done = encode(
            source,
            load_vae(place).to(device),
            job.out,
            fingerprint=fingerprint(place),
            episodes=chosen,
            pattern=job.pattern,
            window_stride=job.window_stride,
            contract=contract_of(source, job, job.paths, job.size),
            size=job.size,
            batch_size=job.batch_size,
            device=device,
            ranks=ranks,
            progress=progress.named("encoding"),
        )
    if not ranks.writes:
        return
    text = (
        f"{done.folder}: {done.windows} windows of {done.episodes} episodes ({done.reused} were there already); "
        f"{done.episodes_too_short} episodes too short for a window"
    )
    show(to_json(type(done), done), text=text, as_json=job.json)


def _twin(job: TwinJob) -> None:
    from worldline.twin.generate import TwinConfig, generate

    config = TwinConfig(
        episodes=job.episodes,
        seed=job.seed,
        size=job.size,
        frames=job.frames,
        snapshot_every=job.snapshot_every,
    )
    progress = Progress()
    generate(job.out, config, workers=job.workers, progress=progress.named("simulating episodes"))
    text = (
        f"{job.out}: {config.episodes} episodes of {config.frames} frames, {config.size}x{config.size}, 1X raw layout"
    )
    show({"out": str(job.out), **asdict(config)}, text=text, as_json=job.json)
