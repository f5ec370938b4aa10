"""An admin page over a bench, served from a thread of the test, and a browser without a screen."""

import http.client
import os
import re
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from dicom_node.admin.accounts import Accounts, Role
from dicom_node.admin.server import AdminServer
from dicom_node.demonstration.processes import Child
from dicom_node.settings import load
from doubles.bench import Bench

START_SECONDS = 60.0
STAPLE = "correct horse staple"
PEOPLE = {"V. Viewer": Role.VIEWER, "O. Operator": Role.OPERATOR, "A. Admin": Role.ADMIN}


class AdminUnderTest:
    """The page of a bench, while it is served.

    Attributes:
        ahead: how much later it is for the page than on the wall.
    """

    def __init__(self, bench: Bench, *overrides: str) -> None:
        self.bench = bench
        self.ahead = timedelta()
        self.configuration = load(bench.settings, (*bench.overrides, "admin.port=0", *overrides))
        self.accounts = Accounts(self.configuration.node.data_folder)
        self.server = AdminServer(self.configuration, lambda: datetime.now(UTC) + self.ahead)
        self.address = ""

    @property
    def port(self) -> int:
        port = urlsplit(self.address).port
        assert port is not None
        return port

    @contextmanager
    def served(self) -> Iterator["AdminUnderTest"]:
        for name, role in PEOPLE.items():
            self.accounts.put(name, role, STAPLE, datetime.now(UTC))
        self.address = self.server.open()
        thread = threading.Thread(target=self.server.run, name="admin page")
        thread.start()
        try:
            yield self
        finally:
            self.server.stop()
            thread.join(timeout=30)
        assert not thread.is_alive()


class AdminProcess:
    """`dicom-node admin` as a process of its own, with one account.

    Args:
        configuration: folder.
        overrides: of settings.
        log: file that takes what it prints.
        environment: beside that of the test.
    """

    PERSON = "A. Admin"

    def __init__(
        self, configuration: Path, overrides: Sequence[str], log: Path, environment: dict[str, str]
    ) -> None:
        sets = [word for each in overrides for word in ("--set", each)]
        program = str(Path(sys.executable).with_name("dicom-node"))
        self._command = [program, "admin", "--config", str(configuration), *sets]
        self._log = log
        self._environment = environment
        node = load(configuration, overrides).node
        Accounts(node.data_folder).put(self.PERSON, Role.ADMIN, STAPLE, datetime.now(UTC))

    @contextmanager
    def served(self) -> Iterator[int]:
        """Give the port where it answers."""
        child = Child(self._command, self._log, {**os.environ, **self._environment})
        child.start()
        try:
            child.wait_for(lambda: "ready admin=" in child.read_log(), START_SECONDS)
            yield int(re.findall(r"ready admin=\S+:(\d+)", child.read_log())[-1])
        finally:
            child.stop()


class Answer:
    """What came back."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read()

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """Keeps cookies, follows nothing, shows nothing.

    Args:
        port: of the page.
        tls: how the page is called over HTTPS; None: over HTTP.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self._tls = tls
        self.cookies: dict[str, str] = {}
        self.token = ""

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self._ask("GET", path, None, headers)

    def post(
        self, path: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a form, with the token of the last page unless it has one of its own."""
        body = urlencode({"token": self.token, **form})
        kind = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        return self._ask("POST", path, body, kind)

    def log_in(self, name: str, password: str = STAPLE) -> Answer:
        self.get("/login")
        answer = self.post("/login", {"name": name, "password": password})
        if answer.status == 303:
            self.get("/studies")
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        address = ("127.0.0.1", self.port)
        if self._tls is None:
            return http.client.HTTPConnection(*address, timeout=60)
        return http.client.HTTPSConnection(*address, timeout=60, context=self._tls)

    def _ask(
        self, method: str, path: str, body: str | None, headers: Mapping[str, str] | None
    ) -> Answer:
        connection = self._connect()
        kept = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        try:
            connection.request(method, path, body, {"Cookie": kept, **(headers or {})})
            answer = Answer(connection.getresponse())
        finally:
            connection.close()
        for line in answer.headers.get_all("Set-Cookie") or ():
            for name, morsel in SimpleCookie(line).items():
                self.cookies[name] = morsel.value
        if found := re.search(rb'name="token" value="([^"]+)"', answer.body):
            self.token = found[1].decode()
        return answer
