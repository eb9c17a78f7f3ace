"""The server: one page, one websocket per tab, and the files that sessions export. Nothing else can be fetched."""

import contextlib
import ipaddress
import logging
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from worldline.progress import say
from worldline.schema import UsageError
from worldline.viewer.guard import Guard
from worldline.viewer.protocol import MOST_BYTES, Error
from worldline.viewer.stage import Stage, ViewOptions, open_stage
from worldline.viewer.tab import Tab

STATIC = Path(__file__).with_name("static")
_BUSY = 1013  # "try again later"
log = logging.getLogger(__name__)


class Server:
    """What is going on: the tabs that are open, and the files they have exported."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.welcome = stage, stage.welcome()
        self.tabs: set[Tab] = set()
        self.files: dict[str, Path] = {}

    def publish(self, token: str, path: Path) -> str:
        """The address of a file that a session exported."""
        self.files[token] = path
        return f"/exports/{token}/{quote(path.name)}"

    async def live(self, websocket: WebSocket) -> None:
        """One tab, from its opening to its end."""
        await websocket.accept()
        if len(self.tabs) >= self.stage.options.sessions:
            most = self.stage.options.sessions
            said = f"{most} tabs are open already, which is the limit; close one (or start with --sessions {most + 1})"
            await websocket.send_text(Error(message=said, where="sessions").model_dump_json())
            await websocket.close(_BUSY, "too many sessions")
            return
        tab = Tab(websocket, self.stage, self.welcome, self.publish)
        self.tabs.add(tab)
        try:
            await tab.run()
        except WebSocketDisconnect:
            pass  # the page has gone while something was said to it
        except Exception:  # other tabs go on
            log.exception("a session ended")
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await websocket.close(1011)
        finally:
            try:
                await tab.close()
            finally:
                for token in tab.published:
                    self.files.pop(token, None)
                self.tabs.discard(tab)

    def export(self, token: str, name: str) -> Response:
        """A file that a session exported, by its token and its name; 404 for all else."""
        path = self.files.get(token)
        if path is None or path.name != name or not path.is_file():
            return JSONResponse({"error": "there is no such export; it ends with its session"}, status_code=404)
        return FileResponse(path, filename=path.name)

    def status(self) -> dict[str, Any]:
        """How many sessions there are."""
        return {"sessions": len(self.tabs), "most": self.stage.options.sessions, "world": self.welcome.world}


def build_app(stage: Stage) -> FastAPI:
    """The application, for any ASGI server."""
    server, options = Server(stage), stage.options
    app = FastAPI(title="worldline", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_websocket_route("/live", server.live)
    app.add_api_route("/exports/{token}/{name}", server.export, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/status", server.status, methods=["GET"])
    app.mount("/", StaticFiles(directory=STATIC, html=True, check_dir=False))
    loopback = is_loopback(options.host)
    names = (*options.allow_host, *(() if loopback else (options.host,)))
    app.add_middleware(Guard, allowed=names, addresses=not loopback)
    app.state.server = server
    return app


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `UsageError` where the address is in use or is none of this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
            found.listen(64)  # a page that asks while the world is being loaded waits
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; give another --port"
        ) from error
    return found


def view(run: str | Path, options: ViewOptions) -> None:
    """Serve the page until Ctrl-C. Raises what `open_stage` and `listening` raise."""
    with listening(options.host, options.port) as place:
        say(f"opening {run}")
        stage = open_stage(run, options)
        host = f"[{options.host}]" if ":" in options.host else options.host
        config = uvicorn.Config(
            build_app(stage),
            ws="websockets-sansio",
            ws_max_size=16 * MOST_BYTES,  # of longer ones than `MOST_BYTES` the page is told; these end the connection
            ws_max_queue=8,
            ws_per_message_deflate=False,  # pictures are packed already
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=3,
        )
        say(f"worldline view: http://{host}:{place.getsockname()[1]}  (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[place])
