"""One tab: reads what the page wants, and sends frames at their rate. The event loop never computes.

All that touches the player runs in one thread of its own (PyTorch, MuJoCo and its OpenGL), call by call. Two coroutines
share the tab: one reads messages, of which the quick ones are done at once and the others wait in a short list; one
carries that list out and makes frames while `UNSEEN` are not yet on their way. So nothing queues: of what is wanted
only the newest counts, and a page that does not keep up gets fewer frames.
"""

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from worldline.schema import DataError, UsageError
from worldline.viewer import protocol
from worldline.viewer.exports import Copied, Exports
from worldline.viewer.framing import Beside, framed, framed_recording, overlay_named
from worldline.viewer.player import Player, Shot, Wish
from worldline.viewer.protocol import UNSEEN, VERSION, BadMessageError, Welcome
from worldline.viewer.stage import MOST_EXPORTS, MOST_MESSAGES, Stage
from worldline.viewer.twin import Mirror

T = TypeVar("T")
WAITING = 16
"""Commands that wait to be carried out; further ones are refused."""
HELLO_SECONDS = 10.0
log = logging.getLogger(__name__)


class Tab:
    """One session and its page."""

    def __init__(self, socket: WebSocket, stage: Stage, welcome: Welcome, publish: Callable[[str, Path], str]) -> None:
        """`publish` makes a file of the session available under a token, and gives its address."""
        self.socket, self.stage, self.welcome, self.publish = socket, stage, welcome, publish
        self.published: list[str] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="session")
        self._folder: Path | None = None
        self._wake, self._sending = asyncio.Event(), asyncio.Lock()
        self._jobs: deque[Any] = deque()
        self._sent, self._seen, self._drives, self._said = 0, 0, 0, float("-inf")
        self._allowance, self._counted = float(MOST_MESSAGES), time.monotonic()
        self.playing, self.rate, self.wish, self.outside = False, stage.rate, Wish(), 0
        self._overlay: protocol.Overlay = "none"
        self.beside = Beside()
        self._mirror: Mirror | None = None
        self._exporting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve the page until it leaves, says `bye`, or has been silent for too long."""
        if not await self._greeted():
            return
        self.player = await self._call(Player, self.stage)
        await self._send_shot(self.player.shot())
        await self._send_state()
        tasks = [asyncio.ensure_future(one()) for one in (self._reading, self._making)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except WebSocketDisconnect:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Free what the session holds, after the call that its thread is in, and an export that is being written."""
        await asyncio.gather(*self._exporting, return_exceptions=True)
        try:
            await self._call(self._free)
        finally:
            self._thread.shutdown(wait=False)

    def _free(self) -> None:
        if self._mirror is not None:
            self._mirror.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    # --- reading ---

    async def _greeted(self) -> bool:
        """Wait for `hello` and answer it. Another page, or another version of it, is told so and let go."""
        try:
            first = await asyncio.wait_for(self.socket.receive_text(), HELLO_SECONDS)
            hello = protocol.read(first)
        except (TimeoutError, KeyError, BadMessageError) as error:
            said = error.said if isinstance(error, BadMessageError) else "nothing readable came"
            await self._refuse(f"the first message must be hello: {said}")
            return False
        if not isinstance(hello, protocol.Hello):
            await self._refuse(f"the first message must be hello, not {hello.type}")
            return False
        if hello.version != VERSION:
            await self._refuse(f"this server speaks version {VERSION}, not {hello.version}; load the page again")
            return False
        await self._send(self.welcome)
        return True

    async def _refuse(self, message: str) -> None:
        await self._send(protocol.Error(message=message, where="hello"))
        await self.socket.close(1002, "hello")

    async def _reading(self) -> None:
        """Read and obey until the page leaves."""
        idle = 60 * self.stage.options.idle_minutes
        while True:
            try:
                received = await asyncio.wait_for(self.socket.receive(), idle)
            except TimeoutError:
                await self._error(f"nothing was said for {idle / 60:g} minutes, so the session ends", "idle")
                await self.socket.close(1001, "idle")
                return
            if received["type"] == "websocket.disconnect":
                return
            if not await self._counts():
                continue
            text = received.get("text")
            if text is None:
                await self._error("messages are text; this one is binary", "message")
                continue
            try:
                message = protocol.read(text)
            except BadMessageError as error:
                await self._error(error.said, error.where or "message")
                continue
            if message.type == "bye":
                await self.socket.close(1000)
                return
            await self._obey(message)

    async def _counts(self) -> bool:
        """Whether a message is within the rate; of those beyond it the first of a second is answered by an error."""
        now = time.monotonic()
        self._allowance = min(MOST_MESSAGES, self._allowance + MOST_MESSAGES * (now - self._counted))
        self._counted = now
        if self._allowance >= 1:
            self._allowance -= 1
            return True
        if now - self._said > 1:
            self._said = now
            await self._error(f"more than {MOST_MESSAGES} messages a second; some were not read", "message")
        return False

    async def _obey(self, message: Any) -> None:
        """Do at once what is quick; let the rest wait for its turn."""
        try:
            match message:
                case protocol.Ack():
                    self._seen = max(self._seen, min(message.seq, self._sent))
                case protocol.Drive():
                    self._drives += 1
                    self._want(states={**self.wish.states, **await self._places(message.states)})
                case protocol.Halt():
                    self._want(states={})
                case protocol.Play():
                    if message.on and not self.playing:
                        self._restart()
                    self.playing, self.rate = message.on, message.rate or self.stage.rate
                    await self._send_state()
                case protocol.SetOverlay():
                    overlay = overlay_named(self.welcome.overlays, message.kind)
                    self._overlay, self.beside = message.kind, self._beside(overlay=overlay)
                    self._later(self._here())
                    await self._send_state()
                case protocol.Beside():
                    for branch in message.branches:
                        self.player.tree.named(branch)  # raises where there is none
                    self.beside = self._beside(branches=message.branches)
                    self._later(self._here())
                case protocol.Step() if not self.playing:
                    self._restart()
                    self._later(message)
                case protocol.Hello():
                    raise UsageError("hello has been said already")
                case _:
                    self._later(message)
        except UsageError as error:
            await self._error(str(error), message.type)
        self._wake.set()

    def _here(self) -> protocol.Look:
        """Show the frame that is shown once more, with what has changed beside it."""
        return protocol.Look(branch=self.player.branch.id, frame=self.player.branch.head)

    def _beside(self, **changes: Any) -> Beside:
        return Beside(**{**vars(self.beside), **changes})

    def _want(self, **changes: Any) -> None:
        motion = changes.get("motion")
        self.wish = Wish(
            states=changes.get("states", {}),
            motion=motion,
            number=self.wish.number + 1,
            drives=self._drives,
            since=time.perf_counter(),
        )

    def _restart(self) -> None:
        """What was wanted while time stood still waits from now on."""
        self.wish = replace(self.wish, since=time.perf_counter() if self.wish.since else 0.0)

    def _later(self, message: Any) -> None:
        """Keep a command for its turn; of looks at one branch the newest, and of rewinds that follow one another."""
        if isinstance(message, protocol.Look):
            older = [one for one in self._jobs if one.type == "look" and one.branch == message.branch]
            self._jobs = deque(one for one in self._jobs if one not in older)
        if isinstance(message, protocol.Rewind) and self._jobs and self._jobs[-1].type == "rewind":
            self._jobs[-1] = message
        elif len(self._jobs) >= WAITING:
            raise UsageError(f"{WAITING} commands wait already; this one is left out")
        else:
            self._jobs.append(message)

    async def _places(self, states: dict[str, float]) -> dict[int, float]:
        """Wanted states by place, within the data's range as the server was told. Raises `UsageError` for a name."""
        names, ranges, found = self.stage.layout.names, self.stage.ranges, {}
        outside: list[str] = []
        for name, value in states.items():
            if name not in names:
                raise UsageError(f"there is no state {name!r}; there are: {', '.join(names)}")
            place = names.index(name)
            low, high = float(ranges.low[place]), float(ranges.high[place])
            slack = 1e-5 * max(1.0, abs(low), abs(high))
            if low - slack <= value <= high + slack:
                found[place] = value
                continue
            outside.append(f"{name} {value:g} (the data have {low:g} .. {high:g})")
            if self.stage.options.outside != "refuse":
                found[place] = value if self.stage.options.outside == "allow" else min(max(value, low), high)
        if outside and self.stage.options.outside != "allow":
            self.outside += len(outside)
            if self.stage.options.outside == "refuse":
                await self._error(f"refused: {', '.join(outside[:4])}", "drive")
        return found

    # --- making ---

    async def _making(self) -> None:
        """Carry out commands in turn, and make frames while playing."""
        due = 0.0
        while True:
            self._wake.clear()
            if self._sent - self._seen >= UNSEEN or not (self._jobs or self.playing):
                await self._wake.wait()
                continue
            if self._jobs:
                await self._attempt(self._jobs.popleft())
                continue
            wait = due - time.monotonic()
            if wait > 0:
                try:
                    await asyncio.wait_for(self._wake.wait(), wait)
                except TimeoutError:
                    pass
                else:
                    continue
            due = max(due + 1 / self.rate, time.monotonic())
            await self._attempt(protocol.Step())

    async def _attempt(self, command: Any) -> None:
        """Carry one command out; what goes wrong is said, and the session goes on."""
        try:
            await self._carry_out(command)
        except (UsageError, DataError, RuntimeError, OSError) as error:
            if {self.socket.client_state, self.socket.application_state} != {WebSocketState.CONNECTED}:
                raise WebSocketDisconnect from error  # it has ended meanwhile
            if isinstance(error, RuntimeError | OSError):
                log.exception("a session could not carry out %s", command.type)
            if command.type == "step" and self.playing:
                self.playing = False
                await self._send_state()
            await self._error(str(error), command.type)
            if command.type == "open":  # a page that opens a clip forgets all else: it is told where it still is
                self.beside = self._beside(twin=self._mirror is not None)
                await self._send_state()

    async def _carry_out(self, command: Any) -> None:
        match command:
            case protocol.Step():
                await self._advance()
                return
            case protocol.Look():
                await self._look(command)
                return
            case protocol.Export():
                await self._export(command)
                return
            case protocol.Motion():
                await self._call(self.stage.recording, command.clip)  # raises where there is none
                self._want(motion=command.clip if command.on else None)
            case protocol.Open():
                await self._open(command.clip)
            case protocol.Rewind():
                self.player.look(self.player.branch.id, command.to)  # raises where there is none
                self._rest()
                await self._send_shot(await self._call(self.player.rewind, command.to, self.wish))
            case protocol.Fork():
                await self._send_shot(await self._call(self.player.fork, command.name))
            case protocol.Switch():
                self.player.tree.named(command.branch)  # raises where there is none
                self._rest()
                await self._send_shot(await self._call(self.player.switch, command.branch, self.wish))
            case protocol.Rename():
                await self._call(self.player.tree.rename, command.branch, command.name)
            case protocol.Drop():
                await self._call(self.player.tree.drop, command.branch)
            case protocol.Twin():
                await self._set_twin(command.on)
                await self._send_shot(self.player.shot())
        await self._send_state()

    def _rest(self) -> None:
        """Want nothing in particular: elsewhere in the tree, the robot stays as it is there."""
        self.wish = Wish(number=self.wish.number, drives=self._drives, motion=None)

    async def _advance(self) -> None:
        shot = await self._call(self.player.next, self.wish)
        await self._send_shot(shot)
        if shot.ended and self.wish.motion is not None:
            self._want(states={})
            await self._send_state()

    async def _open(self, clip: int) -> None:
        self.playing = False
        player, self._mirror, old = await self._call(Player, self.stage, clip), None, self._mirror
        if old is not None:
            await self._call(old.close)
        self.player = player
        self._rest()
        await self._set_twin(self.beside.twin)
        await self._send_shot(self.player.shot())

    async def _set_twin(self, on: bool) -> None:
        """Raises `UsageError` where there is none."""
        if on and not self.welcome.twin.available:
            raise UsageError(f"there is no live twin here: {self.welcome.twin.why}")
        if on and self._mirror is None:
            self._mirror = await self._call(Mirror, self.player.recording)
        self.beside = self._beside(twin=on)

    async def _look(self, command: protocol.Look) -> None:
        found = await self._call(self.player.look, command.branch, command.frame)
        if isinstance(found, Shot):
            here = found.branch is self.player.branch and found.index == self.player.branch.head
            await self._send_shot(found, looked=not here)
            return
        make = partial(framed_recording, self.player, found, command.frame, seq=self._sent + 1)
        await self._send_bytes(await self._call(make))

    async def _send_shot(self, shot: Shot, *, looked: bool = False) -> None:
        how: dict[str, Any] = {"seq": self._sent + 1, "mirror": self._mirror, "looked": looked}
        data, problem = await self._call(partial(framed, self.player, shot, self.beside, **how))
        await self._send_bytes(data)
        if problem is not None and not looked:
            self.beside = self._beside(twin=False)
            await self._error(problem, "twin")
            await self._send_state()

    # --- exports ---

    async def _export(self, command: protocol.Export) -> None:
        """Begin to write a branch, beside the session's own thread: driving goes on meanwhile."""
        if self._exporting:
            raise UsageError("an export of this session is being written; wait for it")
        if command.format not in self.welcome.formats:
            raise UsageError(f"frames of this size cannot be written as {command.format}; their sides must be even")
        branch = self.player.tree.named(command.branch)
        copied = await self._call(Copied.of, branch, self.player.recording)
        await self._send(protocol.Exporting(branch=command.branch, format=command.format))
        task = asyncio.create_task(self._write(command, copied))
        self._exporting.add(task)
        task.add_done_callback(self._exporting.discard)

    async def _write(self, command: protocol.Export, copied: Copied) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="worldline-view-"))
        exports = Exports(folder=self._folder, most=MOST_EXPORTS)
        with contextlib.suppress(WebSocketDisconnect):  # the page has gone meanwhile
            try:
                token, path = await asyncio.to_thread(exports.write, copied, command.format, self.stage)
            except (UsageError, DataError, RuntimeError, OSError) as error:
                await self._error(f"{command.format} could not be written: {error}", "export")
                return
            self.published.append(token)
            found = {"branch": command.branch, "format": command.format, "name": path.name}
            found |= {"bytes": path.stat().st_size, "url": self.publish(token, path)}
            await self._send(protocol.Exported.model_validate(found))

    # --- sending ---

    async def _send_state(self) -> None:
        player, branch = self.player, self.player.branch
        target = dict(zip(self.stage.layout.names, player.target(self.wish).tolist(), strict=True))
        await self._send(
            protocol.State(
                clip=player.clip,
                branch=branch.id,
                branches=player.tree.infos,
                frame=branch.head,
                context=player.context,
                playing=self.playing,
                rate=self.rate,
                motion=self.wish.motion,
                overlay=self._overlay,
                twin=self.beside.twin,
                target=target,
                outside=self.outside,
            )
        )

    async def _error(self, message: str, where: str) -> None:
        await self._send(protocol.Error(message=message[:2000], where=where))

    async def _send(self, message: Any) -> None:
        async with self._sending:
            await self.socket.send_text(message.model_dump_json())

    async def _send_bytes(self, data: bytes) -> None:
        self._sent += 1  # only now: of a frame that could not be made, nobody says that it has arrived
        async with self._sending:
            await self.socket.send_bytes(data)
