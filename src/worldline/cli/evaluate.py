"""`worldline evaluate RUN`: judge a run on held-out data against the baselines."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from worldline import builtin
from worldline.cli.console import options_of, show
from worldline.contract import FramePattern
from worldline.data.clips import Clips
from worldline.evaluation.compression import Protocol, TokenCounts, evaluate_compression
from worldline.evaluation.held_out import AS_TRAINED, DataChanges, On, held_out, split_of
from worldline.evaluation.parts import Parts, made_from
from worldline.evaluation.result import Evaluation, Split
from worldline.evaluation.sampling import SamplingProtocol, evaluate_sampling
from worldline.evaluation.tokenizer import evaluate_tokenizer
from worldline.families.card import ModelCard, describe_model
from worldline.families.load import Loaded, has_tokenizer, load_forecaster, refuse_unfit
from worldline.families.sample import LoadOptions, SampleOptions
from worldline.identity import Identity, Part, refuse_another
from worldline.progress import Progress, say
from worldline.ranks import Ranks
from worldline.report.text import text_table
from worldline.rundir import RunDir, model_folder, to_json
from worldline.schema import UsageError
from worldline.tokenizers.load import fingerprint, identity_of, load_tokenizer, load_vae

EXAMPLES = """Judge a run on the held-out data its config.json names, or on other data.

A world over tokens is judged by the compression protocol: three token grids of context, all states, three grids
predicted from the model's own predictions. A world over latents is judged by the sampling protocol: 17 frames and 77
states in, the frame two seconds ahead out. A tokenizer is judged by what survives its round trip. Writes
evaluation/metrics.json. Under torchrun the processes share the clips. One that was stopped goes on where it was when
the same is asked for again.

Examples:
  worldline evaluate runs/world --unconditional runs/world_unconditional
  worldline evaluate compression-tiny
  worldline evaluate sampling-tiny --num-samples 20 --window-stride 8
  worldline evaluate runs/sampling --protocol sampling --num-samples 20 --steps 100 --guidance 1.5
  worldline evaluate runs/tokenizer --num-clips 256 --json
  worldline evaluate runs/world --on training-data
  torchrun --nproc-per-node 8 --no-python worldline evaluate runs/sampling --num-clips None --num-samples 20
"""


Kind = Literal["compression", "sampling", "tokenizer"]
UNUSED: dict[Kind, tuple[str, ...]] = {
    "compression": ("means",),
    "sampling": (),
    "tokenizer": ("protocol", "unconditional", "tokenizer", "weights", "means", "shuffled_samples", "seed"),
}
"""Options that would change nothing under a protocol; those of sampling are checked beside the forecaster, too."""


_SHARED: tuple[Part, ...] = ("data", "tokenizer")
"""What a world and the one it is compared with must have been trained with."""


@dataclass(frozen=True, kw_only=True)
class Job:
    run: tyro.conf.Positional[Path]
    """Run folder, model folder, or a built-in name such as compression-tiny."""
    protocol: Literal["auto", "compression", "sampling"] = "auto"
    """`auto` takes the one of the world's track; `sampling` judges any world by its pictures alone."""
    data: Path | tuple[Path, ...] | None = None
    """Data set to judge on, or several of one layout; if not given, the run's own validation data (for built-ins:
    twin-mini-val)."""
    episodes: str | None = None
    """Python slices and numbers of its episodes, for example `:-10` or `:40,45,50:60`."""
    changes: Annotated[DataChanges, tyro.conf.arg(name="")] = AS_TRAINED
    on: On = "held-out"
    """`held-out` refuses recordings that the run was trained on; `training-data` takes them, and the table says so."""
    unconditional: Path | None = None
    """A world trained without states on the same tokens, as a baseline."""
    tokenizer: Path | None = None
    """Where the tokenizer lies, if not in the run folder."""
    allow_different: tuple[Part, ...] = ()
    """What may be another one, on purpose, than the run was made with: `tokenizer`, `validation` or `data`."""
    checkpoint: str = "latest"
    """Which checkpoint of a run folder: `latest`, `best` (see `--keep-best` of training) or a step."""
    weights: Path | None = None
    """Folder of the pretrained backbone, if it has moved since training (worlds with adapters)."""
    out: Path | None = None
    """Folder for metrics.json and forecasts.npz; if not given, `RUN/evaluation` (for built-ins: runs/NAME)."""
    num_clips: int | None = 128
    """Evenly spread over the windows; None takes them all."""
    batch_size: int = 8
    window_stride: int | None = None
    """Frames between the starts of clips; disjoint clips if not given."""
    means: tuple[int, ...] | None = None
    """Sampling protocol: sizes of smaller ensembles that are scored beside the whole one; 5, if more are drawn."""
    shuffled_samples: int | None = None
    """Futures per clip given another clip's states; 0 leaves that row out; as many as the forecast if not given."""
    sample: Annotated[SampleOptions, tyro.conf.arg(name="")] = field(default_factory=SampleOptions)
    seed: int = 0
    device: str = "auto"
    """`auto` takes CUDA where there is one; under torchrun each process its own."""
    json: bool = False

    def check(self) -> None:
        """Refuse values that cannot be used, before anything is read. Raises `UsageError`."""
        self.sampling_protocol().sizes(self.sample.num_samples)
        if self.window_stride is not None and self.window_stride < 1:
            raise UsageError(f"clips cannot start every {self.window_stride} frames; give --window-stride 1 or more")

    def sampling_protocol(self) -> SamplingProtocol:
        return SamplingProtocol(
            num_clips=self.num_clips,
            batch_size=self.batch_size,
            seed=self.seed,
            means=self.means,
            shuffled_samples=self.shuffled_samples,
        )

    def compression_protocol(self) -> Protocol:
        """Raises `UsageError` for more than one roll-out per clip."""
        if self.sample.num_samples != 1 or self.shuffled_samples not in (None, 0, 1):
            raise UsageError(
                "the compression protocol scores one roll-out of each clip; leave out --num-samples, give "
                "--shuffled-samples 0 or 1, or judge the pictures of several (--protocol sampling)"
            )
        shuffled = self.shuffled_samples != 0
        return Protocol(num_clips=self.num_clips, batch_size=self.batch_size, seed=self.seed, shuffled=shuffled)

    def refuse_unused(self, kind: Kind) -> None:
        """Refuse options that would change nothing. Raises `UsageError`."""
        plain = {f.name: f.default for f in fields(Job)}
        given = [name for name in UNUSED[kind] if getattr(self, name) != plain[name]]
        if kind == "tokenizer":
            given += self.sample.given()
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            what = "a tokenizer is judged" if kind == "tokenizer" else f"the {kind} protocol judges"
            raise UsageError(f"{names} would change nothing: {what} without")


def parse(arguments: list[str]) -> Job:
    with options_of():
        return tyro.cli(Job, prog="worldline evaluate", description=EXAMPLES, args=arguments)


def main(arguments: list[str]) -> None:
    """Parse, evaluate, print the table."""
    job = parse(arguments)
    job.check()
    out = job.out or RunDir(builtin.results_of(builtin.resolve(job.run))).evaluation
    with Ranks.start(job.device) as ranks:
        with ranks.first():  # what is refused is refused once, and before any weights are read
            request = _request(job, out, ranks)
        with ranks.owning(out):
            evaluation = request.tokenizer() if request.kind == "tokenizer" else request.world()
        request.progress.close()
    if ranks.writes:
        table = f"{text_table(evaluation)}\n\n{out / 'metrics.json'}"
        show(to_json(Evaluation, evaluation), text=table, as_json=job.json)


def _request(job: Job, out: Path, ranks: Ranks) -> "_Request":
    run = builtin.resolve(job.run)
    model = model_folder(run, job.checkpoint)
    card = describe_model(model)
    kind = _kind(job, run, card)
    job.refuse_unused(kind)
    if kind == "compression":
        job.compression_protocol()
    if kind != "tokenizer":
        job.sample.check(card)
    models = [model, *([model_folder(builtin.resolve(job.unconditional))] if job.unconditional else [])]
    _refuse_others(job, run, card, models[1:])
    data = builtin.data_for(run, job.data)
    split = split_of(
        run,
        card.promise,
        models,
        data=data,
        episodes=job.episodes,
        changes=job.changes,
        on=job.on,
        allow_different=job.allow_different,
    )
    if split == "not checked" and ranks.writes:
        say(f"{run} does not say which recordings it was trained on: that these are others is not checked")
    pattern = card.promise.pattern
    if kind != "tokenizer":  # a world's forecast is compared with all frames
        pattern = FramePattern.consecutive(pattern.window)
    clips = held_out(
        run,
        card.promise,
        window=pattern.window,
        stride=job.window_stride,
        pattern=pattern,
        data=data,
        episodes=job.episodes,
        changes=job.changes,
        on=job.on,
    )
    if clips.source.context_only:
        raise UsageError(f"{clips.source.path} holds no future: test samples can be forecast, not evaluated")
    if clips.source.image_size is None and kind != "compression":
        raise UsageError(f"{clips.source.path} holds no frames to compare with; give data that do (--data)")
    if kind != "tokenizer":
        beside_it = job.tokenizer is not None or has_tokenizer(run, card)
        refuse_unfit(
            clips.source,
            card,
            tokenizer=beside_it,
            pictures=kind == "sampling",
            allow_different=job.allow_different,
        )
    return _Request(job=job, run=run, model=model, kind=kind, clips=clips, split=split, out=out, ranks=ranks)


def _refuse_others(job: Job, run: Path, card: ModelCard, compared: list[Path]) -> None:
    """Refuse a tokenizer and worlds that do not belong to the run, by what their descriptions and files say."""
    for other in compared:
        theirs = describe_model(other)
        if theirs.config.kind != card.config.kind or not getattr(theirs.config, "unconditional", False):
            raise UsageError(
                f"{other} is no world of the kind of {run} that was trained without states; give one (a training with "
                "--model.unconditional True)"
            )
        places = dict.fromkeys(_SHARED, other)
        refuse_another(
            card.identity, theirs.identity, what=str(run), places=places, parts=_SHARED, allowed=job.allow_different
        )
    if job.tokenizer is not None:
        place = builtin.resolve(job.tokenizer)
        found = Identity(tokenizer=fingerprint(place))
        refuse_another(card.identity, found, what=str(run), places={"tokenizer": place}, allowed=job.allow_different)


def _kind(job: Job, run: Path, card: ModelCard) -> Kind:
    if job.weights and card.base is None:
        raise UsageError(f"--weights would change nothing: {run} has no adapters on a pretrained backbone")
    match card.config.kind:
        case "st-transformer":
            return "sampling" if job.protocol == "sampling" else "compression"
        case "wan":
            if job.protocol == "compression":
                raise UsageError(
                    f"{run} holds a world over latents: it has no tokens to be scored (--protocol sampling)"
                )
            return "sampling"
        case _:
            return "tokenizer"


@dataclass(frozen=True, kw_only=True)
class _Request:
    """An evaluation that was found to be possible."""

    job: Job
    run: Path
    model: Path
    """The checkpoint that is judged."""
    kind: Kind
    clips: Clips
    split: Split
    out: Path
    ranks: Ranks
    progress: Progress = field(default_factory=Progress)

    def world(self) -> Evaluation:
        job, loaded = self.job, self._load(self.run, self.job.checkpoint)
        clips = self.clips.sized(loaded.forecaster.image_size)
        unconditional = self._load(builtin.resolve(job.unconditional)) if job.unconditional else None
        models = {model_folder(self.run, job.checkpoint): loaded.tokenizer}
        models |= {model_folder(unconditional.folder): unconditional.tokenizer} if unconditional else {}
        shared: dict[str, Any] = {"out": self.out, "split": self.split, "ranks": self.ranks}
        shared["progress"] = self.progress.named("forecasting clips, by batches")
        if self.kind == "compression":
            protocol, counts = job.compression_protocol(), TokenCounts.of(self.run)
            parts = self._parts(clips, models, asdict(protocol), counts=counts and counts.content())
            return evaluate_compression(
                loaded, clips, protocol=protocol, unconditional=unconditional, counts=counts, parts=parts, **shared
            )
        protocol = job.sampling_protocol()
        return evaluate_sampling(
            loaded.forecaster,
            clips,
            protocol=protocol,
            run=self.run,
            settings=loaded.chosen | job.sample.settings(loaded.forecaster),
            tokenizer=loaded.identity,
            unconditional=unconditional.forecaster if unconditional else None,
            parts=self._parts(clips, models, asdict(protocol)),
            **shared,
        )

    def _load(self, run: Path, checkpoint: str = "latest") -> Loaded:
        job = self.job
        options = LoadOptions(
            checkpoint=checkpoint,
            allow_different=job.allow_different,
            tokenizer=job.tokenizer,
            weights=job.weights,
            **job.sample.sampling(),
        )
        return load_forecaster(run, options, device=self.ranks.device(job.device))

    def tokenizer(self) -> Evaluation:
        job, model, device = self.job, self.model, self.ranks.device(self.job.device)
        is_vae = describe_model(model).config.kind == "wan-vae"
        tokenizer = load_vae(model) if is_vae else load_tokenizer(model)
        return evaluate_tokenizer(
            tokenizer.to(device),
            self.clips,
            run=self.run,
            num_clips=job.num_clips,
            batch_size=job.batch_size,
            out=self.out,
            split=self.split,
            identity=identity_of(fingerprint(model), tokenizer),
            checkpoint=model.name if model != self.run else None,
            device=device,
            parts=self._parts(self.clips, {model: None}, {"num_clips": job.num_clips, "batch_size": job.batch_size}),
            ranks=self.ranks,
            progress=self.progress.named("round trips, by batches"),
        )

    def _parts(self, clips: Clips, models: Mapping[Path, str | None], protocol: dict[str, Any], **more: Any) -> Parts:
        """What such an evaluation left that was stopped; says how much that is."""
        job, key = self.job, None
        if self.ranks.writes:
            key = made_from(
                clips,
                models,
                weights=job.weights,
                device=self.ranks.device(job.device),
                kind=self.kind,
                split=self.split,
                protocol=protocol,
                sample=asdict(job.sample),
                **more,
            )
        parts = Parts.begun(self.out, key, ranks=self.ranks)
        if self.ranks.writes and parts.dropped:
            say(f"{self.out}: removed what was scored by an evaluation that was stopped and differs from this one")
        if self.ranks.writes and parts.there:
            say(f"{self.out}: {len(parts.there)} batches were there already, of this evaluation when it was stopped")
        return parts
