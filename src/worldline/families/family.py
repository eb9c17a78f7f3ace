"""Everything that depends on the kind of a model, in one place; all other code asks here (`kind_of`).

`compression.py` and `sampling.py` register a kind of tokenizer and one of world each, `inverse_dynamics.py` a judge,
which is neither. A further family is one file like theirs: a `ModelConfig` and a `Kind` for each model, and
`register`. Nothing else names their classes.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from worldline.checks import as_options, changed
from worldline.contract import Contract, FramePattern, ModelConfig
from worldline.data.clips import Clips, DataConfig, open_clips, open_split, open_windows
from worldline.families.card import Base, ModelCard, Part, describe_model
from worldline.families.config import SampleOptions, TrainConfig
from worldline.forecasting.forecaster import Forecaster
from worldline.formats.open import reading_of
from worldline.formats.source import Source
from worldline.formats.states import StateStats, compute_stats
from worldline.nn.states import Standardising
from worldline.nn.weights import Extended, MayLack, changing_state, load_weights
from worldline.progress import say
from worldline.ranks import Ranks
from worldline.rundir import RunDir, load_tensors, model_folder
from worldline.schema import Batch, DataError, LatentGrid, TokenGrid, UsageError

Pictures = tuple[UInt8[Tensor, "b t 3 h w"], UInt8[Tensor, "b t 3 h w"]]
"""Real frames, and the model's version of them."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model, its training and validation clips, and the card of its checkpoints."""

    kind: "Kind"
    model: Any
    train: Clips
    val: Clips
    card: ModelCard
    tokenizer: Any = None
    """The tokenizer behind a world, to show its samples; None for a tokenizer or where it is not given."""
    ready: Callable[[Batch], Batch] = lambda batch: batch
    """Turns a loaded batch, on the device, into what the model's loss reads (say, frames into latents)."""
    keep: Callable[[RunDir], None] = lambda _: None
    """Writes further files into a new run folder (the tokenizer, token counts)."""


class Kind:
    """One kind of model: a `TokenizerKind`, a `WorldKind`, or a judge, which is neither."""

    config: type[ModelConfig]
    what: ClassVar[str] = "a judge"
    """What its models are, for messages."""
    over: ClassVar[Literal["frames", "tokens", "latents"]] = "frames"
    """Content of the batches that the model's loss reads."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Which of a run's `tokenizer`, `weights`, `text` and `start_offsets` it uses."""
    python_only: ClassVar[tuple[str, ...]] = ()
    """Fields that are not options of the command line: fine details, and sizes that must fit each other."""
    psnr_clips: ClassVar[int] = 0
    """Clips of which validation shows the last frame and scores it (`val/psnr_db`)."""

    def idle(self, config: TrainConfig, model: Any) -> dict[str, str]:
        """Further fields that have no effect, and why (see the function `idle`)."""
        return {}

    def normalises(self, model: Any) -> bool | None:
        """Whether the model normalises states; None where none enter it as numbers."""
        return None

    def prepare(self, config: TrainConfig, model: Any, ranks: Ranks) -> Prepared:
        """Open the data, fill caches, build the model."""
        raise NotImplementedError

    def hysteresis(self, model: Any) -> float | None:
        """That of a tokenizer's tokens; None of all else."""
        return None

    def build(self, model: Any, contract: Contract) -> Any:
        """A model with fresh weights, in the types that it is trained in, for data of a contract."""
        raise NotImplementedError

    def finish(self, model: Any, made: Prepared, config: TrainConfig) -> None:
        """Measure properties of the model on the clips of its run, before the last checkpoint and each that is the best
        so far (`keep_best`). Neither the loss nor figures of validation depend on them."""

    def figures(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Further figures of a validation batch."""
        return {}

    def shown(self, made: Prepared, batch: Batch) -> Pictures | None:
        """Real frames of a few clips, and the model's; None where nothing can be shown."""
        raise NotImplementedError

    def backbone_fingerprint(self, path: Path) -> str:
        """Identity of the pretrained weights at a path (`weights` of a run)."""
        raise NotImplementedError

    def pattern(self, config: TrainConfig, model: Any, grid: Any) -> FramePattern:
        """The frames of a clip, over which tokens or latents lie as in `grid`. Raises `UsageError` where none fit."""
        return config.data.pattern

    # --- for planning: sizes without data or weights ---

    def encoder(self, config: TrainConfig, model: Any) -> Any:
        """The configuration of the tokenizer of a run, which knows how tokens or latents lie; None without one."""
        return None

    def clips_followed(self, model: Any, contract: Contract) -> tuple[int, ...]:
        """Numbers of clips between which the cost of a step is linear."""
        return (1, 2)


class TokenizerKind(Kind):
    """A kind of tokenizer: its models are `Tokenizer`s, and train on frames."""

    what = "a tokenizer"
    download: ClassVar[str] = ""
    """The published files that a path may mean, for a message."""
    copied: ClassVar[int] = 100_000_000
    """Up to so many parameters, weights are copied into the run of a world; of larger ones, it stores the place."""

    def build(self, model: Any, contract: Contract | None = None) -> Any:
        return model.build()  # a tokenizer's sizes are all its own

    def encoder(self, config: TrainConfig, model: Any) -> Any:
        return model

    def published(self, path: Path) -> tuple[Any, list[Path]] | None:
        """The configuration and the weight files of a published download at a path, if there is one."""
        return None

    def load_published(self, model: Any, files: list[Path]) -> Any:
        """A published download, on the CPU."""
        return model.build()

    def unmeasured(self, model: Any) -> str | None:
        """What a whole training measures at its end (`finish`) and a loaded tokenizer lacks, if anything."""
        return None

    def kept(self, model: Any) -> str | None:
        """The option that is set, by which a training leaves the tokens or latents that given weights make, if any."""
        return None

    def prepare(self, config: TrainConfig, model: Any, ranks: Ranks) -> Prepared:
        """Raises `UsageError` where something shall stay that no trained encoder makes, and as opening data does."""
        if (option := self.kept(model)) and config.init_from is None:
            fix = f"give these (--init-from), or leave out {option}"
            raise UsageError(f"{option.rpartition('-')[2]} stay those of given weights; {fix}")
        grid = model.grid(*open_split(config.data, "train")[0].video_size(config.data.image_size))
        data = replace(config.data, pattern=self.pattern(config, model, grid))
        open_windows(data, "val")  # both splits have windows: said before anything is decoded
        open_windows(data, "train")
        train = open_clips(data, "train", ranks=ranks)
        val = open_clips(data, "val", ranks=ranks)
        contract = contract_with(train.source, data, grid, data.pattern)
        torch.manual_seed(config.seed)  # the first weights are a function of the seed
        tokenizer = self.build(model, contract)
        initialise(tokenizer, config.init_from)
        card = ModelCard(config=model, contract=contract)
        return Prepared(kind=self, model=tokenizer, train=train, val=val, card=card)

    def shown(self, made: Prepared, batch: Batch) -> Pictures | None:
        assert batch.frames is not None, "a tokenizer trains on frames"
        return batch.frames, made.model.decode(made.model.encode(batch.frames))


class WorldKind(Kind):
    """A kind of world: its models are a `TokenWorld`, a `LatentWorld`, or forecast frames as they are."""

    what = "a world"
    options: ClassVar[tuple[str, ...]] = ()
    """Sampling options that it uses, in addition to `num_samples` and `rows`."""

    def check_options(self, card: ModelCard, options: SampleOptions) -> None:
        """Raise `UsageError` for options of another kind of world, or that this very world has no use for."""
        self.refuse_foreign(changed(SampleOptions, options))

    def refuse_foreign(self, given: Iterable[str]) -> None:
        """Raise `UsageError` for sampling options, by their names, that only other kinds of world use."""
        if foreign := set(given).difference(self.options, ("num_samples", "rows")):
            names = as_options(sorted(foreign))
            worlds = (kind for kind in KINDS.values() if isinstance(kind, WorldKind))
            over = {kind.over for kind in worlds if foreign.issubset(kind.options)} - {self.over}
            it = "it" if len(foreign) == 1 else "them"
            why = f" (only worlds over {' and '.join(sorted(over))} use {it})" if over else ""
            raise UsageError(f"this is a world over {self.over}: {names} would change nothing{why}; leave {it} out")

    def temperature(self, card: ModelCard, options: SampleOptions) -> float | None:
        """At which tokens are drawn, as asked or by the world itself; 0: greedily. None: it has no tokens."""
        return None

    def refuse_unfit(self, source: Source, card: ModelCard, *, tokenizer: bool, shown: bool) -> None:
        """Refuse data that a world cannot forecast from (see `load.refuse_unfit`)."""
        raise NotImplementedError

    def rebuild(self, card: ModelCard, folder: Path, *, weights: Path | None, allowed: Collection[Part]) -> Any:
        """The model that a card describes, before its weights are read."""
        if weights is not None:
            raise UsageError(f"{folder} holds all weights of its world; --weights would change nothing")
        return self.build(card.config, card.promise)

    def forecaster(
        self, world: Any, card: ModelCard, tokenizer: Any, options: SampleOptions, device: torch.device
    ) -> Forecaster:
        """World, tokenizer and sampling choice as one. Raises `UsageError` where they do not fit or one is missing."""
        raise NotImplementedError

    def roll_out(self, world: Any, batch: Batch) -> Tensor:
        """One future of each clip of a batch, as the world makes it: tokens, latents or frames."""
        raise NotImplementedError

    def shown(self, made: Prepared, batch: Batch) -> Pictures | None:
        """Decoded real clips, and their contexts followed by one future of the world, decoded."""
        true = batch.latents if batch.tokens is None else batch.tokens
        if made.tokenizer is None or true is None:
            return None
        future, device = self.roll_out(made.model, batch), next(made.tokenizer.parameters()).device
        made_up = torch.cat([true[:, : true.shape[1] - future.shape[1]], future], dim=1)
        real, forecast = (made.tokenizer.decode(one.to(device)).cpu() for one in (true, made_up))
        return real, forecast

    def prepared(
        self,
        config: TrainConfig,
        world: Any,
        clips: tuple[Clips, Clips],
        contract: Contract,
        *,
        base: Base | None = None,
        **more: Any,
    ) -> Prepared:
        """The common end of `prepare` for every world: statistics of the states, first weights, a card."""
        train, val = clips
        statistics = begin(config, world, train, world.states if self.normalises(config.model) else None)
        card = ModelCard(config=config.model, contract=contract, statistics=statistics, base=base)
        return Prepared(kind=self, model=world, train=train, val=val, card=card, **more)


KINDS: dict[str, Kind] = {}
"""By the `kind` of their configurations."""


def register(kind: Kind) -> None:
    """Register a kind of model: then it is trained, loaded and described like any other."""
    KINDS[str(kind.config.kind)] = kind


def kind_of(model: ModelConfig) -> Kind:
    return KINDS[model.kind]


def idle(config: TrainConfig) -> dict[str, str]:
    """Fields that have no effect on this run, and why. A name that ends in `.` stands for all fields below it."""
    kind, data = kind_of(config.model), config.data
    found = {name: why for name, why in _UNREAD.items() if name not in kind.reads}
    if isinstance(kind, WorldKind) or data.cache is None or not data.augment.changes:
        found["data.cache_size"] = "only cached frames that are augmented are cut from larger ones"
    return found | kind.idle(config, config.model)


_UNREAD = {
    "tokenizer": "what is trained reads frames as they are",
    "weights": "only a world over latents can have a pretrained backbone",
    "text": "only a world over latents reads a prompt",
    "start_offsets": "only frames that are tokenized have start offsets",
}


def refuse_idle(config: TrainConfig, usual: TrainConfig) -> None:
    """Refuse what is set otherwise than usual and would change nothing. Raises `UsageError`."""
    reasons, before = idle(config), dict(parts_of(usual))
    for start, part in parts_of(config):
        other = before.get(start, part)
        for place in (start + one.name for one in fields(part) if getattr(part, one.name) != getattr(other, one.name)):
            for field, reason in reasons.items():
                if place == field or (field.endswith(".") and place.startswith(field)):
                    raise UsageError(f"{as_options([place])} would change nothing: {reason}")


def parts_of(config: Any, start: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration and all its parts, each behind what the places of its fields begin with."""
    yield start, config
    for field in fields(config):
        if is_dataclass(part := getattr(config, field.name)):
            yield from parts_of(part, f"{start}{field.name}.")


# --- the data of a run ---


def contract_with(
    source: Source, data: DataConfig, grid: TokenGrid | LatentGrid | None, pattern: FramePattern
) -> Contract:
    """The contract of a model that is trained on a source; for latents, with the reading of the encoded data."""
    return Contract(
        **vars(reading_of(source, data, data.path, data.image_size)),
        fps=source.fps,
        state_names=source.layout.names,
        state_kinds=source.layout.kinds,
        source_kind=source.kind,
        pattern=pattern,
        grid=grid,
    )


def begin(config: TrainConfig, model: nn.Module, train: Clips, states: Standardising | None) -> StateStats | None:
    """First weights and statistics: of the training states, or those that came with given weights (`init_from`).

    Args:
        states: the part of the model that standardises states, if it does.
    """
    statistics = compute_stats(train.source, episodes=sorted(set(train.windows[:, 0].tolist())))
    if states is not None:
        states.set_statistics(torch.tensor(statistics.mean), torch.tensor(statistics.std))
    initialise(model, config.init_from)
    if config.init_from is not None:
        first = describe_model(model_folder(config.init_from))
        refuse_other_scale(config.init_from, first.config, kind_of(config.model).normalises(config.model))
        if states is not None:
            return first.statistics
    return statistics


def refuse_other_scale(path: Path, first: ModelConfig, normalises: bool | None) -> None:
    """Raise `UsageError` where states would enter normalised what first weights read as they are, or the reverse."""
    theirs = kind_of(first).normalises(first)
    if None in (theirs, normalises) or theirs == normalises:
        return
    said = {True: "normalised states", False: "states as they are"}
    raise UsageError(
        f"{path} was trained on {said[theirs is True]}, this run gives {said[normalises is True]}; "
        "set the model's option that normalises states as it was there"
    )


def initialise(model: nn.Module, path: Path | None) -> None:
    """Start from the weights of a run or model folder, if one is given. Raises `UsageError` where they do not fit.

    The model's own `may_lack` says what of it need not be there.
    """
    if path is None:
        return
    folder, may_lack = model_folder(path), model.may_lack if isinstance(model, Extended) else MayLack()
    unmeasured = {name: value for name, value in model.named_buffers() if name in may_lack.measured}
    weights = unmeasured | load_tensors(folder / "model.safetensors")
    for part in may_lack.new:
        if not any(name.startswith(part) for name in weights):
            weights |= {name: value for name, value in changing_state(model).items() if name.startswith(part)}
    for part in may_lack.reshaped:
        own, there = ({k: v for k, v in all.items() if k.startswith(part)} for all in (changing_state(model), weights))
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in there.items()}:
            what, then = ("another", "that of this model begins anew") if own else ("a", "this model has none")
            say(f"{path} has {what} {part.strip('.')}: {then}")
            weights = {name: value for name, value in weights.items() if name not in there} | own
    try:
        load_weights(model, weights, folder)
    except DataError as error:
        raise UsageError(
            f"{path} holds another model than is trained here, {error.found}; give one of the same kind and sizes "
            "(--init-from), or train one of its"
        ) from error
