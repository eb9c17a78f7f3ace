"""Inverse dynamics: a judge that reads states from frames, neither a tokenizer nor a world, trained like both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worldline.contract import Contract, FramePattern
from worldline.data.clips import evenly, open_clips, open_windows
from worldline.families.card import ModelCard, describe_model
from worldline.families.config import TrainConfig
from worldline.families.family import Kind, Pictures, Prepared, begin, contract_with, kind_of, register
from worldline.judges.inverse_dynamics import InverseDynamics, InverseDynamicsConfig, explained
from worldline.nn.weights import load_weights
from worldline.ranks import Ranks
from worldline.rundir import load_tensors
from worldline.schema import Batch, UsageError

VALIDATED = 256
"""Validation clips that say which dimensions are readable."""
AT_ONCE = 8
"""Of these, that go through the model together."""


class InverseDynamicsKind(Kind):
    """A model that reads states from pairs of frames."""

    config = InverseDynamicsConfig
    python_only = ("model.widths", "model.blocks", "model.places", "model.hidden")

    def idle(self, config: TrainConfig, model: InverseDynamicsConfig) -> dict[str, str]:
        return {"data.pattern.": "a clip is as long as the longest gap (--model.longest-gap)"}

    def normalises(self, model: InverseDynamicsConfig) -> bool:
        return True

    def build(self, model: InverseDynamicsConfig, contract: Contract) -> InverseDynamics:
        return model.build(len(contract.state_names))

    def pattern(self, config: TrainConfig, model: InverseDynamicsConfig, grid: Any) -> FramePattern:
        return model.pattern

    def prepare(self, config: TrainConfig, model: InverseDynamicsConfig, ranks: Ranks) -> Prepared:
        """Raises `UsageError` for data without frames, flipped frames, and frames that patches do not divide."""
        data = replace(config.data, pattern=model.pattern)
        data.augment.keep_sides()
        source, _, _ = open_windows(data, "train")  # both splits have windows: said before anything is decoded
        open_windows(data, "val")
        if off := [side for side in source.video_size(data.image_size) if side % model.stride]:
            raise UsageError(
                f"frames of {off[0]} px do not divide into squares of {model.stride} px; give a multiple "
                "(--data.image-size)"
            )
        clips = open_clips(data, "train", ranks=ranks), open_clips(data, "val", ranks=ranks)
        contract = contract_with(source, data, None, data.pattern)
        torch.manual_seed(config.seed)  # the first weights are a function of the seed
        judge = self.build(model, contract)
        statistics = begin(config, judge, clips[0], judge)
        card = ModelCard(config=model, contract=contract, statistics=statistics)
        return Prepared(kind=self, model=judge, train=clips[0], val=clips[1], card=card)

    @torch.no_grad()
    def finish(self, model: InverseDynamics, made: Prepared, config: TrainConfig) -> None:
        """Measure, on validation clips, how much of the variance of every dimension is read."""
        device, generator = next(model.parameters()).device, torch.Generator().manual_seed(config.seed)
        chosen, read, true = evenly(len(made.val), VALIDATED), [], []
        for batch in made.val.batches(chosen, AT_ONCE):
            *seen, states = model.drawn(batch.to(device), generator)
            read.append(model(*seen))
            true.append((states - model.mean) / model.scale)
        model.r2.copy_(explained(torch.cat(read).cpu(), torch.cat(true).cpu()))

    def shown(self, made: Prepared, batch: Batch) -> Pictures | None:
        return None  # it makes no pictures


def load_inverse_dynamics(folder: Path) -> InverseDynamics:
    """The model in a model folder, in evaluation mode, on the CPU.

    Raises:
        DataError: files are missing or damaged, or weights do not fit the description.
    """
    card = describe_model(folder)
    model = kind_of(card.config).build(card.config, card.promise)
    load_weights(model, load_tensors(folder / "model.safetensors"), folder)
    return model.eval()


register(InverseDynamicsKind())
