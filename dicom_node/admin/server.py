"""The admin page built and served: a process of its own, with its own hands on ledger and store.

It writes to the ledger what persons decide and do, and nothing to the store but a withdrawal. It is
nice to the node: its threads run at a lower priority, so that a picture never delays reception.
"""

import asyncio
import hashlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qsl

import h11
import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route as Address
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from dicom_node.admin import words
from dicom_node.admin.accounts import Accounts
from dicom_node.admin.guard import Guard
from dicom_node.admin.pages import ROUTES, Route, Site, answer
from dicom_node.admin.pictures import Gallery
from dicom_node.admin.sessions import Lockout, Sessions
from dicom_node.errors import ConfigurationError
from dicom_node.ledger import Ledger
from dicom_node.live_rules import LiveRules
from dicom_node.settings import Configuration
from dicom_node.store import Store
from dicom_node.tls import serve_browsers

MOST_CONNECTIONS = 64
HEAD_SECONDS = 10.0
"""How long the head of a request may take; its body has as long again."""
MOST_HEAD_BYTES = 16 * 1024
NICE = 10
_ADDRESSES_OF_ONE_ACCOUNT = 4
_FOLDER = Path(__file__).parent
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class AdminServer:
    """The page, between `open` and the end of `run`.

    Args of the constructor: a configuration, a clock that gives aware times.
    """

    def __init__(self, configuration: Configuration, clock: Callable[[], datetime]) -> None:
        node = configuration.node
        self._settings = node.admin
        self._ledger = Ledger(node.ledger_url, clock)
        store = Store(node.store_folder)
        accounts = Accounts(node.data_folder)
        statics = _read_statics()
        attempts, lock = node.admin.attempts, node.admin.lock
        self._site = Site(
            configuration=configuration,
            ledger=self._ledger,
            store=store,
            rules=LiveRules(configuration),
            gallery=Gallery(self._ledger, store),
            accounts=accounts,
            sessions=Sessions(accounts, clock, idle=node.admin.idle, longest=node.admin.longest),
            account_lock=Lockout(clock, attempts=attempts, lock=lock),
            address_lock=Lockout(clock, attempts=attempts * _ADDRESSES_OF_ONE_ACCOUNT, lock=lock),
            templates=_build_templates(),
            statics=statics,
            version=_sign(statics),
            secure=node.admin.tls is not None,
            clock=clock,
        )
        self._server: uvicorn.Server | None = None
        self._socket: socket.socket | None = None

    def open(self) -> str:
        """Open the ledger and listen; return the address for a browser.

        Raises:
            ConfigurationError: the address cannot be had, or the certificate cannot be used.
            StorageError: there is no ledger, or it cannot be used.
        """
        self._ledger.open(create=False)
        settings = self._settings
        tls = None if settings.tls is None else serve_browsers(settings.tls)
        family = (
            socket.AF_INET6 if ipaddress.ip_address(settings.host).version == 6 else socket.AF_INET  # noqa: PLR2004
        )
        self._socket = listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen()  # who comes before `run` waits for it
        except OSError as error:
            self.close()
            raise ConfigurationError(
                f"node.yaml: admin : seen {settings.host} port {settings.port} "
                f"({error.strerror}), wanted an address of this machine and a port that is free"
            ) from None
        self._server = uvicorn.Server(_configure(build_app(self._site), tls))
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return f"{'https' if tls else 'http'}://{host}:{port}"

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or until `stop`."""
        if self._server is None or self._socket is None:
            raise RuntimeError("the admin page is not open")
        with suppress(OSError):
            os.nice(NICE)
        self._server.run(sockets=[self._socket])
        self.close()

    def stop(self) -> None:
        """Let `run` end."""
        if self._server is not None:
            self._server.should_exit = True

    def close(self) -> None:
        """Give ledger and socket back."""
        self._ledger.close()
        if self._socket is not None:
            self._socket.close()


def build_app(site: Site) -> ASGIApp:
    """Return the page as an ASGI application."""
    settings = site.configuration.node.admin
    app = Starlette(
        routes=[
            Address(route.path, _build_endpoint(route, site), methods=[route.method])
            for route in ROUTES
        ],
        exception_handlers={404: _tell_nothing_here, 405: _tell_nothing_here, 500: _tell_fault},
    )
    return Guard(app, {settings.host, "localhost", *settings.names}, secure=site.secure)


def _build_endpoint(route: Route, site: Site) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        form = {}
        if request.method == "POST":
            text = (await request.body()).decode("utf-8", "replace")
            form = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=20))
        return await run_in_threadpool(answer, route, site, request, form)

    return endpoint


async def _tell_nothing_here(_: Request, __: Exception) -> Response:
    return PlainTextResponse("there is nothing here\n", 404)


async def _tell_fault(_: Request, __: Exception) -> Response:
    # What went wrong is in the log, by class and place.
    return HTMLResponse("<!doctype html><title>Fault</title><p>Something failed; see the log.", 500)


def _configure(app: ASGIApp, tls: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_TimedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )


class _TimedProtocol(H11Protocol):
    """Leaves a client alone that does not come to the end of its request's head."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._rest()
        elif self._timer is None:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _build_templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(words.FILTERS)
    return templates


def _read_statics() -> dict[str, tuple[str, bytes]]:
    return {
        path.name: (_TYPES[path.suffix], path.read_bytes())
        for path in sorted((_FOLDER / "static").iterdir())
        if path.suffix in _TYPES
    }


def _sign(statics: dict[str, tuple[str, bytes]]) -> str:
    return hashlib.sha256(b"".join(content for _, content in statics.values())).hexdigest()[:12]
