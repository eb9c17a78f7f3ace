"""meta/info.json of a LeRobot data set, v2.x or v3.0: its cameras, its states, and the places of its files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from worldline.files import read_json
from worldline.formats.checks import validated
from worldline.schema import DataError, UsageError

INFO = "meta/info.json"
NO_FILE = "no file"
_VERSIONS = ("v2.0", "v2.1", "v3.0")
_NO_NUMBERS = ("video", "image", "string")
_NEVER_STATES = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_LONGEST_NAME = 255  # bytes of a file's name that file systems allow
_WIDEST = 100_000


@dataclass(frozen=True, kw_only=True)
class _Feature:
    """The used part of a feature."""

    shape: Annotated[tuple[Annotated[int, Field(gt=0, le=_WIDEST)], ...], Field(max_length=4)] | None = None


@dataclass(frozen=True, kw_only=True)
class Meta:
    """The used part of meta/info.json below the folder `root`; types and ranges are checked."""

    root: Path
    codebase_version: str
    fps: Annotated[float, Field(ge=0.01, le=10_000, allow_inf_nan=False)]
    features: dict[str, dict[str, Any]]
    data_path: str
    video_path: str | None = None
    chunks_size: Annotated[int, Field(gt=0)] = 1000

    @classmethod
    def read(cls, root: Path) -> "Meta":
        """Read it. Raises `DataError` where it is absent, damaged, or of a version that is not read."""
        content = read_json(root / INFO)
        version = content.get("codebase_version")
        if version not in _VERSIONS:
            fix = "Convert the data set with the scripts of the lerobot package (convert_dataset_v1_to_v2 and on)."
            expected = f"codebase_version {' or '.join(_VERSIONS)}"
            raise DataError(root / INFO, expected=expected, found=repr(version), fix=fix, kind="format")
        return validated(root / INFO, cls, content | {"root": root})

    @property
    def path(self) -> Path:
        return self.root / INFO

    def fault(self, expected: str, found: str, kind: str = "metadata", fix: str = "") -> DataError:
        """Something that is wrong with the file."""
        return DataError(self.path, expected=expected, found=found, fix=fix, kind=kind)

    def place(self, template: str | None, chunk: int = 0, file: int = 0, **fields: object) -> Path:
        """Fill a path template. Raises `DataError` unless it gives a path below the data set's folder."""
        if template is None:
            raise self.fault("video_path", "none, though a camera is said to be video")
        try:
            place = template.format(chunk_index=chunk, file_index=file, **fields)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            found = f"{template!r} ({type(error).__name__}: {error})"
            raise self.fault("a path with fields such as {episode_index:06d}", found) from error
        parts = Path(place).parts
        too_long = any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in parts)
        if not parts or "\0" in place or {"/", ".."} & set(parts) or too_long:
            raise self.fault("a path below the data set's folder", f"{place[:80]!r}")
        return self.root / place

    def cameras(self) -> dict[str, str]:
        """Keys of the cameras, each with why it is not used by default (a depth map, `NO_FILE`), or nothing."""
        keys = [key for key, feature in self.features.items() if feature.get("dtype") in ("video", "image")]
        return {key: self._why_not(key) for key in keys}

    def camera(self, wanted: str | None) -> str:
        """The camera of a key, or of its last part; the only one where none is wanted. Raises `UsageError` in doubt."""
        available = self.cameras()
        if not available:
            raise self.fault("a camera (video or image)", "none", fix="Record one, or use another data set.")
        if wanted is None:
            matches = [key for key, why_not in available.items() if not why_not] or list(available)
        else:
            matches = [wanted] if wanted in available else [key for key in available if key.endswith(f".{wanted}")]
        if len(matches) == 1:
            return matches[0]
        problem = "several cameras, choose one" if wanted is None else f"no single camera is called {wanted!r}"
        described = "; ".join(self._described(key, why_not) for key, why_not in available.items())
        raise UsageError(f"{self.root}: {problem} (--camera, in recipes --data.camera): {described}")

    def is_video(self, camera: str) -> bool:
        """Whether a camera is stored as video, and not as images in the tables."""
        return self.features[camera]["dtype"] == "video"

    def size(self, camera: str) -> tuple[int, int]:
        """Height and width that a camera is said to have; channels come first or last."""
        shape = self._shape(camera)
        if len(shape) < 2:
            raise self.fault(f"height and width of {camera}", f"{shape}")
        channels_first = len(shape) == 3 and shape[0] in (1, 3)
        return (shape[-2], shape[-1]) if channels_first else (shape[0], shape[1])

    def dim(self, column: str) -> int:
        """Numbers in a row of a column. Raises `UsageError` for a column that is not there or holds no numbers."""
        numeric = [key for key, feature in self.features.items() if feature.get("dtype") not in _NO_NUMBERS]
        if column not in numeric:
            choices = ", ".join(key for key in numeric if key not in _NEVER_STATES) or "it has none"
            problem = f"no numbers in {column!r}" if column in self.features else f"no {column!r}"
            raise UsageError(
                f"{self.path}: the data set has {problem}; choose states by name, one or several (--state-keys, in "
                f"recipes --data.state-keys): {choices}"
            )
        dim = prod(self._shape(column))
        if dim > _WIDEST:
            raise self.fault("a state", f"{column} of {dim} values")
        return dim

    def names(self, column: str) -> list[str]:
        """The names that a column's dimensions are given, as many as they are."""
        return _flatten(self.features[column].get("names"))

    def _shape(self, key: str) -> tuple[int, ...]:
        return validated(self.path, _Feature, self.features[key], f"features.{key}").shape or ()

    def _why_not(self, camera: str) -> str:
        feature = self.features[camera]
        facts = feature | (feature["info"] if isinstance(feature.get("info"), dict) else {})
        if any(facts.get(name) is True for name in ("is_depth_map", "video.is_depth_map")):
            return "a depth map"
        shape = feature.get("shape")
        if isinstance(shape, list) and len(shape) == 3 and 1 in (shape[0], shape[-1]):
            return "one channel, as a depth map"
        return NO_FILE if self.is_video(camera) and next(self._videos(camera), None) is None else ""

    def _videos(self, camera: str) -> Iterator[Path]:
        """The videos of a camera that exist, wherever the template puts them."""
        if self.video_path is not None:
            pattern = re.sub(r"\{(?!video_key\})[^{}]*\}", "*", self.video_path)
            place = self.place(pattern, video_key=escape(camera))
            yield from self.root.glob(str(place.relative_to(self.root)))

    def _described(self, camera: str, why_not: str) -> str:
        """A camera in words: size, kind and number of files."""
        kind = why_not if why_not and why_not != NO_FILE else "colour"
        files = f"{sum(1 for _ in self._videos(camera))} videos" if self.is_video(camera) else "images in the tables"
        return f"{camera} ({'x'.join(map(str, self.size(camera)))}, {kind}, {files})"


def _flatten(names: Any) -> list[str]:
    if isinstance(names, str):
        return [names]
    if isinstance(names, dict):
        positions = bool(names) and all(type(value) is int for value in names.values())
        names = sorted(names, key=names.__getitem__) if positions else list(names.values())
    return [name for item in names for name in _flatten(item)] if isinstance(names, list) else []
