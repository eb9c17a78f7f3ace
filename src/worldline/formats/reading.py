"""How data were read (camera, columns, picture size): what a model's contract keeps, and folders made from data note.

A model trained on tokens, latents or a conversion is judged on the original only if that is read in the same way.
"""

from typing import Any

from worldline.formats.source import Source

_KINDS: dict[str, type] = {"image_size": int, "camera": str, "state_keys": list}


def noted(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a folder's metadata.json says of how the data behind it were read."""
    provenance = metadata.get("provenance")
    found = provenance.get("reading") if isinstance(provenance, dict) else None
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name, kind in _KINDS.items() if isinstance(found.get(name), kind)}


def reading(source: Source, image_size: int | None) -> dict[str, Any]:
    """How a source is read, for what is made from it to note."""
    own = {"image_size": image_size} if image_size else {}
    return {**source.reading, **own}
