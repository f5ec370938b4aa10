"""An admin page over a bench, served from a thread of the test, and a browser without a screen."""

import http.client
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie
from urllib.parse import urlencode, urlsplit

from dicom_node.admin.accounts import Accounts, Role
from dicom_node.admin.server import AdminServer
from dicom_node.settings import load
from doubles.bench import Bench

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
    """Keeps cookies, follows nothing, shows nothing."""

    def __init__(self, port: int) -> None:
        self.port = port
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

    def _ask(
        self, method: str, path: str, body: str | None, headers: Mapping[str, str] | None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
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
