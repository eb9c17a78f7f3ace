"""Tokenizers by path: a run or model folder is enough, or a published download. What identifies one, and its copy."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from worldline.contract import FramePattern, ModelConfig
from worldline.data.clips import Clips, Split, open_split, some_windows
from worldline.families.card import ModelCard, describe_model
from worldline.families.config import TrainConfig
from worldline.families.family import KINDS, TokenizerKind, kind_of
from worldline.files import hash_of_file
from worldline.formats.open import open_source
from worldline.nn.weights import load_weights
from worldline.progress import say
from worldline.ranks import Ranks
from worldline.rundir import RunDir, load_tensors, model_folder, new_folder, write_model
from worldline.schema import UsageError
from worldline.tokenizers.tokenizer import BlockTokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TokenizerIdentity:
    """The tokenizer of tokens or latents: costs compare only if it is the same."""

    fingerprint: str
    """The first twelve digits of it."""
    hysteresis: float | None = field(default=None, compare=False)
    """The hysteresis of its tokens (`FSQVideoConfig.hysteresis`), also part of the fingerprint; None if there is none,
    or the tokenizer is not available."""

    def __str__(self) -> str:
        return self.fingerprint + ("" if self.hysteresis is None else f", hysteresis {self.hysteresis:g}")

    @staticmethod
    def of(fingerprint: str, tokenizer: Any) -> "TokenizerIdentity":
        """The identity of a tokenizer whose fingerprint is known; of one that is not available, None is given."""
        hysteresis = None if tokenizer is None else kind_of(tokenizer.config).hysteresis(tokenizer.config)
        return TokenizerIdentity(fingerprint=fingerprint[:12], hysteresis=hysteresis)


def load_tokenizer(path: Path, makes: Literal["tokens", "latents"] | None = None) -> Any:
    """Build the tokenizer a path describes, in evaluation mode, on the CPU.

    Args:
        path: a run or model folder of worldline, or a download: of Cosmos; of Wan2.2, in diffusers' layout or its own.
        makes: refuse it where it makes the other.

    Raises:
        DataError: files are missing or damaged, or weights do not fit the description.
        UsageError: the path is none of these, or holds a world or another kind of tokenizer.
    """
    if found := _published(path):
        kind, config, files = found
        tokenizer = kind.load_published(config, files)
    else:
        kind, folder, card = _tokenizer(path)
        if card.path is not None:
            return load_tokenizer(_elsewhere(folder, card), makes)
        tokenizer = kind.build(card.config)
        load_weights(tokenizer, load_tensors(folder / "model.safetensors"), folder)
        if lacking := kind.unmeasured(tokenizer):
            log.warning(
                "%s lacks %s, measured at the end of a training, before which this one was stopped or this checkpoint "
                "kept; let it go on to its end (worldline train --resume RUN), or take the last checkpoint",
                *(folder, lacking),
            )
    made = "tokens" if isinstance(tokenizer, BlockTokenizer) else "latents"
    if makes not in (None, made):
        raise UsageError(f"{path} holds a tokenizer that makes {made}; one that makes {makes} is needed here")
    return tokenizer.eval()


def tokenizer_config(path: Path) -> ModelConfig:
    """The configuration of the tokenizer a path describes, without its weights. Raises as `load_tokenizer`."""
    found = _published(path)
    return found[1] if found else _tokenizer(path)[2].config


def _published(path: Path) -> tuple[TokenizerKind, Any, list[Path]] | None:
    for kind in KINDS.values():
        if isinstance(kind, TokenizerKind) and (found := kind.published(path)):
            return kind, *found
    return None


def _tokenizer(path: Path) -> tuple[TokenizerKind, Path, ModelCard]:
    if not (path / "model.json").is_file() and not RunDir(path).checkpoints():
        offered = [kind.download for kind in KINDS.values() if isinstance(kind, TokenizerKind) and kind.download]
        raise UsageError(
            f"{path} is no tokenizer. Give a run or model folder; {'; '.join(offered)}. worldline downloads nothing by "
            "itself"
        )
    card = describe_model(folder := model_folder(path))
    if not isinstance(kind := kind_of(card.config), TokenizerKind):
        raise UsageError(f"{path} holds {kind.what}; a tokenizer is needed here")
    return kind, folder, card


def fingerprint(path: Path) -> str:
    """Identity of a tokenizer, or any model: a hash of its weights and of the hysteresis, which decides tokens, too.

    Raises:
        UsageError: the path is neither a run or model folder nor a published download.
    """
    digest, hysteresis = hashlib.sha256(), None
    if found := _published(path):
        files = found[2]
    else:
        card = describe_model(folder := model_folder(path))
        if card.path is not None:  # a run's note of where the weights lie
            return fingerprint(_elsewhere(folder, card))
        if card.fingerprint is not None:  # weights of a published layout, saved in ours
            return card.fingerprint
        files, hysteresis = [folder / "model.safetensors"], kind_of(card.config).hysteresis(card.config)
    for file in files:
        digest.update(bytes.fromhex(hash_of_file(file)))
    if hysteresis:  # the one setting that changes the tokens of the same weights; the rule has a name of its own
        digest.update(f"hysteresis per block {hysteresis}".encode())
    return digest.hexdigest()


def _elsewhere(folder: Path, card: ModelCard) -> Path:
    """The place of weights that were too large to copy into a run."""
    path, expected = card.path, card.fingerprint or ""
    assert path is not None, "asked of such a card"
    if not path.exists():
        raise UsageError(
            f"the tokenizer behind {folder} was at {path} when the run began, and is not there now; give its new place "
            "(--tokenizer DIR)"
        )
    if (found := fingerprint(path)) != expected:
        raise UsageError(
            f"the tokenizer at {path} is another one (fingerprint {found[:12]}) than when {folder} was made "
            f"({expected[:12]}); give that one (--tokenizer DIR)"
        )
    return path


def keep_tokenizer(run: RunDir, path: Path, tokenizer: Any) -> None:
    """Copy a tokenizer into a run, so that its folder stands alone; of a large one say where it lies."""
    if path.resolve() == run.tokenizer.resolve():
        return  # of a resumed run, which has it already
    kind: Any = kind_of(tokenizer.config)
    copied = sum(parameter.numel() for parameter in tokenizer.parameters()) <= kind.copied
    own = None
    if copied and not _published(path):
        card = describe_model(folder := model_folder(path))
        own = None if card.path or card.fingerprint else folder / "model.safetensors"
    card = ModelCard(
        config=tokenizer.config,
        fingerprint=None if own else fingerprint(path),
        path=None if copied else path.resolve(),
    )
    with new_folder(run.tokenizer) as folder:
        write_model(folder, card.to_json(), tokenizer.state_dict() if copied else {})
        if own is not None:  # byte for byte, and so of the same fingerprint
            shutil.copyfile(own, folder / "model.safetensors")


def cached_clips(
    make: Callable[..., Any],
    config: TrainConfig,
    tokenizer: Any,
    ranks: Ranks,
    *,
    window: int,
    of_training: Mapping[str, Any] | None = None,
    **of_both: Any,
) -> tuple[Clips, Clips]:
    """Clips of both splits, `window` frames each, of what `tokenize` or `encode` makes of their frames in a cache.

    Args:
        of_training: arguments of `make` for training data alone; others are `of_both`.
    """
    data, device = config.data, ranks.device(config.device)
    assert config.tokenizer is not None, "loaded already"
    assert data.cache is not None, "asked for with a cache"
    of_both |= {"fingerprint": fingerprint(config.tokenizer), "size": data.image_size, "device": device}
    of_both |= {"ranks": ranks, "in_cache": True}
    say(f"filling {data.cache}")

    def clips(split: Split, **own: Any) -> Clips:
        source, episodes = open_split(data, split)
        filled = make(source, tokenizer.to(device), data.cache, episodes=episodes, **of_both, **own)
        made = open_source(filled.folder)
        index = some_windows(made, range(len(made.episodes)), window=window, stride=data.window_stride)
        return Clips(made, index, FramePattern(window=window))

    return clips("train", **of_training or {}), clips("val")
