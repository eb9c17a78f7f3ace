"""From a configuration to what is trained, from a path to a forecaster: all that does not fit is refused here."""

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline import builtin
from worldline.contract import Contract
from worldline.data.clips import DataConfig, check_held_out, open_split
from worldline.data.splits import content_of, recordings
from worldline.families.card import Identity, ModelCard, Part, describe_model, refuse_another
from worldline.families.config import LoadOptions, TrainConfig
from worldline.families.family import Prepared, WorldKind, kind_of
from worldline.families.tokenizers import fingerprint, load_tokenizer
from worldline.files import hash_of, hash_of_file, read_json
from worldline.forecasting.forecaster import Forecaster, Session
from worldline.forecasting.rollout import RollOut
from worldline.formats.open import has_choices
from worldline.formats.source import Source
from worldline.formats.states import compute_stats, implausible, unlike, warn
from worldline.nn.kinematics import refuse_another_robot, skeleton_drawn_by
from worldline.nn.weights import load_weights
from worldline.ranks import Ranks
from worldline.rundir import RunDir, from_json, load_tensors, model_folder, of_run
from worldline.schema import Forecast, UsageError

log = logging.getLogger(__name__)
_OF_A_WORLD: tuple[Part, ...] = ("tokenizer", "backbone", "text")
"""Parts that must stay the same when a world's weights are trained further, also on other data."""


# --- to train ---


def checked_identity(config: TrainConfig, run: RunDir, *, resume: bool) -> Identity:
    """Identify the inputs of a run, and compare them with all that they must fit.

    Raises `UsageError` naming what is another one and may not be (`config.allow_different`), and `DataError` where
    states or weights are not what they should be.
    """
    data, allowed = config.data, config.allow_different
    (train, trained), (val, judged) = open_split(data, "train"), open_split(data, "val")
    tokenizer = fingerprint(config.tokenizer) if config.tokenizer else train.tokenizer
    places = {"data": train.path, "validation": val.path}
    places |= {"tokenizer": config.tokenizer or train.path, "backbone": config.weights, "text": config.text}
    # The given tokenizer must be that of all tokens and latents.
    for name, source in (("training", train), ("validation", val)):
        what, made = f"the {source.kind} of the {name} data {source.path}", Identity(tokenizer=source.tokenizer)
        refuse_another(made, Identity(tokenizer=tokenizer), what=what, places=places, allowed=allowed)
    found = Identity(
        data=content_of(train, trained),
        validation=content_of(val, judged),
        split=hash_of([list(trained), list(judged)]),
        pattern=hash_of([asdict(data.pattern), data.window_stride, data.image_size]),
        tokenizer=tokenizer,
        backbone=kind_of(config.model).backbone_fingerprint(config.weights) if config.weights else None,
        text=hash_of_file(config.text) if config.text else None,
    )
    if resume and run.identity.exists():  # runs of early versions have none
        what, made = f"the run in {run.path}", from_json(Identity, read_json(run.identity), run.identity)
        refuse_another(_explicit(made), _explicit(found), what=what, places=places, allowed=allowed)
    if not resume and config.init_from is not None:
        what, made = f"the model in {config.init_from}", describe_model(model_folder(config.init_from)).identity
        refuse_another(made, found, what=what, places=places, parts=_OF_A_WORLD, allowed=allowed)
    return found


def _explicit(identity: Identity) -> Identity:
    """With "none" for a missing tokenizer, backbone or text, so that having none differs from having one."""
    return replace(identity, **{part: "none" for part in _OF_A_WORLD if getattr(identity, part) is None})


def refuse_absent(config: TrainConfig) -> None:
    """Say of what is not there by which option to give its place. Raises `UsageError`."""
    flags = {"--data.path": config.data.path, "--data.val-path": config.data.val_path}
    flags |= {"--tokenizer": config.tokenizer, "--weights": config.weights, "--text": config.text}
    each = ((flag, path) for flag, one in flags.items() for path in (one if isinstance(one, tuple) else (one,)))
    gone = [f"{path} ({flag} PLACE)" for flag, path in each if path is not None and not path.exists()]
    if gone:
        named = ", ".join(builtin.NAMES)
        raise UsageError(f"not there: {', '.join(gone)}. Give the place of each, or the name of a built-in: {named}")


def prepare(config: TrainConfig, ranks: Ranks | None = None) -> Prepared:
    """Open the data, tokenize, encode or decode what is needed into caches, build the model. Writes no run folder.

    Every rank calls this: all have the same in the end, and fill the caches together. Implausible states, and
    validation states unlike the training states, are reported before anything is built.

    Raises:
        DataError: the data or given weights are not what they should be.
        UsageError: the configuration asks for something impossible, or would validate on what it trains on.
    """
    known = describe_model(model_folder(config.init_from)).trained_on if config.init_from else None
    trained_on, ranks = check_held_out(config.data, trained_on=known), ranks or Ranks()
    source, episodes = open_split(config.data, "train")
    if (skeleton := skeleton_drawn_by(config.model)) is not None:
        refuse_another_robot(skeleton, source.layout.names)  # said before hours of caches
    if ranks.writes:
        warn(implausible(source, episodes))
        warn(unlike(*open_split(config.data, "val"), compute_stats(source, episodes=episodes)))
        _warn_of_a_tokenizer_that_knows(config)
        _warn_of_pieces(source, episodes)
    made = kind_of(config.model).prepare(config, config.model, ranks)
    return replace(made, card=replace(made.card, trained_on=trained_on))


def _warn_of_pieces(source: Source, episodes: Sequence[int]) -> None:
    """Warn if fewer episodes are taken than there are, and several are pieces of one recording: `:400` are few then."""
    if source.grid is None or len(chosen := set(episodes)) == len(source.episodes):
        return
    if (shown := len(recordings(source, episodes).contents)) < len(chosen):
        log.warning(
            "%s: an episode here is a run of blocks, of which a recording has one for each start offset: the %d of %d "
            "that are trained on show %d recordings",
            *(source.path, len(chosen), len(source.episodes), shown),
        )


def _warn_of_a_tokenizer_that_knows(config: TrainConfig) -> None:
    """Warn if the tokenizer was trained on validation episodes: it reconstructs these better than new recordings."""
    folder = config.tokenizer
    if folder is None or not ((folder / "model.json").is_file() or RunDir(folder).latest()):
        return  # another's files, which do not say what they were trained on
    card = describe_model(model_folder(folder))
    source, episodes = _as_given(card, config.data)
    known = card.trained_on
    if known and (seen := known.among(source, episodes)):
        log.warning(
            "%s: the tokenizer in %s was trained on %d of the %d validation episodes (the first is %s): pictures of "
            "them come out better than those of new recordings would; train it on the same split",
            *(source.path, folder, len(seen), len(episodes), seen[0].name),
        )


def _as_given(card: ModelCard, data: DataConfig) -> tuple[Source, Sequence[int]]:
    """Validation episodes with the states that a model was given, where they have these: by them it knows them."""
    if card.contract is not None and has_choices(data.val_path or data.path):
        columns = {"conditioning": card.contract.conditioning, "state_keys": card.contract.state_keys}
        with suppress(UsageError):  # another robot's columns
            return open_split(replace(data, **columns, state_kinds={}), "val")
    return open_split(data, "val")


# --- to forecast ---


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A forecaster from disk, with what its checkpoint says about the data it was trained on."""

    forecaster: Forecaster
    contract: Contract
    tokenizer: str | None = None
    """Fingerprint of the world's tokenizer; None if it was trained on a token source."""
    settings: dict[str, str | int | float | bool] = field(default_factory=dict)
    """How it samples, for the record."""

    @property
    def whole(self) -> Forecaster:
        """The forecaster over the window that the world was trained on: one that steps by less is rolled on to its end.

        Raises what `RollOut.of` raises.
        """
        one, window = self.forecaster, self.contract.pattern.window
        return one if one.times[-1] + 1 >= window else RollOut.of(one, window - one.context_frames)

    def forecast(
        self,
        frames: UInt8[Tensor, "b c 3 h w"],
        states: Float32[Tensor, "b t s"],
        *,
        seeds: Sequence[int] | None = None,
    ) -> Forecast:
        """Forecast what follows the context `frames`, given the states of context and horizon (`Forecaster.forecast`).

        Args:
            seeds: one per clip; 0, 1, ... if not given.
        """
        return self.forecaster.forecast(frames, states, seeds=range(len(frames)) if seeds is None else seeds)

    def start(self, frames: UInt8[Tensor, "b c 3 h w"], states: Float32[Tensor, "b c s"], *, seed: int = 0) -> Session:
        """An imagined episode of any length, from context frames and their states (`Forecaster.start`)."""
        return self.forecaster.start(frames, states, seed=seed)


def load_world(
    path: Path, *, weights: Path | None = None, allow_different: Collection[Part] = ()
) -> tuple[Any, ModelCard]:
    """Build the world a path describes, in evaluation mode, on the CPU; with its card.

    Trained parameters are fp32, because the report found bfloat16 inference to be worse (section 3.2). A frozen
    backbone keeps its type.

    Args:
        weights: folder of the pretrained backbone, if not where the checkpoint says (worlds with adapters only).
        allow_different: `backbone`, where it may be another one on purpose.

    Raises:
        DataError: files are missing or damaged, or weights do not fit the description.
        UsageError: the path is no run or model folder, or the backbone is absent or another one.
    """
    folder = model_folder(path)
    card = describe_model(folder)
    world = world_kind(card, folder).rebuild(card, folder, weights=weights, allowed=allow_different)
    load_weights(world, load_tensors(folder / "model.safetensors"), folder)
    return world.eval(), card


def load_forecaster(
    path: str | Path, options: LoadOptions | None = None, *, device: torch.device | None = None, beside: bool = False
) -> Loaded:
    """Load the world of a run with the tokenizer it was trained on, ready to forecast.

    `world.forecast(frames, states)` takes the context, uint8 `b c 3 h w`, and the states of context and horizon,
    float32 `b t s`, and gives a `Forecast` whose frames are uint8 `b k t 3 h w`, with `k` samples.

    Args:
        path: run folder, model folder inside one, or a built-in name.
        device: in place of `options.device`; a rank has its own.
        beside: another world is what the options are for, and some may change nothing here.

    Raises:
        UsageError: there is no such run, it holds no world, its tokenizer is missing or another one, or an option would
            change nothing.
        DataError: files are missing or damaged.
    """
    path, options = builtin.resolve(path), options or LoadOptions()
    device = device or Ranks().device(options.device)
    model = model_folder(path, options.checkpoint)
    card = describe_model(model)
    expected = card.identity.tokenizer
    place = builtin.resolve(options.tokenizer) if options.tokenizer else _tokenizer_of(path, expected)
    spoken = fingerprint(place) if place else expected
    found, places = Identity(tokenizer=spoken), {"tokenizer": place}
    refuse_another(card.identity, found, what=f"the world in {path}", places=places, allowed=options.allow_different)
    kind = world_kind(card, model)
    if not beside:
        kind.check_options(card, options)
    options = replace(options, temperature=kind.temperature(card, options))
    members = members_of(path, card, options)
    over = None if kind.over == "frames" else kind.over
    tokenizer = load_tokenizer(place, over).to(device) if place else None

    def forecaster(folder: Path) -> Forecaster:
        world, card = load_world(folder, weights=options.weights, allow_different=options.allow_different)
        return world_kind(card, folder).forecaster(world, card, tokenizer, options, device)

    made = forecaster(model)
    settings = {name: value for name in kind.options if (value := getattr(options, name)) is not None}
    if members:
        made = made.with_members([forecaster(folder) for folder in members])
        settings["members"] = ", ".join(builtin.resolve(place).resolve().name for place in options.members)
    return Loaded(
        forecaster=made,
        settings=settings,
        contract=card.promise,
        tokenizer=spoken,
    )


def folders_of(path: Path, options: LoadOptions) -> dict[str, Path]:
    """The model folder of a world, and of all that form an ensemble with it, by name. Raises as `members_of`."""
    model = model_folder(path, options.checkpoint)
    others = members_of(path, describe_model(model), options)
    return {"world": model} | {f"member_{number}": folder for number, folder in enumerate(others, 1)}


def members_of(path: Path, card: ModelCard, options: LoadOptions) -> list[Path]:
    """The model folders of the other worlds of an ensemble (`options.members`), by their descriptions alone.

    Raises:
        UsageError: one is no world, is named twice, or was trained on other states, frames, tokens or latents than the
            world in `path`, whose `card` this is.
    """
    known, found = {model_folder(path, options.checkpoint).resolve()}, []
    for place in map(builtin.resolve, options.members):
        folder = model_folder(place)
        theirs = describe_model(folder)
        kind = world_kind(theirs, folder)
        if folder.resolve() in known:
            raise UsageError(f"{place} is named twice; an ensemble is of different worlds (--members)")
        known.add(folder.resolve())
        _refuse_unlike(path, card, place, theirs)
        kind.check_options(theirs, options)
        found.append(folder)
    return found


def _refuse_unlike(path: Path, card: ModelCard, place: Path, theirs: ModelCard) -> None:
    """Refuse worlds that are given or predict different things. How their data were stored is no matter."""

    def promised(one: ModelCard) -> dict[str, object]:
        own = {"model.kind": one.config.kind, "tokenizer": one.identity.tokenizer} | vars(one.promise)
        return {name: value for name, value in own.items() if name not in ("source_kind", "state_keys")}

    ours, others = promised(card), promised(theirs)
    for name, value in others.items():
        if value != ours[name]:
            raise UsageError(
                f"{place} was trained with {name} {value}, but {path} with {ours[name]}: worlds of one ensemble are "
                "given the same and predict the same (--members)"
            )


def world_kind(card: ModelCard, folder: Path) -> WorldKind:
    """The kind of the world in a model folder. Raises `UsageError` where it holds no world or half a card."""
    kind = kind_of(card.config)
    if not isinstance(kind, WorldKind):
        raise UsageError(f"{folder} holds {kind.what}, which forecasts nothing; give a world's run folder")
    if card.contract is None:
        raise UsageError(f"{folder}/model.json does not say what data its world was trained on; copy it again")
    return kind


def refuse_unfit(source: Source, card: ModelCard, folder: Path, options: LoadOptions, *, shown: bool) -> None:
    """Refuse data that a world cannot forecast from, before any weights are read.

    Args:
        folder: of the run or model.
        shown: whether frames are to be shown.

    Raises:
        UsageError: the data hold neither what the world begins with nor what is turned into it, or tokens or latents of
            another tokenizer; or the world's tokenizer is not where it should be.
    """
    tokenizer = options.tokenizer is not None or _tokenizer_of(folder, card.identity.tokenizer) is not None
    world_kind(card, folder).refuse_unfit(source, card, tokenizer=tokenizer, shown=shown)
    found, made_by = Identity(tokenizer=source.tokenizer), {"tokenizer": f"that of the {source.kind} in {source.path}"}
    refuse_another(card.identity, found, what="this world", places=made_by, allowed=options.allow_different)


def _tokenizer_of(path: Path, expected: str | None) -> Path | None:
    """Where the tokenizer lies, beside a world or among the built-ins. Raises `UsageError` where one should."""
    if (own := of_run(path, "tokenizer")) is not None or expected is None:
        return own
    for shipped in (builtin.TOKENIZER_TINY, builtin.TOKENIZER_DRIVEN, builtin.VAE_TINY):
        if shipped.is_dir() and expected == fingerprint(shipped):
            return shipped
    raise UsageError(f"{path} has no tokenizer beside it; give the one it was trained on (--tokenizer DIR)")
