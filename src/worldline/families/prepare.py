"""From a configuration to the inputs of the training loop: clips, a model that fits them, and its description.

All that can go wrong with a request goes wrong here, before the first step.
"""

import logging
from dataclasses import replace
from pathlib import Path

from worldline.data.clips import DataConfig, check_held_out, open_split
from worldline.data.splits import Recordings
from worldline.families.card import describe_model
from worldline.families.config import TrainConfig
from worldline.families.family import Prepared, Progress, kind_of
from worldline.formats.plausible import implausible, unlike, warn
from worldline.formats.states import compute_stats
from worldline.ranks import Ranks
from worldline.rundir import RunDir, model_folder

log = logging.getLogger(__name__)


def prepare(config: TrainConfig, progress: Progress, ranks: Ranks | None = None) -> Prepared:
    """Open the data, tokenize, encode or decode what is needed into caches, build the model. Writes no run folder.

    Every rank calls this: all have the same in the end, and fill the caches together.

    Raises:
        DataError: the data or given weights are not what they should be.
        UsageError: the configuration asks for something impossible, or would validate on what it trains on.
    """
    trained_on = check_held_out(config.data, trained_on=_trained_on(config.init_from))
    ranks = ranks or Ranks()
    if ranks.writes:
        _warn_of_strange_states(config.data)
        _warn_of_a_tokenizer_that_knows(config)
    made = kind_of(config.model).prepare(config, config.model, ranks, progress)
    return replace(made, card=replace(made.card, trained_on=trained_on))


def _warn_of_strange_states(data: DataConfig) -> None:
    """Report implausible states, and validation states unlike the training states, before anything is built."""
    source, episodes = open_split(data, "train")
    warn(implausible(source, episodes))
    warn(unlike(*open_split(data, "val"), compute_stats(source, episodes=episodes)))


def _warn_of_a_tokenizer_that_knows(config: TrainConfig) -> None:
    """Warn if the tokenizer was trained on validation episodes: it reconstructs these better than new recordings."""
    folder = config.tokenizer
    if folder is None or not ((folder / "model.json").is_file() or RunDir(folder).latest()):
        return  # another's files, which do not say what they were trained on
    source, episodes = open_split(config.data, "val")
    seen = _trained_on(folder).among(source, episodes)
    if seen:
        log.warning(
            "%s: the tokenizer in %s was trained on %d of the %d validation episodes (the first is %s): pictures of "
            "them come out better than those of new recordings would; train it on the same split",
            *(source.path, folder, len(seen), len(episodes), seen[0].name),
        )


def _trained_on(initial: Path | None) -> Recordings:
    """The recordings that the initial weights were trained on, as far as these say."""
    if initial is None:
        return Recordings()
    return describe_model(model_folder(initial)).trained_on or Recordings()
