"""What deploy/ starts is what `make serve` starts, from files that are there."""

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from dicom_node.node_settings import read_node
from doubles.tools import require_program

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
SERVE = ["serve", "--config"]


def read_compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def read_scale():
    return yaml.safe_load((DEPLOY / "compose.scale.yaml").read_text())


KUBERNETES = "1.37"
UNITS = ("dicom-node.service", "dicom-node-admin.service")


def read_unit(name="dicom-node.service"):
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / name)
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


def test_scaled_box_builds_targets_of_the_dockerfile_and_shows_no_port():
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.M))
    services = read_scale()["services"]

    assert {one["build"]["target"] for one in services.values() if "build" in one} <= targets
    assert not any("ports" in one for one in services.values())


def test_scaled_box_sets_what_the_node_understands(monkeypatch):
    monkeypatch.setenv("DICOM_NODE_LEDGER", "postgresql://node:pw@database/node")
    serve, _, config, *sets = read_scale()["services"]["node"]["command"]
    overrides = [word for word in sets if word != "--set"]

    node = read_node(ROOT / config, overrides)

    assert [serve, "--config"] == SERVE
    assert node.ledger_url.endswith("?sslmode=verify-full")
    assert node.executor.scheduler == f"tls://scheduler:{port_of_the_scheduler()}"
    assert node.executor.tls.certificate.parent == Path("/certificates/dask")


def port_of_the_scheduler():
    words = read_scale()["services"]["scheduler"]["command"]
    return words[words.index("--port") + 1]


@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_scaled_box_starts_dask_with_its_configuration_and_mutual_tls(role):
    service = read_scale()["services"][role]
    words = service["command"]

    assert service["entrypoint"] == ["dask", role]
    assert service["environment"]["DASK_CONFIG"].endswith("deploy/dask.yaml")
    assert "--no-dashboard" in words
    assert {"--tls-ca-file", "--tls-cert", "--tls-key"} <= set(words)
    assert role == "scheduler" or words[words.index("--nthreads") + 1] == "1"


def test_dask_is_configured_to_run_nothing_twice_and_to_answer_nobody():
    settings = yaml.safe_load((DEPLOY / "dask.yaml").read_text())["distributed"]

    assert settings["scheduler"]["allowed-failures"] == 0
    assert settings["scheduler"]["http"]["routes"] == []
    assert settings["worker"]["http"]["routes"] == []


@pytest.mark.integration
def test_certificates_of_the_cluster_are_made_once_and_fit(tmp_path):
    openssl = require_program("openssl", "openssl")
    for _ in range(2):
        subprocess.run([DEPLOY / "make-certificates", tmp_path, "db.site"], check=True)

    for name in ("dask/scheduler", "dask/worker", "dask/node", "database/server"):
        authority = tmp_path / name.split("/")[0] / "authority.pem"
        command = [openssl, "verify", "-CAfile", authority, tmp_path / f"{name}.pem"]
        subprocess.run(command, check=True, capture_output=True)
        assert (tmp_path / f"{name}.key").stat().st_mode & 0o077 == 0
    host = ["x509", "-noout", "-checkhost", "db.site", "-in", tmp_path / "database" / "server.pem"]
    said = subprocess.run([openssl, *host], check=True, capture_output=True, text=True).stdout
    assert "does match" in said


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


@pytest.mark.parametrize("unit", UNITS)
def test_unit_is_hardened(unit):
    service = read_unit(unit)["Service"]
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
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_unit(unit):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")

    said = subprocess.run(
        [analyze, "verify", DEPLOY / unit],
        capture_output=True,
        text=True,
        check=False,
    ).stderr

    complaints = [line for line in said.splitlines() if "is not executable" not in line]
    assert complaints == []


@pytest.mark.integration
def test_alerts_fire_when_they_should():
    promtool = require_program("promtool", "prometheus")

    subprocess.run([promtool, "check", "rules", DEPLOY / "alerts.yaml"], check=True)
    subprocess.run([promtool, "test", "rules", ROOT / "tests" / "alerts.yaml"], check=True)


def test_each_alert_says_what_to_do():
    [group] = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]

    assert all({"summary", "do"} == rule["annotations"].keys() for rule in group["rules"])
    assert {rule["labels"]["severity"] for rule in group["rules"]} == {"page", "ticket"}


@pytest.mark.parametrize("files", [(read_compose,), (read_compose, read_scale)])
def test_compose_files_follow_the_specification(files):
    box = merge(read() for read in files)

    assert find_compose_faults(box) == ""

    box["services"]["node"]["depend_on"] = []
    assert "depend_on" in find_compose_faults(box)


def merge(documents):
    """Lay one file over another as compose does, as far as ours ask for it: mappings are joined."""
    box = {}
    for document in documents:
        for key, value in document.items():
            is_joined = isinstance(value, dict) and isinstance(box.get(key), dict)
            box[key] = merge((box[key], value)) if is_joined else value
    return box


def find_compose_faults(document):
    try:
        PyCompose.from_json(json.dumps(document)).validate()
    except ValueError as error:
        return str(error)
    return ""


def test_every_object_follows_the_schema_of_kubernetes():
    for document in read_kubernetes().values():
        kubernetes_validate.validate(document, KUBERNETES, strict=True)

        document["spec"]["replica"] = 1
        with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def read_kubernetes():
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {(each["kind"], each["metadata"]["name"]): each for each in documents}


def read_pod():
    return read_kubernetes()["StatefulSet", "dicom-node"]["spec"]["template"]["spec"]


def test_kubernetes_runs_one_node_that_keeps_what_it_was_sent():
    objects = read_kubernetes()
    claim = read_pod()["volumes"][0]["persistentVolumeClaim"]["claimName"]

    assert objects["StatefulSet", "dicom-node"]["spec"]["replicas"] == 1
    assert ("PersistentVolumeClaim", claim) in objects
    assert read_pod()["containers"][0]["args"][:2] == SERVE
    assert read_pod()["containers"][0]["volumeMounts"][0]["mountPath"] == "/opt/dicom-node/data"


def test_pod_may_do_nothing_beside_its_work():
    [container] = read_pod()["containers"]
    made = re.search(r"useradd --uid (\d+) --gid (\d+) ", (DEPLOY / "Dockerfile").read_text())
    context = read_pod()["securityContext"]

    assert read_pod()["automountServiceAccountToken"] is False
    assert context["runAsNonRoot"] is True
    assert made
    assert [context["runAsUser"], context["runAsGroup"]] == [int(each) for each in made.groups()]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_kubernetes_asks_and_opens_ports_that_the_node_has(tmp_path):
    """By the settings that the head of the file tells an admin to write."""
    text = (DEPLOY / "kubernetes.yaml").read_text()
    head = "\n".join(line[5:] for line in text.splitlines() if line.startswith("#     "))
    told = yaml.safe_load(head.replace(", ...", ', allow_plain: ["10.1.2.0/24"]'))
    shipped = yaml.safe_load((ROOT / "config" / "node.yaml").read_text())
    receiver = shipped["receiver"] | told["receiver"]
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(shipped | told | {"receiver": receiver}))
    node = read_node(tmp_path)
    [container] = read_pod()["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    named = {each["name"] for each in container["env"]}
    services = [each for (kind, _), each in read_kubernetes().items() if kind == "Service"]

    assert ports == {"dicom": node.receiver.port, "web": node.web.port}
    assert container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "web"}
    assert {port["targetPort"] for each in services for port in each["spec"]["ports"]} == set(ports)
    assert named == {node.ledger.dsn_env}


def test_network_policy_lets_named_peers_in_and_nobody_else():
    policy = read_kubernetes()["NetworkPolicy", "dicom-node"]["spec"]

    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])
    assert "0.0.0.0/0" not in (DEPLOY / "kubernetes.yaml").read_text()
