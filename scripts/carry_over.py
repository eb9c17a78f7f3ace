"""Rewrite the configurations of a run that was made before 2026-11-25, when fields got their present names.

python scripts/carry_over.py RUN [RUN ...]

RUN is a run folder or a model folder; every config.json and model.json in it is rewritten, weights stay as they are.
The old text is kept beside each as `*.before.json`. A file in today's form stays untouched, so it may be run twice.
"""

import json
import sys
from pathlib import Path
from typing import Any

from worldline.contract import FramePattern
from worldline.files import atomic, write_json

FROM_DATA = {
    "st-transformer": ("grid_height", "grid_width", "vocab_size", "state_dim", "block", "temporal_stride"),
    "fsq-video": (),
    "wan-vae": ("attn_scales",),
    "wan": (),
}
"""What a configuration no longer says, since data or upstream decide it."""
SIZES_OF_A_VAE = (
    *("base_dim", "decoder_base_dim", "z_dim", "dim_mult", "num_res_blocks", "temporal_downsample", "dropout"),
    *("is_residual", "patch_size", "latents_mean", "latents_std"),
)


def model(old: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration with today's fields."""
    new = {name: value for name, value in old.items() if name not in FROM_DATA[old["kind"]]}
    if "blind" in new:
        new["unconditional"] = new.pop("blind")
    if old["kind"] == "wan":
        absent = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")
        new["backbone"] = {name: value for name, value in new["backbone"].items() if name not in absent}
        of_data = ("kinds", "taken", "window")
        new["states"] = {name: value for name, value in new["states"].items() if name not in of_data}
        if isinstance(new["lora"], dict):
            new["lora"] = new["lora"]["rank"]
    if old["kind"] == "wan-vae" and "sizes" not in new:
        new["sizes"] = {name: new.pop(name) for name in SIZES_OF_A_VAE}
    return new


def run(old: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with today's fields."""
    renamed = {"initial": "init_from", "phases": "start_offsets"}
    new = {renamed.get(name, name): value for name, value in old.items()}
    new["optimizer"] = {"lr" if name == "peak" else name: value for name, value in old["optimizer"].items()}
    return {**new, "model": model(old["model"])}


def card(old: dict[str, Any]) -> dict[str, Any]:
    """The content of a model.json with today's fields."""
    new = {**old, "config": model(old["config"])}
    contract = dict(old.get("contract", {}))
    grid = contract.pop("token_grid", None) or contract.pop("latent_grid", None)
    if grid is not None:
        contract |= {"grid": grid, "state_keys": contract.get("state_keys", [])}
        if "pattern" not in contract:  # only a grid of tokens goes without
            contract["pattern"] = vars(FramePattern(window=_window(old["config"], grid)))
    if contract:
        new["contract"] = contract
    if "tokenizer" in new:
        new["identity"] = {"tokenizer": new.pop("tokenizer"), **old.get("identity", {})}
    if backbone := old.get("base", {}).get("fingerprint"):
        new["identity"] = {"backbone": backbone, **new.get("identity", {})}
        new["base"] = {"path": old["base"]["path"]}
    return new


def _window(config: dict[str, Any], grid: dict[str, Any]) -> int:
    """Frames of a clip: one block of a tokenizer, context and horizon of a world over tokens."""
    per_block = 1 + (grid["block"] - 1) // grid["temporal_stride"]
    return (config.get("context_grids", 0) + config.get("horizon_grids", 0)) // per_block * grid["block"] or grid[
        "block"
    ]


def rewrite(path: Path) -> bool:
    """Rewrite one file; False where it is as it should be."""
    text = path.read_text(encoding="utf-8")
    old = json.loads(text)
    new = run(old) if path.name == "config.json" else card(old) if "config" in old else old
    if new == old:
        return False
    with atomic(path.with_suffix(".before.json")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(path, new)
    return True


def main(folders: list[Path]) -> None:
    for folder in folders:
        files = sorted(path for name in ("config.json", "model.json") for path in folder.rglob(name))
        if not files:
            sys.exit(f"{folder} holds no config.json and no model.json")
        rewritten = [path for path in files if rewrite(path)]
        print(f"{folder}: {len(rewritten)} of {len(files)} files rewritten")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
