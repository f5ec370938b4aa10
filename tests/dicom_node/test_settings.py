import hashlib
import shutil
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml
from pydicom.uid import UID_dictionary

from dicom_node import settings
from dicom_node.errors import ConfigurationError
from dicom_node.node_settings import NodeSettings, parse_node, read_node
from dicom_node.rules import Routing
from dicom_node.storage_classes import STORAGE_CLASSES
from dicom_node.strict_yaml import read_document

SHIPPED = Path(__file__).parents[2] / "config"

SMALLEST = {
    "ae_title": "NODE",
    "data_folder": "data",
    "models_folder": "models",
    "receiver": {"storage_classes": {"image": ["MRImageStorage"]}},
}
"""What an admin cannot leave out."""


def parse(*overrides: str, **changes: object) -> NodeSettings:
    text = yaml.safe_dump(SMALLEST | changes).encode()
    return parse_node(text, Path("/etc/node"), overrides)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped configuration, to be spoilt."""
    for name in settings.FILES:
        shutil.copy(SHIPPED / name, tmp_path)
    return tmp_path


def test_shipped_configuration_is_right_and_heard_on_this_machine_only():
    node = settings.load(SHIPPED).node

    assert (node.ae_title, node.receiver.host, node.receiver.port) == (
        "DICOM_NODE",
        "127.0.0.1",
        11112,
    )
    assert node.receiver.tls is None
    assert node.receiver.allow_plain == ()
    pacs, modality = node.peers["pacs"], node.peers["modality"]
    assert (pacs.ae_title, pacs.host, pacs.port) == ("ORTHANC", "127.0.0.1", 4242)
    assert pacs.roles == {"send", "receive", "query"}
    assert (modality.ae_title, modality.roles) == ("STORESCU", {"receive"})
    assert modality.address == ip_network("127.0.0.1/32")
    assert node.installation is None


def test_shipped_file_shows_every_default():
    """node.yaml says that what is left out has the value shown."""
    shown = yaml.safe_load((SHIPPED / "node.yaml").read_text())
    needed = {name: shown[name] for name in SMALLEST if name != "receiver"}
    needed["receiver"] = {"storage_classes": shown["receiver"]["storage_classes"]}
    needed["peers"] = shown["peers"]

    left_out = parse_node(yaml.safe_dump(needed).encode(), SHIPPED)

    assert left_out == read_node(SHIPPED)


def test_storage_classes_are_those_of_the_standard():
    standard = {keyword: uid for uid, (*_, keyword) in UID_dictionary.items()}

    assert {keyword: standard[keyword] for keyword in STORAGE_CLASSES} == STORAGE_CLASSES


def test_storage_classes_come_out_as_uids():
    classes = {"image": ["CTImageStorage"], "passed_over": ["SegmentationStorage"]}

    node = parse(receiver={"storage_classes": classes})

    assert node.receiver.storage_classes.all == (
        "1.2.840.10008.5.1.4.1.1.2",
        "1.2.840.10008.5.1.4.1.1.66.4",
    )


def test_nobody_is_a_peer_by_default():
    assert parse().peers == {}


def test_durations_and_sizes_are_read_with_their_units():
    node = parse(
        "assembly.quiet_period=500 ms",
        "delivery.give_up_after=7 d",
        "receiver.limits.pdu=64KiB",
    )

    assert node.assembly.quiet_period == timedelta(milliseconds=500)
    assert node.delivery.give_up_after == timedelta(days=7)
    assert node.receiver.limits.pdu == 65_536


def test_relative_folders_start_at_the_configuration():
    node = parse("models_folder=/srv/models", "data_folder=../data")

    assert node.data_folder == Path("/etc/data")
    assert node.models_folder == Path("/srv/models")
    assert node.store_folder == Path("/etc/data/store")
    assert node.ledger_url == "sqlite:////etc/data/ledger.sqlite"


def test_relative_certificates_start_at_the_configuration():
    files = {"certificate": "node.pem", "key": "node.key", "ca": "/etc/ssl/hospital.pem"}

    tls = parse(receiver={**SMALLEST["receiver"], "tls": files}).receiver.tls

    assert (tls.certificate, tls.ca) == (Path("/etc/node/node.pem"), Path("/etc/ssl/hospital.pem"))


def test_relative_certificates_of_the_cluster_start_at_the_configuration():
    files = {"certificate": "node.pem", "key": "node.key", "ca": "/etc/ssl/cluster.pem"}

    node = parse(
        ledger={"kind": "postgresql", "dsn_env": "DSN"},
        executor={"kind": "dask", "scheduler": "tls://dask:8786", "tls": files},
    )

    tls = node.executor.tls
    assert (tls.certificate, tls.ca) == (Path("/etc/node/node.pem"), Path("/etc/ssl/cluster.pem"))


def test_override_goes_over_the_file():
    node = parse("receiver.port=0", "peers.pacs={ae_title: A, roles: [send], host: h, port: 104}")

    assert node.receiver.port == 0
    assert node.peers["pacs"].port == 104


@pytest.mark.parametrize(
    "opening",
    [
        {"host": "0.0.0.0", "allow_plain": ["10.1.2.0/24"]},  # noqa: S104 - what is tested
        {"host": "::", "tls": {"certificate": "a", "key": "b", "ca": "c"}},
        {"host": "127.0.0.2"},
        {"host": "::1"},
    ],
)
def test_address_may_be_opened_on_purpose(opening):
    assert parse(receiver=SMALLEST["receiver"] | opening).receiver.host == opening["host"]


CALLED = "peers.pacs={ae_title: A, host: h, port: 104"
PEER = "peers.scanner={ae_title: A, address: 10.1.2.3, roles: [receive]}"

PIN = ":".join(["ab"] * 32)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["receiver.host=0.0.0.0"],
            "receiver : wanted tls, or an allow_plain that names the "
            "networks that may talk in plain, because 0.0.0.0 can be reached from other machines",
        ),
        (["receiver.host=localhost"], 'receiver.host : seen "localhost", wanted an IP address'),
        (["receiver.port=70000"], "receiver.port : seen 70000, wanted less than or equal to 65535"),
        (["receiver.port='104'"], 'receiver.port : seen "104", wanted a valid integer'),
        (["receiver.port=true"], "receiver.port : seen true, wanted a valid integer"),
        (["receiver.prt=104"], "receiver.prt : seen 104, wanted no such key"),
        (
            ["receiver.allow_plain=[10.1.2.3/24]"],
            'receiver.allow_plain.0 : seen "10.1.2.3/24", wanted an address such as 10.1.2.3',
        ),
        (["receiver.allow_plain=[10]"], "receiver.allow_plain.0 : seen 10, wanted an address"),
        (
            ["receiver.storage_classes.image=[]"],
            "receiver.storage_classes.image : seen an empty list, wanted",
        ),
        (
            ["receiver.storage_classes.passed_over=[EncapsulatedPDFStorage]"],
            'receiver.storage_classes.passed_over.0 : seen "EncapsulatedPDFStorage", wanted the '
            "keyword",
        ),
        (
            ["receiver.storage_classes.passed_over=[MRImageStorage]"],
            "receiver.storage_classes : wanted each storage class in one of",
        ),
        (["receiver.limits.depth=0"], "receiver.limits.depth : seen 0, wanted greater than"),
        (["receiver.limits.pdu=65536"], "receiver.limits.pdu : seen 65536, wanted a size such as"),
        (["ae_title=SEVENTEEN_LETTERS"], 'ae_title : seen "SEVENTEEN_LETTERS", wanted an AE title'),
        (["ae_title=''"], 'ae_title : seen "", wanted an AE title'),
        (["ae_title='A\\B'"], "wanted an AE title: 1 to 16 ASCII characters, no backslash"),
        (["ae_title=' A'"], 'ae_title : seen " A", wanted an AE title'),
        (["ae_title=7"], "ae_title : seen 7, wanted an AE title"),
        (["installation=seven"], 'installation : seen "seven", wanted a valid UUID'),
        (["assembly.quiet_period=60"], "assembly.quiet_period : seen 60, wanted a duration such"),
        (["assembly.quiet_period=1 week"], 'quiet_period : seen "1 week", wanted a duration such'),
        (["dispatch.attempts=0"], "dispatch.attempts : seen 0, wanted greater than or equal to 1"),
        (["delivery.jitter=2"], "delivery.jitter : seen 2, wanted less than or equal to 1"),
        (
            ["ledger.kind=mysql"],
            "ledger : seen a section, wanted as its kind one of 'sqlite', 'postgresql'",
        ),
        (["ledger={kind: sqlite, path: x}"], 'ledger.path : seen "x", wanted no such key'),
        (["ledger={kind: postgresql}"], "ledger.dsn_env : seen nothing, wanted a value"),
        (
            ["ledger={kind: postgresql, dsn_env: my-dsn}"],
            'ledger.dsn_env : seen "my-dsn", wanted',
        ),
        (["executor={kind: dask}"], "executor.scheduler : seen nothing, wanted a value"),
        (
            ["executor={kind: dask, scheduler: 'tcp://127.0.0.1:8786'}"],
            "wanted ledger.kind: postgresql, because workers of Dask cannot share a file",
        ),
        (
            ["executor={kind: dask, scheduler: 'tls://dask:8786'}"],
            "executor : wanted tls, because its scheduler is called with TLS",
        ),
        (
            ["executor={kind: dask, scheduler: 'tcp://dask:8786'}"],
            "executor : wanted a scheduler with tls://, because it is on",
        ),
        (
            [
                "executor={kind: dask, scheduler: 'tcp://[::1]:1',"
                " tls: {certificate: a, key: b, ca: c}}"
            ],
            "executor : wanted a scheduler with tls://, because there is",
        ),
        (
            ["executor={kind: dask, scheduler: 'dask:8786'}"],
            'executor.scheduler : seen "dask:8786", wanted',
        ),
        (
            ["executor={kind: dask, scheduler: 'tcp://localhost:1', resources: {GPU: 0}}"],
            "executor.resources.GPU : seen 0, wanted greater than 0",
        ),
        (["executor.workers=0"], "executor.workers : seen 0, wanted greater than"),
        (
            ["web.host=0.0.0.0"],
            "web : wanted allow_plain: true, because 0.0.0.0 can be reached",
        ),
        (["web.allow_plain=yes"], 'web.allow_plain : seen "yes", wanted a valid boolean'),
        (["peers.PACS={ae_title: A, roles: [send]}"], "peers.PACS"),
        (["peers.pacs={ae_title: A}"], "peers.pacs.roles : seen nothing, wanted a value"),
        (
            ["peers.pacs={ae_title: A, roles: []}"],
            "peers.pacs.roles : seen an empty list, wanted",
        ),
        (
            ["peers.pacs={ae_title: A, roles: [sned]}"],
            "peers.pacs.roles.0 : seen \"sned\", wanted 'send', 'receive', 'echo', 'query', "
            "'notify' or 'worklist'",
        ),
        (
            ["peers.pacs={ae_title: A, roles: [receive]}"],
            "peers.pacs : wanted address, because its roles let it call",
        ),
        (
            ["peers.pacs={ae_title: A, host: h, roles: [send]}"],
            "peers.pacs : wanted host and port, because its roles let this",
        ),
        (
            ["peers.pacs={ae_title: A, host: h, port: 0, roles: [send]}"],
            "peers.pacs.port : seen 0, wanted greater than or equal to 1",
        ),
        (
            ["peers.pacs={ae_title: A, host: 'a b', port: 104, roles: [send]}"],
            "peers.pacs.host : seen",
        ),
        (
            ["peers.pacs={ae_title: A, host: h, port: 104, tls: true, roles: [send]}"],
            "wanted receiver.tls, because peers.pacs is called with TLS",
        ),
        (
            ["peers.pacs={ae_title: A, address: 10.1.2.3, roles: [receive], commitment: query}"],
            "peers.pacs : wanted the role send, because it is asked for a",
        ),
        (
            [f"{CALLED}, roles: [send], commitment: query}}"],
            "peers.pacs : wanted the role query, because it is asked what",
        ),
        (
            [f"{CALLED}, roles: [send], commitment: storage_commitment}}"],
            "peers.pacs : wanted address, because its commitment may come",
        ),
        (
            [f"{CALLED}, roles: [send], commitment: yes}}"],
            "peers.pacs.commitment : seen \"yes\", wanted 'storage_commitment', 'query' or 'none'",
        ),
        (
            [PEER, "peers.other={ae_title: A, address: 10.1.0.0/16, roles: [echo]}"],
            "peers : wanted scanner and other with another AE title or addr",
        ),
        (
            ["receiver.allow_plain=[10.0.0.0/8, 0.0.0.0/1]"],
            "receiver : wanted an allow_plain of your own networks, none",
        ),
        (
            ["peers.pacs={ae_title: A, address: '::/0', roles: [echo]}"],
            "peers.pacs : wanted certificates, or an address no wider than",
        ),
        (
            ["peers.pacs={ae_title: A, address: 10.1.2.3, roles: [echo], certificates: [AB:CD]}"],
            'peers.pacs.certificates.0 : seen "AB:CD", wanted 32 pairs of hexadecimal digits',
        ),
        (
            [f"{PEER[:-1]}, certificates: [{PIN}]}}"],
            "wanted receiver.tls, because peers.scanner has to show a certificate",
        ),
        (
            [f"{CALLED}, roles: [send], certificates: [{PIN}]}}"],
            "peers.pacs : wanted tls: true, because it shows no certificate",
        ),
        (["receiver.port"], "override: seen 'receiver.port', wanted key=value"),
        (["=3"], "override: seen '=3', wanted key=value"),
        (["ae_title.x=3"], "override: ae_title.x : seen a key below a value, wanted a setting"),
        (["receiver.port=["], "override: receiver.port: line 1: "),
    ],
)
def test_mistake_in_node_yaml_is_told(overrides, message):
    with pytest.raises(ConfigurationError) as refused:
        parse(*overrides)

    assert message in str(refused.value)
    assert str(refused.value).startswith(("node.yaml: ", "override: "))


@pytest.mark.parametrize(
    "written",
    [
        "ledger={kind: postgresql, dsn: 'postgresql://node:hunter2@db/ledger'}",
        "ledger={kind: postgresql, dsn_env: 'postgresql://node:hunter2@db/ledger'}",
        "ledger={kind: sqlite, dsn: 'postgresql://node:hunter2@db/ledger'}",
        "ledger=postgresql://node:hunter2@db/ledger",
    ],
)
def test_secret_in_the_file_is_refused_and_not_repeated(written):
    with pytest.raises(ConfigurationError) as refused:
        parse(written)

    told = str(refused.value)
    assert "hunter2" not in told
    assert "sqlite" in written or "=postgresql" in written or "NAME of the environment" in told


@pytest.mark.parametrize(
    ("dsn", "url"),
    [
        ("postgresql://node:pw@127.0.0.1:5433/ledger", None),
        ("postgresql://node@/ledger?host=/run/postgresql", None),
        ("postgresql://node:pw@db.site/ledger?sslmode=disable", None),
        (
            "postgresql://node:p%40w@db.site/ledger",
            "postgresql://node:p%40w@db.site/ledger?sslmode=verify-full",
        ),
        (
            "postgresql://node@10.1.2.3/ledger?sslrootcert=/etc/ca.pem",
            "postgresql://node@10.1.2.3/ledger?sslrootcert=/etc/ca.pem&sslmode=verify-full",
        ),
    ],
)
def test_database_beyond_this_machine_is_called_with_tls(dsn, url, monkeypatch):
    monkeypatch.setenv("LEDGER_DSN", dsn)

    assert parse("ledger={kind: postgresql, dsn_env: LEDGER_DSN}").ledger_url == (url or dsn)


@pytest.mark.parametrize("dsn", [None, "", "host=db password=hunter2", "mysql://u:hunter2@db/x"])
def test_environment_that_says_no_database_is_told_without_what_it_says(dsn, monkeypatch):
    monkeypatch.delenv("LEDGER_DSN", raising=False)
    if dsn is not None:
        monkeypatch.setenv("LEDGER_DSN", dsn)
    node = parse("ledger={kind: postgresql, dsn_env: LEDGER_DSN}")

    with pytest.raises(ConfigurationError, match="LEDGER_DSN, wanted postgresql://") as refused:
        _ = node.ledger_url

    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", SMALLEST)
def test_what_has_no_safe_default_must_be_written(name):
    text = yaml.safe_dump({key: SMALLEST[key] for key in SMALLEST if key != name}).encode()

    with pytest.raises(ConfigurationError, match=f"node.yaml: line 1: {name} : seen nothing"):
        parse_node(text, Path())


def test_a_certificate_is_named_by_its_fingerprint_in_any_case():
    files = "receiver.tls={certificate: a, key: b, ca: c}"
    peer = f"{{ae_title: A, address: 0.0.0.0/0, roles: [receive], certificates: [{PIN}]}}"

    assert parse(files, f"peers.pacs={peer}").peers["pacs"].certificates == (PIN.upper(),)


def test_peers_with_one_title_are_told_apart_by_address():
    node = parse(PEER, "peers.other={ae_title: A, address: 10.1.2.4, roles: [receive]}")

    assert list(node.peers) == ["scanner", "other"]


@pytest.mark.parametrize("name", settings.FILES)
def test_every_file_must_be_there(folder, name):
    (folder / name).unlink()

    with pytest.raises(ConfigurationError, match=f"{name}: seen no readable file"):
        settings.load(folder)


@pytest.mark.parametrize("name", settings.FILES)
def test_unknown_key_in_any_file_is_told(folder, name):
    with (folder / name).open("a") as file:
        file.write("\nsurprise: 1\n")

    with pytest.raises(
        ConfigurationError, match=rf"{name}: line \d+: surprise : seen 1, wanted no such key"
    ):
        settings.load(folder)


def test_keyword_that_no_header_is_read_for_is_told_with_its_line_and_the_nearest(folder):
    text = (folder / "routing.yaml").read_text()
    (folder / "routing.yaml").write_text(text.replace("keyword: Modality,", "keyword: Modalty,", 1))
    line = 1 + text[: text.index("keyword: Modality,")].count("\n")

    with pytest.raises(
        ConfigurationError, match=rf'line {line}: .*seen "Modalty", .* nearest is Modality'
    ):
        settings.load(folder)


def test_rule_that_sends_to_a_stranger_is_told(folder):
    text = (folder / "node.yaml").read_text()
    (folder / "node.yaml").write_text(text.replace("  pacs:\n", "  archive:\n"))

    with pytest.raises(
        ConfigurationError, match=r"routing.yaml: line \d+: rules.brain.*'pacs' is no peer"
    ):
        settings.load(folder)


def test_mistakes_of_all_files_are_told_at_once(folder):
    for name in settings.FILES:
        with (folder / name).open("a") as file:
            file.write("\nsurprise: 1\n")

    with pytest.raises(ConfigurationError) as refused:
        settings.load(folder)

    told = str(refused.value).splitlines()
    assert [line.split(":")[0] for line in told] == list(settings.FILES)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{keyword: Modality, equals: MR}", None),
        ("{keyword: Modality, equals: [MR]}", "any_series.equals : wanted a"),
        ("{keyword: 5, equals: MR}", "any_series.keyword : seen 5, wanted a DICOM"),
        ("{keyword: [Modality, 5], equals: MR}", "any_series.keyword.1 : seen 5, wanted a valid s"),
        (
            "{keyword: Modalty, equals: MR}",
            'any_series.keyword : seen "Modalty", wanted a DICOM keyword',
        ),
        ("{keyword: Modality, equal: MR}", 'any_series.equal : seen "MR", wanted no such key'),
        ("{keyword: Modality}", "a condition needs exactly one of equals"),
        ("{keyword: Modality, equals: }", "wanted a value for equals, or no such key"),
        ("{keyword: Modality, equals: MR, contains: MR}", "seen: equals, contains"),
        ("{any_of: [{keyword: Modality, at_least: x}]}", "any_series.any_of.0.at_least : seen"),
        ("{keyword: EchoTime, one_of: [true]}", "any_series.one_of.0 : seen true, wanted a text"),
    ],
)
def test_mistake_in_a_condition_is_one_message_with_its_line(folder, written, told):
    (folder / "routing.yaml").write_text(f"""rules:
  - name: brain
    says: a brain
    owner: site
    mode: shadow
    priority: 1
    anatomy: BRAIN
    expects: [{{slot: T1w}}]
    study:
      any_series: {written}
""")

    if told is None:
        settings.load(folder)
        return
    with pytest.raises(ConfigurationError) as refused:
        settings.load(folder)

    (line,) = str(refused.value).splitlines()
    assert line.startswith("routing.yaml: line 10: rules.brain.study.any_series")
    assert told in line


@pytest.mark.parametrize(
    ("written", "line", "told"),
    [
        ("quality: {spacing_at_most: 6}", 13, "quality.spacing_at_most : seen 6, wanted no such"),
        ("quality: {spacing_at_most_mm: 0}", 13, "quality.spacing_at_most_mm : seen 0, wanted gr"),
        ("quality: {planes: [axial, up]}", 13, "quality.planes.1 : seen \"up\", wanted 'axial'"),
        (
            "quality: {planes: []}",
            13,
            "quality.planes : seen an empty list, wanted at least one value",
        ),
        ("quality: {dimension: 4D}", 13, "quality.dimension : seen \"4D\", wanted '2D' or '3D'"),
        ("scanner_synthetic: counts", 13, "wanted 'fills' or 'passed_over'"),
        ("model: []", 15, "makes.0.model : wanted the id of a model"),
        ("model: 5", 15, "makes.0.model : seen 5, wanted the id of a model"),
        ("when: [gone]", 15, "makes.0.when.0 : seen \"gone\", wanted 'missing'"),
        ("where: {T1w: [there]}", 15, 'makes.0.where.T1w.0 : seen "there", wanted'),
        ("where: {T1w: []}", 15, "makes.0.where.T1w : seen an empty list, wanted"),
        ("where: {T1w: present}", 15, 'makes.0.where.T1w : seen "present", wanted a valid'),
        ("where: {FLAIR: [missing]}", 15, "makes.0 : wanted the states of"),
        ("age: {at_least: x}", 15, 'makes.0.age.at_least : seen "x", wanted a valid number'),
        ("age: {at_least: 9, at_most: 8}", 15, "wanted at_least not above at_most (seen 9, 8)"),
        ("age: {unknown: maybe}", 15, "makes.0.age.unknown : seen \"maybe\", wanted 'refuse'"),
        ("needs: {coverage_at_least_mm: -1}", 15, "makes.0.needs.coverage_at_least_mm : seen -1"),
        (
            "unless: [{when: {keyword: Modality, equals: MR}}]",
            15,
            "unless.0.because : seen nothing",
        ),
        ("ask: {}", 18, "ask.peer : seen nothing, wanted a value"),
        ("ask: {peer: pacs, when_silent: cry}", 18, "seen \"cry\", wanted 'wait', 'go_on' or"),
        ("ask: {peer: pacs, siblings_within_days: -1}", 18, "siblings_within_days : seen -1"),
        ("ask: {peer: pacs, fetch: 'yes'}", 18, 'ask.fetch : seen "yes", wanted a valid boolean'),
        ("degraded: {keyword: Series, has_word: [x]}", 19, 'degraded.keyword : seen "Series"'),
    ],
)
def test_mistake_in_a_rule_is_one_message_with_its_line(written, line, told):
    with pytest.raises(ConfigurationError) as refused:
        read_document(write_rule(written, line).encode(), "routing.yaml").check(Routing)

    (message,) = str(refused.value).splitlines()
    assert message.startswith(f"routing.yaml: line {line}: ")
    assert told in message


@pytest.mark.parametrize(
    ("written", "line", "told"),
    [
        (
            "or_else: [T9]",
            13,
            "expects.1.or_else.0 : seen 'T9', wanted a contrast of contrasts.yaml",
        ),
        ("where: {T1c: [present]}", 15, "makes.0.where.T1c : 'T1c' is no slot of the rule"),
        ("ask: {peer: nobody}", 18, "ask.peer : 'nobody' is no peer of node.yaml with the role q"),
    ],
)
def test_name_in_a_rule_that_nobody_knows_is_told_with_its_line(folder, written, line, told):
    (folder / "routing.yaml").write_text(write_rule(written, line))

    with pytest.raises(ConfigurationError) as refused:
        settings.load(folder)

    (message,) = str(refused.value).splitlines()
    assert message.startswith(f"routing.yaml: line {line}: ")
    assert told in message


def write_rule(written: str, line: int) -> str:
    """Return a routing.yaml in which a key stands on one line."""
    keys = {13: "", 15: "model: m", 18: "", 19: ""} | {line: written}
    model = "" if "model" in keys[15] else "model: m,"
    return f"""rules:
  - name: brain
    study:
      any_series: {{keyword: Modality, equals: MR}}
    says: a brain
    owner: site
    mode: shadow
    priority: 1
    anatomy: BRAIN
    send_to: []
    expects:
      - {{slot: T1w}}
      - {{slot: FLAIR, {keys[13]}}}
    makes:
      - {{{model} {keys[15]},
         target: FLAIR,
         sources: [T1w]}}
    {keys[18]}
{keys[19]}
"""


def test_contrast_agent_is_asked_for_in_research_mode_only(folder):
    routing = (folder / "routing.yaml").read_text()
    text = routing.replace(
        "{target: FLAIR, sources: [T2w, T1w, T1c]", "{target: T1c, sources: [T1w]"
    )
    (folder / "routing.yaml").write_text(text)
    models = folder / "models.yaml"
    for never_make, research, told in (
        ("[T1c]", "[]", "T1c may never be made"),
        ("[]", "[]", "T1c shows a contrast agent, which is never invented"),
        ("[T1c]", "[T1c]", "T1c in one of never_make and research"),
    ):
        models.write_text(f"states: [approved]\nnever_make: {never_make}\nresearch: {research}\n")
        with pytest.raises(ConfigurationError, match=told):
            settings.load(folder)

    models.write_text("states: [approved]\nresearch: [T1c]\n")
    assert settings.load(folder).models.research == ("T1c",)


@pytest.mark.parametrize("target", ["FDG PET", "PERF", "CT perfusion"])
def test_what_tissue_does_is_asked_for_in_research_mode_only(folder, target):
    routing = (folder / "routing.yaml").read_text()
    wanted = f"{{target: {target}, sources: [T1w]"
    text = routing.replace("{target: FLAIR, sources: [T2w, T1w, T1c]", wanted)
    text = text.replace("expects:", f"expects:\n      - {{slot: {target}}}", 1)
    (folder / "routing.yaml").write_text(text)
    models = folder / "models.yaml"

    models.write_text("states: [approved]\n")
    with pytest.raises(ConfigurationError, match=f"{target} shows what tissue does"):
        settings.load(folder)

    models.write_text(f"states: [approved]\nresearch: [{target}]\n")
    assert settings.load(folder).models.research == (target,)


def test_peer_that_takes_nothing_is_no_destination(folder):
    with pytest.raises(ConfigurationError, match=r"with the role send"):
        settings.load(folder, ["peers.pacs.roles=[receive]"])


@pytest.mark.parametrize("name", settings.FILES)
def test_digest_knows_every_byte_and_every_override(folder, name):
    before = settings.load(folder)

    with (folder / name).open("a") as file:
        file.write("\n# a remark\n")

    after, overridden = settings.load(folder), settings.load(folder, ["receiver.port=0"])
    assert len({before.digest, after.digest, overridden.digest}) == 3
    assert len(before.digest) == hashlib.sha256().digest_size * 2
    assert settings.load(folder).digest == after.digest


def test_configuration_does_not_change():
    configuration = settings.load(SHIPPED)

    with pytest.raises(ValueError, match="frozen"):
        configuration.node.receiver.port = 104  # type: ignore[misc]
