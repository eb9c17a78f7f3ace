"""What a page and the server say to each other over `/live`: version 1 of the protocol, written once.

Text frames are JSON with a `type`: `Ask` is all that a page may say, `Answer` all that it is told. A binary frame holds
pictures of one moment:

    4 bytes        length n of the header, big-endian
    n bytes        the header, JSON, UTF-8: `Shown`
    the rest       the bytes of its pictures, in the order of `Shown.pictures`, each as long as it says

The first message is `hello`; the answer is `welcome`. The page acknowledges every binary frame by its number (`ack`),
and the server makes no more while `UNSEEN` of them are not acknowledged: on a slow line frames come later, not in a
queue. Of several `drive` only the newest counts. What cannot be done is answered by `error`, and the session lives on.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError

VERSION = 1
UNSEEN = 2
"""Binary frames that may be on their way at once."""
MOST_BYTES = 64 * 1024
"""Of one message of a page."""
RATES = (0.25, 60.0)
"""Frames per second that can be asked for."""
MOST_FRAME = 10_000_000
NAME = r"^[\w][\w .,()+-]{0,39}$"
"""Of a branch: also the name of its exported file."""

Overlay = Literal["none", "entropy", "spread", "difference"]
PictureKind = Literal["forecast", "context", "truth", "twin", "overlay", "beside"]
ExportFormat = Literal["mp4", "gif", "lerobot-v3.0", "lerobot-v2.1"]
Word = Literal["known", "unsure", "leaving", "unknown"]
"""How far a moment is like the world's data; `WORDS` says it."""
WORDS: dict[Word, str] = {
    "known": "as in its data",
    "unsure": "unsure",
    "leaving": "leaving what it knows",
    "unknown": "not measured",
}

Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Frame = Annotated[int, Field(ge=0, le=MOST_FRAME, strict=True)]
ClipIndex = Annotated[int, Field(ge=0, le=MOST_FRAME, strict=True)]
BranchId = Annotated[str, Field(pattern=r"^[a-z0-9]{1,12}$")]
Name = Annotated[str, Field(pattern=NAME)]
RECORDED = "recorded"
"""In place of a branch in `look`: the frames that the robot really saw."""


class _Message(BaseModel):
    """A message holds what is written here and nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- what a page may say ---


class Hello(_Message):
    """The first message."""

    type: Literal["hello"] = "hello"
    version: Annotated[int, Field(ge=1, le=1000, strict=True)]


class Open(_Message):
    """Start again from a clip of the data: its frames are shown, the tree of branches is new."""

    type: Literal["open"] = "open"
    clip: ClipIndex


class Drive(_Message):
    """The states wanted from now on, all or some of them by name; it stops a motion.

    The robot moves there no faster than the data do (`Joint.step`). Only the newest is kept of each name.
    """

    type: Literal["drive"] = "drive"
    states: Annotated[dict[Annotated[str, Field(max_length=200)], Number], Field(max_length=512)]


class Halt(_Message):
    """Want the states as they are now: what is on its way stops. Velocities go to 0."""

    type: Literal["halt"] = "halt"


class Play(_Message):
    """Make frames one after the other, or stop. `rate` is in shown frames per second; None is that of the data."""

    type: Literal["play"] = "play"
    on: bool
    rate: Annotated[float, Field(ge=RATES[0], le=RATES[1], allow_inf_nan=False)] | None = None


class Step(_Message):
    """Make one frame."""

    type: Literal["step"] = "step"


class Rewind(_Message):
    """Go to a frame of the branch, by its index. Nothing is lost until a new frame is made there."""

    type: Literal["rewind"] = "rewind"
    to: Frame


class Fork(_Message):
    """Begin a branch at the frame that is shown, and go on in it. The one before stays as it is."""

    type: Literal["branch"] = "branch"
    name: Name | None = None


class Switch(_Message):
    """Go on in another branch, where it was left."""

    type: Literal["switch"] = "switch"
    branch: BranchId


class Rename(_Message):
    type: Literal["rename"] = "rename"
    branch: BranchId
    name: Name


class Drop(_Message):
    """Forget a branch that is not the current one."""

    type: Literal["drop"] = "drop"
    branch: BranchId


class Motion(_Message):
    """Drive by the recorded states of a clip: from where the branch is, if it is the branch's own clip and it has been
    followed so far, else from the clip's beginning. `on` false stops it.
    """

    type: Literal["motion"] = "motion"
    clip: ClipIndex
    on: bool


class SetOverlay(_Message):
    type: Literal["overlay"] = "overlay"
    kind: Overlay


class Twin(_Message):
    """Whether the live twin moves under the same states."""

    type: Literal["twin"] = "twin"
    on: bool


class Beside(_Message):
    """Other branches whose pictures of the same index come with every frame."""

    type: Literal["beside"] = "beside"
    branches: Annotated[tuple[BranchId, ...], Field(max_length=3)]


class Look(_Message):
    """Send the picture of one frame, without going there: `branch` may be `recorded`, what the robot really saw."""

    type: Literal["look"] = "look"
    branch: BranchId
    frame: Frame


class Export(_Message):
    """Write a branch, from its first frame to its last, as a file to download."""

    type: Literal["export"] = "export"
    branch: BranchId
    format: ExportFormat


class Ack(_Message):
    """A binary frame has arrived; `seq` acknowledges all up to it."""

    type: Literal["ack"] = "ack"
    seq: Annotated[int, Field(ge=0, le=2**53, strict=True)]


class Bye(_Message):
    """End the session."""

    type: Literal["bye"] = "bye"


Ask = Annotated[
    Hello
    | Open
    | Drive
    | Halt
    | Play
    | Step
    | Rewind
    | Fork
    | Switch
    | Rename
    | Drop
    | Motion
    | SetOverlay
    | Twin
    | Beside
    | Look
    | Export
    | Ack
    | Bye,
    Discriminator("type"),
]
_ASK: TypeAdapter[Any] = TypeAdapter(Ask)


class BadMessageError(Exception):
    """A message that is none of the protocol's; `where` is the field at fault."""

    def __init__(self, said: str, where: str = "") -> None:
        self.said, self.where = said, where
        super().__init__(said)


def read(text: str) -> Any:
    """The message in a text frame. Raises `BadMessageError` for one that is not of the protocol."""
    if len(text) > MOST_BYTES:
        raise BadMessageError(f"a message of {len(text)} characters; at most {MOST_BYTES} are read")
    try:
        return _ASK.validate_json(text, strict=True)  # "yes" and 1 are no bool, "1.5" is no number
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where, said = ".".join(str(part) for part in first["loc"]), first["msg"]
        if first["type"] == "union_tag_invalid":
            more = first.get("ctx", {})
            said = f"there is no message {more.get('tag')!r}; there are: {more.get('expected_tags')}"
        raise BadMessageError(said[:1000], where) from None


# --- what it is told ---


class ClipInfo(_Message):
    index: int
    label: str
    frames: int
    """Shown frames that are recorded from its beginning on, those of the context among them."""
    seconds: float


class Joint(_Message):
    """One number of the state: a slider."""

    name: str
    """As in `drive`."""
    label: str
    limb: str
    """`left arm`, `right arm`, `left hand`, `right hand`, `left leg`, `right leg`, `trunk`, `head`, `base`, `other`."""
    unit: str
    """`rad`, `m/s`, `rad/s`, `0..1`, or nothing where it is not known."""
    low: float
    high: float
    """What the data have: the ends of the slider."""
    step: float
    """The most that it changes from one shown frame to the next when it is driven."""
    value: float
    """Of the first frame of the first clip."""
    returns: bool
    """Whether it goes back to 0 when a key is let go: a velocity."""


class Limits(_Message):
    """What is bounded."""

    sessions: int
    frames: int
    """Of all branches of a session together."""
    branches: int
    exports: int
    """That a session keeps at once."""
    messages_per_second: int
    message_bytes: int
    unseen: int
    idle_seconds: float
    rate_low: float
    rate_high: float


class OverlayInfo(_Message):
    id: Overlay
    label: str
    available: bool
    why: str = ""
    """Why it is not available."""
    unit: str = ""
    low: float = 0.0
    high: float = 0.0
    """Values of the first and the last colour."""
    colours: tuple[str, ...] = ()
    """From `low` to `high`, `#rrggbb`."""


class TwinInfo(_Message):
    available: bool
    why: str = ""


class Welcome(_Message):
    type: Literal["welcome"] = "welcome"
    version: int
    world: str
    data: str
    fps: float
    """Shown frames per second of the data."""
    chunk: int
    """Shown frames that the world makes at once."""
    lookahead_seconds: float
    """How far ahead it must be told the states."""
    width: int
    height: int
    clips: tuple[ClipInfo, ...]
    joints: tuple[Joint, ...]
    overlays: tuple[OverlayInfo, ...]
    twin: TwinInfo
    limits: Limits
    formats: tuple[ExportFormat, ...]
    words: dict[Word, str]


class BranchInfo(_Message):
    id: str
    name: str
    parent: str | None
    at: int
    """Frame of the parent from which it went on."""
    frames: int


class State(_Message):
    """Where the session is; sent after every command that changes it, and when playing ends by itself."""

    type: Literal["state"] = "state"
    clip: int | None
    branch: str
    branches: tuple[BranchInfo, ...]
    frame: int
    """Index of the frame that is shown in the current branch."""
    context: int
    """So many frames of every branch are real."""
    playing: bool
    rate: float
    motion: int | None
    overlay: Overlay
    twin: bool
    target: dict[str, float]
    outside: int
    """Wanted states outside of the data's range so far: clipped or refused, as the server was told."""


class Error(_Message):
    type: Literal["error"] = "error"
    message: str
    where: str = ""
    """The message or the field that it is about."""


class Exported(_Message):
    type: Literal["exported"] = "exported"
    url: str
    name: str
    bytes: int
    branch: str
    format: ExportFormat


class Exporting(_Message):
    """An export has begun; `exported` or `error` (with where `export`) follows."""

    type: Literal["exporting"] = "exporting"
    branch: str
    format: ExportFormat


class Picture(_Message):
    kind: PictureKind
    media: Literal["image/png", "image/jpeg"]
    bytes: int
    branch: str
    frame: int


class Timing(_Message):
    """Where the time of a frame went, in ms. A chunk is made at once: what it took is told with its first frame."""

    model: float = 0.0
    decode: float = 0.0
    encode: float = 0.0
    twin: float = 0.0
    queue: float = 0.0
    """From the arrival of the newest command that it obeys to the begin of the work."""


class Trust(_Message):
    """How far a moment is like the world's data."""

    word: Word
    signals: dict[str, float]
    """By id, each as a share of what is usual in the data: at most 1 is as in them."""
    outside: tuple[str, ...] = ()
    """States that are outside of what the world was trained on, and further than those of the data's own frames."""


class Shown(_Message):
    """The header of a binary frame."""

    seq: int
    branch: str
    frame: int
    seconds: float
    """Since the first frame of the clip."""
    looked: bool = False
    """Whether it answers `look`, so that the session is not there."""
    made: bool = False
    """Whether it was made just now: it is the last of its branch. Else it was kept."""
    real: bool
    """Whether it is a frame of the context, which the robot really saw."""
    states: dict[str, float]
    """Of this frame, as driven; of a frame of the recording, as recorded."""
    trust: Trust
    timing_ms: Timing
    drive: int = 0
    """How many `drive` the server had read when it made the frame: from slider to picture, a page counts its own."""
    pictures: tuple[Picture, ...]


def packed(header: Shown, pictures: tuple[bytes, ...]) -> bytes:
    """A binary frame."""
    text = header.model_dump_json().encode()
    return b"".join([len(text).to_bytes(4, "big"), text, *pictures])


def unpacked(data: bytes) -> tuple[Shown, tuple[bytes, ...]]:
    """What a binary frame holds, for clients in Python. Raises `ValueError` for another's bytes."""
    length = int.from_bytes(data[:4], "big")
    header = Shown.model_validate(json.loads(data[4 : 4 + length]))
    pictures, at = [], 4 + length
    for one in header.pictures:
        pictures.append(data[at : at + one.bytes])
        at += one.bytes
    if at != len(data):
        raise ValueError(f"a frame of {len(data)} bytes, but its header speaks of {at}")
    return header, tuple(pictures)
