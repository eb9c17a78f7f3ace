"""Driving in a built-in world: frames per second, and milliseconds from a slider to its picture.

A server as `worldline view` starts it in a process of its own, and a client over loopback in this one, which answers as
a page does but draws nothing. `fastest` asks for 60 frames a second, `as_recorded` for the rate of the data; `beside`
has the live twin and an overlay, too. A slider is moved every 0.3 s, to one end of its range or the other. Where the
time goes is the mean over frames: a chunk is made at once, and what it took is told with its first frame.
"""

import json
import re
import signal
import subprocess
import sys
import time
from typing import Any

from common import options, publish, spread
from websockets.sync.client import ClientConnection, connect

from worldline import builtin
from worldline.viewer.protocol import VERSION, Shown, unpacked

WORLDS = tuple(name for name in ("compression-tiny", "driven-tiny") if name in builtin.NAMES)
EVERY = 0.3
"""Seconds between two moves of the slider."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--worlds", nargs="+", default=[*WORLDS])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--device", default="cpu", help="of the worlds")
    given = parser.parse_args()
    seconds = 2.0 if given.quick else given.seconds
    worlds = given.worlds[: 1 if given.quick else None]
    publish({world: measured(world, seconds, given.device) for world in worlds}, quick=given.quick)


def measured(world: str, seconds: float, device: str) -> dict[str, object]:
    """The figures of one world."""
    command = [sys.executable, "-m", "worldline", "view", world, "--port", "0", "--device", device]
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            address = next(found[1] for line in server.stderr if (found := re.search(r"http://(\S+)", line)))
            opened = time.perf_counter() - began
            found = {
                "fastest": driven(address, seconds, rate=60.0),
                "as_recorded": driven(address, seconds, rate=None),
                "beside": driven(address, seconds, rate=None, beside=True),
            }
        finally:
            server.send_signal(signal.SIGINT)
    return {"start_seconds": round(opened, 2), **found}


def driven(address: str, seconds: float, *, rate: float | None, beside: bool = False) -> dict[str, Any]:
    """Drive for some seconds, and count."""
    with connect(f"ws://{address}/live", max_size=None) as page:
        say(page, "hello", version=VERSION)
        welcome = told(page, "welcome")
        told(page, "state")
        joint = max(welcome["joints"], key=lambda one: one["step"])
        if beside:
            overlay = next(one["id"] for one in welcome["overlays"] if one["available"])
            say(page, "overlay", kind=overlay)
            say(page, "twin", on=welcome["twin"]["available"])
        say(page, "play", on=True, rate=rate)
        told(page, "state")
        frames, delays = followed(page, joint, seconds)
        say(page, "bye")
    arrivals = [at for at, _ in frames]
    parts = {name: [getattr(header.timing_ms, name) for _, header in frames] for name in Timings}
    return {
        "frames_per_second": round((len(frames) - 1) / (arrivals[-1] - arrivals[0]), 2),
        "slider_to_picture_ms": spread(delays),
        "slider_to_picture_p95_ms": round(sorted(delays)[int(0.95 * len(delays))], 1),
        "ms_of_a_frame": {name: round(sum(values) / len(values), 2) for name, values in parts.items()},
        "rate_of_the_data": welcome["fps"],
        "frames_of_a_chunk": welcome["chunk"],
        "pixels": welcome["width"],
    }


Timings = ("model", "decode", "encode", "twin")


def followed(
    page: ClientConnection, joint: dict[str, Any], seconds: float
) -> tuple[list[tuple[float, Shown]], list[float]]:
    """Frames with when they came, and how long each move of the slider took to be seen."""
    frames: list[tuple[float, Shown]] = []
    delays: list[float] = []
    waiting: dict[int, float] = {}
    moves, begin = 0, time.perf_counter()
    # On a busy machine it takes longer until there is something to count.
    while (now := time.perf_counter()) < begin + seconds or len(frames) < 2 or not delays:
        if now >= begin + 1 + EVERY * moves:
            moves += 1
            say(page, "drive", states={joint["name"]: joint["low" if moves % 2 else "high"]})
            waiting[moves] = time.perf_counter()
        try:
            received = page.recv(timeout=0.02)
        except TimeoutError:
            continue
        if isinstance(received, str):
            continue
        header, _ = unpacked(received)
        say(page, "ack", seq=header.seq)
        now = time.perf_counter()
        if now > begin + 1:  # what comes before warms up
            frames.append((now, header))
        for move in [move for move in waiting if move <= header.drive]:
            delays.append(1000 * (now - waiting.pop(move)))
    return frames, delays


def say(page: ClientConnection, kind: str, /, **content: Any) -> None:
    page.send(json.dumps({"type": kind, **content}))


def told(page: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of a kind; frames before it are acknowledged."""
    while True:
        received = page.recv(timeout=60)
        if isinstance(received, bytes):
            say(page, "ack", seq=unpacked(received)[0].seq)
        elif (message := json.loads(received))["type"] == kind:
            return message


if __name__ == "__main__":
    main()
