import json
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from dicom_node.health import Health, HealthServer, write_metrics

WELL = Health(
    problems=(),
    counts={"jobs.queued": 2, "jobs.done": 5, "instances": 7},
    gauges={"disk_free_bytes": 1e12},
)
ILL = Health(problems=("the receiver does not run",), counts={}, gauges={})

WAITED_FOR = Health(problems=(), alerts=("7 instances are parked",), counts={}, gauges={})


@pytest.fixture
def ask() -> Iterator:
    servers = []

    def ask(health: Health, path: str) -> tuple[int, str]:
        server = HealthServer("127.0.0.1", 0, lambda: health)
        servers.append(server)
        host, port = server.start()
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    yield ask
    for server in servers:
        server.stop()


def test_metrics_name_thing_and_state() -> None:
    lines = write_metrics(WELL).splitlines()

    assert 'dicom_node_jobs{state="queued"} 2' in lines
    assert "dicom_node_instances 7" in lines
    assert "dicom_node_disk_free_bytes 1000000000000" in lines


def test_metrics_declare_each_thing_once() -> None:
    assert write_metrics(WELL).count("# TYPE dicom_node_jobs gauge") == 1


@pytest.mark.integration
def test_well_node_answers_200(ask) -> None:
    status, text = ask(WELL, "/healthz")

    assert status == 200
    assert json.loads(text) == {"status": "ok", "problems": []}


@pytest.mark.integration
def test_node_that_waits_for_a_person_is_well_and_says_so(ask) -> None:
    status, text = ask(WAITED_FOR, "/healthz")

    assert status == 200
    assert json.loads(text) == {"status": "attention", "problems": ["7 instances are parked"]}
    assert "dicom_node_alerts 1" in write_metrics(WAITED_FOR)


def fail() -> Health:
    raise ValueError("DOE^JANE")


@pytest.mark.integration
def test_node_that_cannot_say_how_it_is_says_so_and_nothing_else(capsys, caplog) -> None:
    server = HealthServer("127.0.0.1", 0, fail)
    host, port = server.start()
    try:
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5)
        with error.value as answer:
            assert (answer.code, answer.read()) == (500, b"Internal Server Error\n")
    finally:
        server.stop()

    assert capsys.readouterr() == ("", "")
    assert [each.getMessage() for each in caplog.records] == ["health.failed"]


@pytest.mark.integration
def test_client_that_leaves_at_once_prints_nothing(capsys) -> None:
    server = HealthServer("127.0.0.1", 0, lambda: WELL)
    address = server.start()
    for _ in range(20):
        with socket.create_connection(address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"GET /metrics HTTP/1.1\r\n")
    server.stop()

    assert capsys.readouterr() == ("", "")


@pytest.mark.integration
@pytest.mark.parametrize(
    "request_line", [b"DOE^JANE", b"DOE^JANE /metrics HTTP/1.1", b"GET /DOE^JANE HTTP/1.1"]
)
def test_answer_does_not_repeat_what_was_asked(request_line) -> None:
    server = HealthServer("127.0.0.1", 0, lambda: WELL)
    with socket.create_connection(server.start(), timeout=5) as client:
        client.sendall(request_line + b"\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65_536), b""))
    server.stop()

    assert answer
    assert b"JANE" not in answer


@pytest.mark.integration
def test_ill_node_answers_503_with_its_problems(ask) -> None:
    status, text = ask(ILL, "/healthz")

    assert status == 503
    assert json.loads(text)["problems"] == ["the receiver does not run"]


@pytest.mark.integration
def test_metrics_are_served(ask) -> None:
    status, text = ask(WELL, "/metrics")

    assert status == 200
    assert "dicom_node_up" in text


@pytest.mark.integration
def test_other_paths_are_not_there(ask) -> None:
    assert ask(WELL, "/../etc/passwd")[0] == 404
