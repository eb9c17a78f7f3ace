"""The inputs of a training, compared with what they must be before anything costly is done."""

from dataclasses import asdict, replace

from worldline.data.clips import open_split
from worldline.data.splits import content_of
from worldline.families.card import Identity, Part, describe_model, refuse_another
from worldline.families.config import TrainConfig
from worldline.families.family import kind_of
from worldline.families.tokenizers import fingerprint
from worldline.files import hash_of, hash_of_file, read_json
from worldline.rundir import RunDir, from_json, model_folder
from worldline.schema import UsageError

_OF_A_WORLD: tuple[Part, ...] = ("tokenizer", "backbone", "text")
"""Parts that must stay the same when a world's weights are trained further, also on other data."""


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


def refuse_absent(config: TrainConfig, run: RunDir) -> None:
    """Say of what has moved since a run was begun by which option to give its new place. Raises `UsageError`."""
    flags = {"--data.path": config.data.path, "--data.val-path": config.data.val_path}
    flags |= {"--tokenizer": config.tokenizer, "--weights": config.weights, "--text": config.text}
    each = ((flag, path) for flag, one in flags.items() for path in (one if isinstance(one, tuple) else (one,)))
    gone = [f"{path} ({flag} PLACE)" for flag, path in each if path is not None and not path.exists()]
    if gone:
        raise UsageError(
            f"the run in {run.path} was made with what is not there now: {', '.join(gone)}. Give the new place of each"
        )
