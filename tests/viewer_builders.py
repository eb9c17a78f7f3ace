"""A world to drive in that is a few multiplications, a server of it in this process, and a page in Python."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from builders import write_squares
from torch import Tensor
from websockets.sync.client import ClientConnection, connect

from worldline.contract import FramePattern
from worldline.data.clips import DataConfig, open_clips
from worldline.forecasting.forecaster import Context, Forecaster, Seeds, States, Step
from worldline.schema import Batch, Forecast
from worldline.viewer.protocol import VERSION, Shown, unpacked
from worldline.viewer.server import build_app
from worldline.viewer.stage import Stage, ViewOptions, stage_of


@dataclass(frozen=True, kw_only=True)
class Remembering(Forecaster):
    """A world whose every frame is of one colour, which depends on all states since the beginning."""

    context_frames: int = 4
    chunk: int = 1
    grid: None = None
    tokenizer: None = None

    def __post_init__(self) -> None:
        times = tuple(range(self.context_frames, self.context_frames + self.chunk))
        vars(self).update(times=times, chunk_frames=self.chunk)

    def reconstruct(self, batch: Batch) -> Forecast:
        raise NotImplementedError

    def begin(self, batch: Batch) -> Context:
        return (self.frames_of(batch, self.context_frames)[:, 3, :, :1, :1].float(),)

    def step(self, context: Context, states: States, *, seeds: Seeds) -> Step:
        del seeds
        (colour,), frames = context, list[Tensor]()
        for row in states[:, self.context_frames :].unbind(dim=1):
            colour = 0.9 * colour + 25 * torch.cat([row, row.sum(dim=1, keepdim=True)], dim=1)[:, :, None, None]
            frames.append(colour.clamp(0, 255).round().to(torch.uint8).expand(-1, -1, 16, 16))
        made = torch.stack(frames, dim=1)[:, None]
        return Forecast(times=self.times, frames=made), lambda: (colour,)


def squares_stage(root: Path, forecaster: Forecaster, **options: Any) -> Stage:
    """Drive over three episodes of moving squares, of 51 frames each."""
    if not root.exists():
        write_squares(root, 3)
    window = forecaster.context_frames + forecaster.lookahead_frames
    clips = open_clips(DataConfig(path=root, pattern=FramePattern(window=window), window_stride=window), "val")
    return stage_of(forecaster, clips, None, ViewOptions(**options), world="remembering")


@dataclass(kw_only=True)
class Served:
    """A server that runs in a thread."""

    port: int
    app: Any

    @property
    def tabs(self) -> int:
        return len(self.app.state.server.tabs)

    def get(self, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Ask for a path as it is, which other clients would tidy up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    @contextmanager
    def page(self, **headers: str) -> "Iterator[Page]":
        """A page that has said hello."""
        with connect(f"ws://127.0.0.1:{self.port}/live", additional_headers=headers, max_size=None) as socket_:
            page = Page(socket_)
            page.say("hello", version=VERSION)
            page.welcome = page.told("welcome")
            page.state = page.told("state")
            yield page

    def until(self, tabs: int) -> bool:
        """Wait until there are so many tabs."""
        end = time.monotonic() + 10
        while self.tabs != tabs and time.monotonic() < end:
            time.sleep(0.01)
        return self.tabs == tabs


@contextmanager
def served(stage: Stage) -> Iterator[Served]:
    """Serve a stage on a free port."""
    app = build_app(stage)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, ws="websockets-sansio", log_level="error", timeout_graceful_shutdown=3)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            end = time.monotonic() + 10
            while not server.started and time.monotonic() < end:
                time.sleep(0.01)
            yield Served(port=place.getsockname()[1], app=app)
        finally:
            server.should_exit = True
            thread.join()


@dataclass
class Page:
    """Speaks the protocol; acknowledges every frame it reads, unless told not to."""

    socket: ClientConnection
    welcome: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    acknowledges: bool = True

    def say(self, kind: str, /, **content: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **content}))

    def hear(self, timeout: float = 10) -> Any:
        """The next message: a dictionary, or a header with its pictures."""
        received = self.socket.recv(timeout=timeout)
        if isinstance(received, str):
            message = json.loads(received)
            self.state = message if message["type"] == "state" else self.state
            return message
        header, pictures = unpacked(received)
        if self.acknowledges:
            self.say("ack", seq=header.seq)
        return header, pictures

    def silent_after(self, seconds: float) -> list[Any]:
        """All messages until none came for so long."""
        found = []
        with contextlib.suppress(TimeoutError):
            while True:
                found.append(self.hear(timeout=seconds))
        return found

    def told(self, kind: str, fits: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """The next message of a kind; what comes before it is dropped."""
        while True:
            message = self.hear()
            if isinstance(message, dict) and message["type"] == kind and fits(message):
                return message

    def shown(self, fits: Callable[[Shown], bool] = lambda _: True) -> tuple[Shown, tuple[bytes, ...]]:
        """The next frame that fits. Raises `AssertionError` where an error comes first."""
        while True:
            message = self.hear()
            if isinstance(message, tuple) and fits(message[0]):
                return message
            assert not (isinstance(message, dict) and message["type"] == "error"), message

    def asked(self, kind: str, /, **content: Any) -> dict[str, Any]:
        """Say something, and give the error that comes of it."""
        self.say(kind, **content)
        return self.told("error")

    def steps(self, count: int) -> list[tuple[Shown, tuple[bytes, ...]]]:
        """Make some frames, one by one."""
        found = []
        for _ in range(count):
            self.say("step")
            found.append(self.shown())
        return found
