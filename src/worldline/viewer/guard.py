"""Who may ask: pages of this machine's own names. A site elsewhere can make a browser send requests here, but it can
neither forge the `Origin` it sends them from nor, by a name of its own that leads here, the `Host` it sends them to.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OWN = ("localhost", "127.0.0.1", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Middleware that refuses other hosts and origins with 403, and adds the headers of `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp, *, allowed: Collection[str] = (), addresses: bool = False) -> None:
        """
        Args:
            allowed: names beside those of this machine.
            addresses: whether any IP address will do: of a server that listens to others, which no site can pose as.
        """
        self.app, self.addresses = app, addresses
        self.allowed = {name.lower().strip("[]") for name in (*OWN, *allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = self.problem(headers.get("host"), headers.getlist("origin"))
        if problem is not None:
            await self._refuse(problem, scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        await self.app(scope, receive, sending)

    def problem(self, host: str | None, origins: list[str]) -> str | None:
        """What is wrong with a request's headers, or None. Programs send no origin; browsers send it with `/live`."""
        if not self._known(f"//{host or ''}"):
            return f"this server does not answer to the name {host!r}; start it with --allow-host NAME if it should"
        if len(origins) > 1 or any(not self._known(origin, schemes=("http", "https")) for origin in origins):
            return f"pages of {', '.join(origins)[:200]!r} may not use this server (--allow-host NAME)"
        return None

    def _known(self, place: str, *, schemes: Collection[str] = ("",)) -> bool:
        try:
            parts = urlsplit(place)
            name, port = parts.hostname, parts.port
        except ValueError:
            return False
        del port  # any will do: a tunnel has another one
        if parts.scheme not in schemes or not name or parts.path or parts.query or parts.username is not None:
            return False
        if name in self.allowed:
            return True
        try:
            return self.addresses and ipaddress.ip_address(name) is not None
        except ValueError:
            return False

    async def _refuse(self, problem: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "host or origin"})
            return
        await PlainTextResponse(problem + "\n", status_code=403, headers=HEADERS)(scope, receive, send)
