"""The node's own account of itself over HTTP: /healthz for a supervisor, /metrics for Prometheus.

Counts and states only, read when they are asked for; no patient attribute and no UID. It listens on
the address of `web` in node.yaml, which is loopback unless an admin says otherwise.

Source: the Prometheus text exposition format, version 0.0.4.
"""

import http.server
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from dicom_node import __version__

REQUEST_SECONDS = 10
"""How long a client may take to ask; a slow one must not hold a thread."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the node is.

    Attributes:
        problems: sentences for the admin; empty when all is well.
        alerts: sentences for a person about what waits, while the node itself is well.
        counts: `thing.state` or `thing` to how many, as `Ledger.counts` gives them.
        gauges: name, with its unit at the end, to a measured number.
    """

    problems: tuple[str, ...]
    alerts: tuple[str, ...] = ()
    counts: Mapping[str, int]
    gauges: Mapping[str, float]


class HealthServer:
    """Answers the two questions until it is stopped.

    Args:
        host: address to listen on.
        port: 0 is any free one.
        read_health: called once per request, in the request's thread.
    """

    def __init__(self, host: str, port: int, read_health: Callable[[], Health]) -> None:
        self._address = (host, port)
        self._read_health = read_health
        self._server: _Server | None = None

    def start(self) -> tuple[str, int]:
        """Listen, and return host and port.

        Raises:
            OSError: the address cannot be had.
        """
        read_health = self._read_health

        class Door(_Door):
            ask = staticmethod(read_health)

        self._server = _Server(self._address, Door)
        threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="health", daemon=True
        ).start()
        return self._address[0], self._server.server_address[1]

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def write_metrics(health: Health) -> str:
    """Return `health` in the text format of Prometheus."""
    return "\n".join(_metric_lines(health)) + "\n"


def _metric_lines(health: Health) -> Iterator[str]:
    yield "# TYPE dicom_node_up gauge"
    yield f'dicom_node_up{{version="{__version__}"}} {0 if health.problems else 1}'
    yield "# TYPE dicom_node_alerts gauge"
    yield f"dicom_node_alerts {len(health.alerts)}"
    seen: set[str] = set()
    for key, count in sorted(health.counts.items()):
        name, _, state = key.partition(".")
        if name not in seen:
            seen.add(name)
            yield f"# TYPE dicom_node_{name} gauge"
        yield (
            f'dicom_node_{name}{{state="{state}"}} {count}'
            if state
            else (f"dicom_node_{name} {count}")
        )
    for name, number in sorted(health.gauges.items()):
        yield f"# TYPE dicom_node_{name} gauge"
        yield f"dicom_node_{name} {number:.15g}"


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        # It has left; the standard library would print the whole traceback.
        logger.debug("health.client_lost", exc_info=True)


class _Door(http.server.BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS
    server_version = "dicom_node"
    sys_version = ""
    ask: Callable[[], Health]

    def do_GET(self) -> None:
        try:
            self._tell()
        except ConnectionError:
            raise
        except Exception:
            logger.exception("health.failed")
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _tell(self) -> None:
        if self.path == "/healthz":
            health = self.ask()
            word = "failing" if health.problems else "attention" if health.alerts else "ok"
            body = {"status": word, "problems": health.problems + health.alerts}
            status = HTTPStatus.SERVICE_UNAVAILABLE if health.problems else HTTPStatus.OK
            self._answer(status, "application/json", json.dumps(body) + "\n")
        elif self.path == "/metrics":
            text = write_metrics(self.ask())
            self._answer(HTTPStatus.OK, "text/plain; version=0.0.4", text)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "ask for /healthz or /metrics\n")

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        # The standard library would repeat what was asked.
        status = HTTPStatus(code)
        self._answer(status, "text/plain", f"{status.phrase}\n")

    def log_message(self, format: str, *args: object) -> None:
        # The request line is a stranger's text, and a probe asks every few seconds.
        logger.debug("health.request")
