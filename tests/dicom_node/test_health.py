import json
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
