"""What every request to the admin page passes, and what every answer carries.

The page is asked under its own names only (a stranger's page must not reach it through a name of
its own), no request is long or slow, a form comes from the page itself, and no answer is kept,
framed, or runs a script that is not a file of the page.

Source: reliability catalogue, rows S5 to S11; OWASP ASVS 5, chapters 3 and 4.
"""

import asyncio
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES = 64 * 1024
BODY_SECONDS = 10.0

_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a form would say no Origin
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_SAFE = frozenset({"GET", "HEAD"})


class Guard:
    """ASGI middleware in front of the page.

    Args of the constructor: the application; the host names under which it may be asked; whether
    browsers come over TLS.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], *, secure: bool) -> None:
        self._app = app
        self._names = frozenset(names)
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if self._secure:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
            await send(message)

        refusal = self._refuse(scope)
        if refusal is None:
            body = await _read_body(receive)
            if body is None:
                refusal = PlainTextResponse("too long, or too slow\n", 413)
        if refusal is not None:
            await refusal(scope, receive, send_guarded)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, receive_body, send_guarded)

    def _refuse(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host = _read_name(f"//{headers.get('host', '')}")
        if host not in self._names:
            return PlainTextResponse("this page is not served under that name\n", 400)
        if scope["method"] in _SAFE:
            return None
        if scope["method"] != "POST":
            return PlainTextResponse("no such method\n", 405)
        origin = headers.get("origin")
        is_foreign = origin is not None and urlsplit(origin).netloc != headers["host"]
        if is_foreign or headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return PlainTextResponse("a form of another site\n", 403)
        if headers.get("content-encoding") is not None:
            return PlainTextResponse("no compressed forms\n", 415)
        return None


async def _read_body(receive: Receive) -> bytes | None:
    """Return the body of a request; None when it is too long, or does not come in time."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                body += bytes(message.get("body", b""))
                if len(body) > MOST_BODY_BYTES:
                    return None
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        return None


def _read_name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
