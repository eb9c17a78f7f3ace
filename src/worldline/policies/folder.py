"""Policies in folders: `config.json` says all, `model.safetensors` holds a network. A path is enough to load one.

OUT/TASK/NAME/config.json, model.safetensors        one policy
OUT/success/config.json, model.safetensors          the success classifier
OUT/policies.json                                   what they were made from
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from worldline.files import hash_of, hash_of_file, read_json, write_json
from worldline.nn.weights import load_weights
from worldline.policies.cloned import ClonedConfig, ClonedPolicy, Timing
from worldline.policies.networks import PolicyNetwork
from worldline.policies.policy import BatchPolicy
from worldline.policies.scripted import ScriptedConfig, ScriptedPolicy
from worldline.rundir import from_json, load_tensors, new_folder, save_tensors
from worldline.schema import DataError, UsageError

CONFIG, WEIGHTS, RECORD = "config.json", "model.safetensors", "policies.json"
SUCCESS = "success"
"""The folder of the success classifier."""


def save(folder: Path, policy: ScriptedPolicy | ClonedPolicy, made: dict[str, Any]) -> None:
    """Write a policy's folder atomically; `made` says for which task, how and from what it was made."""
    content: dict[str, Any] = {"config": asdict(policy.config), "made": made}
    with new_folder(folder) as temporary:
        if isinstance(policy, ClonedPolicy):
            content |= {"timing": asdict(policy.timing), "state_dim": len(policy.network.mean)}
            save_tensors(temporary / WEIGHTS, policy.network.state_dict())
        write_json(temporary / CONFIG, content)


def load(path: str | Path) -> BatchPolicy:
    """The policy in a folder, on the CPU.

    Raises `DataError` where files are missing or damaged, and `UsageError` where there is no such folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of a policy; make some with `worldline policies OUT`")
    content, place = read_json(folder / CONFIG), folder / CONFIG
    config = content.get("config")
    match config.get("kind") if isinstance(config, dict) else None:
        case "scripted":
            return ScriptedPolicy(from_json(ScriptedConfig, config, place))
        case "cloned":
            network = PolicyNetwork((own := from_json(ClonedConfig, config, place)).network, _dim(content, place))
            load_weights(network, load_tensors(folder / WEIGHTS), folder)
            return ClonedPolicy(own, network, from_json(Timing, content.get("timing"), place))
        case other:
            raise DataError(place, expected="the configuration of a policy", found=repr(other), kind="metadata")


def found(out: str | Path, task: str) -> dict[str, Path]:
    """The folders of a task's policies in what `worldline policies OUT` made, by name, in the order of their making.

    Raises `UsageError` where there are none.
    """
    folders = [path.parent for path in (Path(out) / task).glob(f"*/{CONFIG}")]
    if not folders:
        raise UsageError(f"{out} holds no policies of the task {task!r}; make some: `worldline policies OUT`")
    order = {folder: read_json(folder / CONFIG).get("made", {}).get("number", 0) for folder in folders}
    return {folder.name: folder for folder in sorted(folders, key=lambda one: (order[one], one.name))}


def identity(path: str | Path) -> str:
    """Hash of all that decides what a policy in a folder does. Raises `DataError` for a damaged folder."""
    content, weights = read_json(Path(path) / CONFIG), Path(path) / WEIGHTS
    parts = [content.get("config"), content.get("timing"), hash_of_file(weights) if weights.exists() else None]
    return hash_of(parts)


def _dim(content: dict[str, Any], place: Path) -> int:
    dim = content.get("state_dim")
    if not isinstance(dim, int) or dim < 1:
        raise DataError(place, expected="state_dim: a whole number", found=repr(dim), kind="metadata")
    return dim
