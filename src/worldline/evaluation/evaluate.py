"""From a run to an evaluation: find the data, refuse what is impossible, load, score. For the verb and Python."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from worldline import builtin
from worldline.checks import as_only, as_options
from worldline.contract import MOST_FRAMES, Conditional, FramePattern
from worldline.data.clips import Clips
from worldline.evaluation.engine import Amount, refuse_incomparable, score
from worldline.evaluation.held_out import DataChoice, On, episodes_of, held_out, split_of
from worldline.evaluation.reader_choice import Chosen, choose_reader, load_reader
from worldline.evaluation.receipt import Identities, Request, identities_of, write_receipt
from worldline.evaluation.result import Evaluation, Split
from worldline.evaluation.rows import Judged, Protocol, Setting
from worldline.evaluation.study import studies_of
from worldline.families.card import ModelCard, Part, describe_model, refuse_another
from worldline.families.config import DrawOptions, LoadOptions, ModelChoice, SampleOptions
from worldline.families.family import TokenizerKind, WorldKind, kind_of
from worldline.families.load import folders_of, load_forecaster, members_of, refuse_unfit
from worldline.families.tokenizers import TokenizerIdentity, fingerprint, load_tokenizer
from worldline.forecasting.forecaster import CopyLast
from worldline.forecasting.rollout import RollOut
from worldline.metrics.networks import LearnedOptions, Networks
from worldline.progress import say
from worldline.ranks import Ranks
from worldline.rundir import RunDir, commit, model_folder, of_run
from worldline.schema import Batch, Forecast, TokenGrid, UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DataChoice, ModelChoice, DrawOptions, Amount, LearnedOptions):
    """The data of an evaluation, its protocol and its size. Raises `UsageError` for an impossible value."""

    protocol: Literal["auto", "compression", "sampling"] = "auto"
    """`auto` takes the protocol of the model's family; `sampling` scores only the frames of any world."""
    on: On = "held-out"
    """`held-out` refuses recordings that the run was trained on; `training-data` takes them, and the table says so."""
    horizon: str | int | None = None
    """How far ahead, in frames or seconds, for example `300` or `10s`: the world goes on from its own frames, in the
    chunks of a session. Only frames are scored, because costs of tokens are those of one window."""
    unconditional: Path | None = None
    """A world trained without states on the same tokens or latents, as a baseline."""
    inverse_dynamics: Path | None = None
    """A run that reads states from frames (`inverse_dynamics_tiny`): does a forecast show what was commanded? If not
    given, the built-in, where it fits."""
    allow_different: tuple[Part, ...] = ()
    """Parts that may differ on purpose from those of the run: `tokenizer`, `validation` or `data`."""
    out: Path | None = None
    """Folder for metrics.json and forecasts.npz; if not given, `RUN/evaluation` (for built-ins: runs/NAME), and with a
    horizon `RUN/evaluation_10s`."""
    window_stride: int | None = None
    """Frames between the starts of clips; disjoint clips if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sizes(self.num_samples)
        if self.horizon is not None:
            frames_ahead(self.horizon, fps=1000.0)

    @property
    def loading(self) -> LoadOptions:
        """How the judged world is loaded: it draws samples, and the rows of `mean_draws` are made beside them."""
        return as_only(LoadOptions, self, mean_draws=0)

    @property
    def usual_means(self) -> bool:
        """Whether the rows of `mean_draws` are those that nobody asked for."""
        return self.mean_draws == EvaluateOptions.mean_draws

    def refuse_unused(self, protocol: Protocol) -> None:
        """Refuse options that would change nothing. Raises `UsageError`."""
        unused, default = ["means"] if protocol == "compression" else [], EvaluateOptions()
        if protocol in ("tokenizer", "states"):
            unused = ["protocol", "horizon", "unconditional", "inverse_dynamics", "members", "tokenizer", "weights"]
            unused = [*(field.name for field in fields(SampleOptions)), *unused, "means"]
            unused += ["condition_samples", "study_clips", "seed"]
        if given := [name for name in unused if getattr(self, name) != getattr(default, name)]:
            raise UsageError(f"{as_options(given)} would change nothing: the {protocol} protocol does not use them")
        of_protocol = [one.id for one in studies_of(protocol)]
        if foreign := [id for id in self.studies or () if id not in of_protocol]:
            said = f"the {protocol} protocol has {', '.join(of_protocol)}"
            raise UsageError(f"--studies {' '.join(foreign)} would change nothing: {said}")
        if protocol == "compression" and (self.num_samples != 1 or (self.condition_samples or 1) != 1):
            raise UsageError(
                "the compression protocol scores one roll-out of each clip; leave out --num-samples, give "
                "--condition-samples 0 or 1, or score the frames of several (--protocol sampling)"
            )


@dataclass(frozen=True, kw_only=True)
class Autoencoder(CopyLast):
    """A tokenizer alone, so that the same engine evaluates it: it reconstructs frames of any size.

    Without context, unless its decoder sees a frame: then the context is the block before, or of latents, which begin
    with it, the first frame.
    """

    @property
    def image_size(self) -> None:
        return None

    def encoded(self, batch: Batch) -> Batch:
        frames = self.frames_of(batch, self.times[-1] + 1)
        if self.token_grid is None:
            return replace(batch, latents=self._encode(frames))
        return replace(batch, tokens=self._encode(frames[:, self.context_frames :]))

    def reconstruct(self, batch: Batch) -> Forecast:
        encoded = batch.latents if self.token_grid is None else batch.tokens
        assert encoded is not None, "encoded before"
        seen = [] if batch.frames is None or not self.context_frames else [batch.frames[:, self.context_frames - 1]]
        return Forecast(times=self.times, frames=self._decode(encoded, *seen)[:, None, -len(self.times) :])


def evaluate(run: str | Path, options: EvaluateOptions | None = None, *, ranks: Ranks | None = None) -> Evaluation:
    """Evaluate a run on held-out data, beside the baselines, and write metrics.json, its receipt and forecasts.npz.

    `evaluation.rows` are forecaster, baselines and ceilings by id; `row.metrics["psnr_db_last"]` is a mean with its
    interval. `text_table(evaluation)`, of `worldline.report.tables`, shows all of it. The same call again continues an
    interrupted evaluation. Several ranks share the clips.

    Raises:
        UsageError: an option would change nothing, or run, data and compared models do not belong together.
        DataError: data, checkpoint or a file of learned weights are not what they should be.
    """
    options = options or EvaluateOptions()
    if ranks is None:
        with Ranks.start(options.device) as ranks:
            return evaluate(run, options, ranks=ranks)
    request, folder = request_of(run, options), builtin.resolve(run)
    with ranks.first():  # what is refused is refused once, and before any weights are read
        protocol, clips, split, chosen = _request(folder, options)
    out, device = out_of(folder, options), ranks.device(options.device)
    if split == "not checked" and ranks.writes:
        say(f"{run} does not say which recordings it was trained on: that these are others is not checked")
    with ranks.owning(out):
        judged, models = _loaded(folder, options, clips, protocol, chosen, device)
        with ranks.first():
            judged, clips = _as_far_as_asked(folder, options, judged, clips)
        made = _identities(request, options, judged, models, clips, split, device) if ranks.writes else None
        key, source = None if made is None else made.key, commit()  # before somebody changes the source
        evaluation = score(judged, clips, options, out=out, split=split, key=key, ranks=ranks)
        if made is not None:
            write_receipt(request, made, commit=source, usual=EvaluateOptions(), out=out, ranks=ranks)
        return evaluation


def request_of(run: str | Path, options: EvaluateOptions) -> Request:
    """What an evaluation was asked for; what a verb adds to the options of an evaluation is left out."""
    return Request.of(run, as_only(EvaluateOptions, options))


def identities(run: str | Path, options: EvaluateOptions) -> Identities:
    """What would decide the numbers of an evaluation, which is not run. Raises as `evaluate` does."""
    folder, device = builtin.resolve(run), Ranks().device(options.device)
    protocol, clips, split, chosen = _request(folder, options)
    judged, models = _loaded(folder, options, clips, protocol, chosen, device)
    judged, clips = _as_far_as_asked(folder, options, judged, clips)
    return _identities(request_of(run, options), options, judged, models, clips, split, device)


def _identities(
    request: Request,
    options: EvaluateOptions,
    judged: Judged,
    models: Mapping[str, tuple[Path, str | None]],
    clips: Clips,
    split: Split,
    device: torch.device,
) -> Identities:
    counts = {"unigram.npy": judged.unigram, "kept.npy": judged.kept}
    return identities_of(
        clips,
        models,
        options=request.options,
        weights=options.weights,
        device=device,
        files={name: None if array is None else array.tolist() for name, array in counts.items()}
        | {f"weights of {name}": sha256 for name, sha256 in judged.networks.identity.items()},
        protocol=judged.protocol,
        split=split,
    )


def out_of(run: Path, options: EvaluateOptions) -> Path:
    """Where the results about a run go."""
    usual = RunDir(builtin.results_of(builtin.resolve(run))).evaluation
    return options.out or (usual.with_name(f"{usual.name}_{options.horizon}") if options.horizon else usual)


def frames_ahead(horizon: str | int, *, fps: float) -> int:
    """Frames of a horizon of `10s` or `300`. Raises `UsageError` for other text, or less than a frame."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)s|(\d+)", str(horizon))
    seconds, frames = found.groups() if found else (None, "0")
    ahead = round(float(seconds) * fps) if seconds else int(frames)
    if not 1 <= ahead <= MOST_FRAMES:
        raise UsageError(f"--horizon {horizon} is no length of a forecast; give seconds as 10s, or frames as 300")
    return ahead


def _request(run: Path, options: EvaluateOptions) -> tuple[Protocol, Clips, Split, Chosen]:
    """The protocol of a run, its clips, whether it was trained on them, and what reads states. Reads no weights."""
    model, allowed = model_folder(run, options.checkpoint), options.allow_different
    card, models = describe_model(model), [model]
    kind = kind_of(card.config)
    protocol = "tokenizer" if isinstance(kind, TokenizerKind) else "states"
    if isinstance(kind, WorldKind):
        protocol = "compression" if kind.over == "tokens" and options.protocol != "sampling" else "sampling"
        if protocol != options.protocol == "compression":
            said = f"{run} holds a world over {kind.over}: it has no tokens to be scored (--protocol sampling)"
            raise UsageError(said)
        kind.check_options(card, options.loading)
        kind.refuse_foreign(() if options.usual_means else ("mean_draws",))
    options.refuse_unused(protocol)
    models += members_of(run, card, options.loading)
    if options.unconditional is not None:
        models.append(_unconditional(run, card, options.unconditional, allowed))
    split = split_of(run, card.promise, models, options, on=options.on, allow_different=allowed)
    pattern = card.promise.pattern if protocol == "tokenizer" else None  # a forecast is compared with all frames
    clips = held_out(run, card.promise, options, pattern=pattern, stride=options.window_stride, on=options.on)
    refuse_incomparable(clips, protocol)
    if options.horizon is not None and clips.source.image_size is None:
        raise UsageError(f"{clips.source.path} holds no frames to compare a roll-out with; give data that do (--data)")
    if protocol in ("tokenizer", "states"):
        return protocol, clips, split, Chosen()
    refuse_unfit(clips.source, card, run, options.loading, shown=protocol == "sampling")
    return protocol, clips, split, choose_reader(options.inverse_dynamics, card.promise, clips, options.on)


def _as_far_as_asked(run: Path, options: EvaluateOptions, judged: Judged, clips: Clips) -> tuple[Judged, Clips]:
    """What is judged, and clips of its size to judge it on: one window, or the horizon that is asked for.

    Raises `UsageError` where all episodes are too short for it.
    """
    if options.horizon is None:
        return judged, clips.sized(judged.forecaster.image_size)
    contract = describe_model(model_folder(run, options.checkpoint)).promise
    ahead = frames_ahead(options.horizon, fps=contract.fps)
    if isinstance(whole := judged.forecaster, RollOut):  # it steps by less than its window
        judged = replace(judged, forecaster=whole.inner)
    rolled, other = RollOut.of(judged.forecaster, ahead), judged.unconditional
    other = other.inner if isinstance(other, RollOut) else other
    window, chunk = rolled.context_frames + rolled.lookahead_frames, rolled.inner.chunk_frames
    source, chosen = episodes_of(run, contract, options, on=options.on)
    lengths = [source.episodes[place].length for place in chosen]
    if short := sum(length < window for length in lengths):
        needs = (
            f"{ahead} frames ahead need clips of {window}: a context of {rolled.context_frames}, and chunks of {chunk}"
        )
        found = (
            f"{source.path}: {short} of {len(lengths)} episodes are too short for --horizon {options.horizon} ({needs})"
        )
        if short < len(lengths):
            say(f"{found}; the others are evaluated")
        else:
            most = (max(lengths) - rolled.context_frames - rolled.inner.lookahead_frames) // chunk * chunk + chunk
            longer = "give longer episodes (--data)"
            if all((root / "physics").is_dir() for root in source.roots):
                longer += f"; of the twin: worldline data twin DIR --episodes 12 --frames {window} --seed 4000"
            raise UsageError(
                f"{found}; the longest horizon here is {most} frames ({most / contract.fps:.3g}s), or {longer}"
            )
    pattern = FramePattern(window=window)
    clips = held_out(run, contract, options, pattern=pattern, stride=options.window_stride, on=options.on)
    unconditional = None if other is None else RollOut.of(other, ahead)
    settings = {**judged.settings, "horizon": str(options.horizon), "roll_out_chunk_frames": chunk}
    what: dict[str, Any] = {"forecaster": rolled, "unconditional": unconditional, "settings": settings, "beyond": True}
    return replace(judged, **what), clips.sized(rolled.image_size)


def _unconditional(run: Path, card: ModelCard, place: Path, allowed: Collection[Part]) -> Path:
    """The model folder of an unconditional world. Refuses one that does not belong to the run, by its description."""
    model = model_folder(builtin.resolve(place))
    theirs = describe_model(model)
    told = not isinstance(theirs.config, Conditional) or not theirs.config.unconditional
    if told or theirs.config.kind != card.config.kind:
        raise UsageError(
            f"{model} is not an unconditional world of the same kind as {run}; give one (a training with "
            "--model.unconditional True)"
        )
    shared: dict[Part, Path | str | None] = {"data": model, "tokenizer": model}
    refuse_another(card.identity, theirs.identity, what=str(run), places=shared, parts=tuple(shared), allowed=allowed)
    return model


def _loaded(
    run: Path, options: EvaluateOptions, clips: Clips, protocol: Protocol, chosen: Chosen, device: torch.device
) -> tuple[Judged, dict[str, tuple[Path, str | None]]]:
    """What is judged, and by name the folders of all models that decide the numbers, each with the fingerprint of its
    tokenizer."""
    networks, model, other = Networks.load(options, device), model_folder(run, options.checkpoint), None
    what: dict[str, Any] = {"protocol": protocol, "run": run.resolve().name, "networks": networks}
    settings: dict[str, Setting] = {} if model == run else {"checkpoint": model.name}
    settings |= networks.settings
    if protocol == "tokenizer":
        grid, tokenizer = describe_model(model).promise.grid, load_tokenizer(model).to(device)
        before = grid.block if isinstance(grid, TokenGrid) else 1
        context = before if tokenizer.sees else 0
        times = tuple(range(context, len(clips.pattern.frames)))
        given: dict[str, Any] = {"context_frames": context, "chunk_frames": 0, "times": times}
        alone = Autoencoder(**given, tokenizer=tokenizer, grid=grid, device=device)
        identity = TokenizerIdentity.of(fingerprint(model), tokenizer)
        return Judged(**what, forecaster=alone, tokenizer=identity, settings=settings), {"tokenizer": (model, None)}
    if protocol == "states":
        times = tuple(range(1, clips.pattern.window))
        steps: dict[str, Any] = {"context_frames": 1, "times": times, "chunk_frames": 0}
        still, reader = CopyLast(**steps, device=device), load_reader(model, clips, device)
        return Judged(**what, forecaster=still, reader=reader, settings=settings), {"inverse_dynamics": (model, None)}
    loaded = load_forecaster(run, options.loading, device=device)
    models = {name: (folder, loaded.tokenizer) for name, folder in folders_of(run, options.loading).items()}
    if options.unconditional is not None:
        place = builtin.resolve(options.unconditional)
        same = replace(options.loading, checkpoint="latest", members=())
        other = load_forecaster(place, same, device=device, beside=True)
        models["unconditional"] = (model_folder(place), other.tokenizer)
        if loaded.forecaster.token_grid is not None and other.tokenizer != loaded.tokenizer:
            raise UsageError(f"the world in {place} uses the tokens of another tokenizer than the one in {run}")
    if chosen.folder is not None:
        models["inverse_dynamics"] = (chosen.folder, None)
        name = chosen.folder.name if builtin.is_builtin(chosen.folder) else str(options.inverse_dynamics)
        settings |= {"inverse_dynamics": Path(name).name, "inverse_dynamics_split": chosen.split}
    draws = {} if options.usual_means else {"mean_draws": ", ".join(map(str, options.mean_draws))}
    # The true tokens are those of the data, where these are tokens and say whose.
    made_by = clips.source.tokenizer or loaded.tokenizer
    tokenizer = loaded.forecaster.tokenizer if made_by == loaded.tokenizer else None
    counts = {name: np.load(file) for name in ("unigram", "kept") if (file := of_run(run, f"{name}.npy"))}
    judged = Judged(
        **what,
        forecaster=loaded.whole,
        tokenizer=None if made_by is None else TokenizerIdentity.of(made_by, tokenizer),
        settings=settings | loaded.settings | draws,
        unconditional=other.whole if other else None,
        reader=None if chosen.folder is None else load_reader(chosen.folder, clips, device),
        no_reader=chosen.why_not,
        **counts,
    )
    return judged, models
