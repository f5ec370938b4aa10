"""What deploy/ starts is what `make serve` starts, from files that are there."""

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
SERVE = ["serve", "--config"]


def read_compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def read_unit():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / "dicom-node.service")
    return parser


def test_make_compose_and_unit_start_the_same():
    made = re.search(r"\$\(BIN\)/dicom-node (serve --config) ", (ROOT / "Makefile").read_text())
    image = re.search(r'ENTRYPOINT \["dicom-node"\]\nCMD (.*)', (DEPLOY / "Dockerfile").read_text())
    unit = read_unit()["Service"]["ExecStart"].split()

    assert made
    assert made[1].split() == SERVE
    assert image
    assert json.loads(image[1]) == [*SERVE, "config"]
    assert read_compose()["services"]["node"]["command"] == [*SERVE, "config"]
    assert unit[0].endswith("/dicom-node")
    assert unit[1:3] == SERVE


def test_images_are_built_from_files_that_are_there():
    text = (DEPLOY / "Dockerfile").read_text()
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    ]

    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_compose_builds_targets_of_the_dockerfile():
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.M))
    services = read_compose()["services"]

    assert {service["build"]["target"] for service in services.values()} <= targets


def test_nothing_of_the_box_listens_beyond_this_machine():
    ports = [port for one in read_compose()["services"].values() for port in one.get("ports", [])]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_pacs_of_the_box_and_shipped_configuration_know_each_other():
    orthanc = json.loads((DEPLOY / "orthanc.json").read_text())
    node = yaml.safe_load((ROOT / "config" / "node.yaml").read_text())
    pacs = node["peers"]["pacs"]

    assert (orthanc["DicomAet"], orthanc["DicomPort"]) == (pacs["ae_title"], pacs["port"])
    assert orthanc["DicomModalities"]["node"] == [
        node["ae_title"],
        node["receiver"]["host"],
        node["receiver"]["port"],
    ]


def test_unit_is_hardened():
    service = read_unit()["Service"]
    expected = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "UMask": "0077",
        "LimitCORE": "0",
        "Restart": "always",
    }

    assert {key: service.get(key) for key in expected} == expected


@pytest.mark.integration
def test_systemd_accepts_the_unit():
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")

    said = subprocess.run(
        [analyze, "verify", DEPLOY / "dicom-node.service"],
        capture_output=True,
        text=True,
        check=False,
    ).stderr

    complaints = [line for line in said.splitlines() if "is not executable" not in line]
    assert complaints == []
