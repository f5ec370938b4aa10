"""Nothing of a patient leaves the store: tokens planted everywhere are sought in all that is told.

The node receives, holds, synthesizes, dies, comes back, delivers to peers that answer with tokens,
is asked in every way, and fails in each of its processes with tokens in the exception. Only the
store's files and the ledger's header documents may hold them.
"""

import json
import os
import re
import shutil
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1, generate_uid
from pynetdicom import AE, build_context

from dicom_node.admin.pages import ROUTES
from dicom_node.conditions import fold
from dicom_node.demonstration.studies import Parcel
from dicom_node.demonstration.walk import Node
from dicom_node.domain import DeliveryState, StudyState
from dicom_node.identifiers import IMPLEMENTATION_VERSION_NAME
from dicom_node.jobs import JobState
from dicom_node.ledger import Ledger
from dicom_node.node_settings import NodeSettings
from dicom_node.settings import load
from doubles import bad_inputs, saboteur
from doubles.admin import AdminProcess, Client
from doubles.audit import ET, make_certificates, open_repository
from doubles.canary import Canary
from doubles.certificates import make_authority, make_certificate
from doubles.dcmtk import storescu
from doubles.node import AE_TITLE, CONFIGURATION, SCANNER
from doubles.raw_peer import EXPLICIT, IMPLICIT, MR, VERIFICATION, RawPeer, associate_request
from doubles.scripted_pacs import ScriptedPacs

pytestmark = pytest.mark.acceptance

REPORT = "1.2.840.10008.5.1.4.1.1.88.34"
MAP = "1.2.840.10008.5.1.4.1.1.30"
OUT_OF_RESOURCES, WARNING, CANNOT_UNDERSTAND = 0xA700, 0xB000, 0xC123
STORES = ("incoming", "derived", "quarantine")
MARK = b"7130917"
"""As long as a token, and a number: it is written where only a number may stand."""
PATIENCE_SECONDS = 300
MOST_TEXTS = 1_000
"""The Standard has places for more texts than this."""
FEW = 12
"""Slices of the studies that are not the good one."""
NUMBERS = (
    ("RescaleSlope", "RescaleIntercept"),
    ("PixelSpacing", "ImagePositionPatient", "EchoTime", "InstanceNumber", "SliceThickness"),
)
"""Keywords of studies whose numbers are none."""

_NEXT = "--- the next command ---"
_COMMANDS = f"""
import json, sys
from dicom_node.cli import main
for number, words in enumerate(json.load(sys.stdin)):
    print("{_NEXT}" if number else "", flush=True)
    try:
        main(words)
    except SystemExit:
        sys.stdout.flush()
"""
"""One process for all commands: most of their time is the start of the interpreter."""


@dataclass
class Told:
    """What the node told, by where it told it.

    Attributes:
        texts: everything that may be read by whoever has no right to patients' data.
        stored: places of the tokens that stand in what was stored.
        jobs: states of the jobs, by study.
        deliveries: states of the deliveries.
        sabotaged: processes that failed on purpose.
        audited: event and outcome of each audit message.
    """

    canary: Canary
    texts: dict[str, bytes] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    jobs: dict[str, list[JobState]] = field(default_factory=dict)
    deliveries: set[tuple[str, DeliveryState]] = field(default_factory=set)
    holds: dict[str, str | None] = field(default_factory=dict)
    rejections: list[object] = field(default_factory=list)
    sabotaged: int = 0
    audited: list[tuple[str | None, str | None]] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.texts["node.log"].decode()


class Walk:
    """One node, all that is done to it, and what it told."""

    def __init__(
        self,
        canary: Canary,
        folder: Path,
        models: Path,
        pacs: ScriptedPacs,
        strict: ScriptedPacs,
        audit: Sequence[str],
    ) -> None:
        self.canary = canary
        self.told = Told(canary)
        self.scanner = self.canary.plant("AE title of a peer")
        self.folder = folder
        self._configuration = folder / "config"
        shutil.copytree(CONFIGURATION, self._configuration)
        routing = self._configuration / "routing.yaml"
        routing.write_text(
            routing.read_text().replace("send_to: [pacs]", "send_to: [pacs, strict]")
        )
        self.overrides = (
            f"data_folder={folder / 'data'}",
            f"models_folder={models}",
            "receiver.port=0",
            "web.port=0",
            "assembly.quiet_period=1 s",
            "assembly.sweep_every=200 ms",
            "dispatch.sweep_every=200 ms",
            "dispatch.warm=false",
            "delivery.sweep_every=200 ms",
            "delivery.first_retry=1 s",
            "query.enabled=false",
            f"peers.pacs.port={pacs.port}",
            f"peers.strict={{ae_title: {strict.ae_title}, roles: [send]}}",
            "peers.strict.host=127.0.0.1",
            f"peers.strict.port={strict.port}",
            f"peers.ct={{ae_title: {self.scanner}, address: 127.0.0.1, roles: [receive]}}",
            *audit,
        )
        for name in ("tmp", "sabotaged"):
            (folder / name).mkdir()
        self.environment = {
            "PYTHONPATH": str(Path(saboteur.__path__[0])),
            "SABOTEUR_TEXT": self.canary.plant("exceptions", accented=True),
            "SABOTEUR_FOLDER": str(folder / "sabotaged"),
            "TMPDIR": str(folder / "tmp"),
        }
        self._log = folder / "node.log"
        self.node = Node(self._configuration, self.overrides, self._log, self.environment)

    def start(self, **more: str) -> None:
        environment = {**self.environment, **more}
        self.node = Node(self._configuration, self.overrides, self._log, environment)
        self.node.start()

    def ledger(self) -> Ledger:
        return Ledger(self._load().ledger_url, lambda: datetime.now(UTC)).open(create=False)

    def tell(self, name: str, text: bytes) -> None:
        """Keep what was told."""
        self.told.texts[name] = self.told.texts.get(name, b"") + text

    def knock(self) -> None:
        """Come to the door as nobody may."""
        port, plant = self.node.port, self.canary.plant
        for title in ("called", "calling"):
            with RawPeer(port) as peer:
                request = {
                    "called": AE_TITLE,
                    "calling": SCANNER,
                    title: plant(f"{title} AE title"),
                }
                peer.send(associate_request(**request))
                self.told.rejections.append(peer.read_rejection())
                self.tell("answers", peer.heard)
        contexts = [
            (VERIFICATION, (IMPLICIT,)),
            (MR, (EXPLICIT, f"1.2.{plant('transfer syntax')}")),
            (f"1.2.{plant('SOP class')}", (EXPLICIT,)),
        ]
        request = associate_request(contexts, called=AE_TITLE, calling=self.scanner)
        version = IMPLEMENTATION_VERSION_NAME.encode()
        request = request.replace(version, plant("version").encode().ljust(len(version)))
        with RawPeer(port) as peer:
            self.told.rejections.append(peer.associate(request))
            peer.heard = b""  # an accept repeats the titles, as it has to (PS3.8 table 9-17)
            for spoil in self._spoilt():
                peer.store(*spoil)
            peer.send(plant("protocol").encode() * 100)
            peer.read_pdu()
            self.tell("answers", peer.heard)

    def _spoilt(self) -> Iterator[tuple[str, bytes]]:
        """Yield UIDs and data sets that are refused, each with a token."""
        text = self.canary.plant("malformed", accented=True)
        uid = str(generate_uid(entropy_srcs=["malformed"]))
        instance = Dataset()
        instance.SpecificCharacterSet = "ISO_IR 100"
        instance.SOPClassUID, instance.SOPInstanceUID = MR, uid
        instance.PatientName = text
        data = bad_inputs.encode(instance)
        yield uid, data
        yield uid, data[:-3]
        yield uid, text.encode() * 10
        yield f"1.2.{self.canary.plant('SOP Instance UID')}", data
        yield str(generate_uid()), data

    def send(self, name: str, instances: Sequence[Dataset], calling: str = SCANNER) -> str:
        """Store a study, from files with tokens in their names; return its UID."""
        folder = self.folder / "sent" / name / self.canary.plant("name of a folder")
        bad_inputs.save(instances, folder)
        for path in folder.iterdir():
            path.rename(path.with_stem(f"{path.stem} {self.canary.plant('name of a file')}"))
        answer = storescu(self.node.port, folder, called=AE_TITLE, calling=calling)
        assert answer.returncode == 0, answer.stderr
        return str(instances[0].StudyInstanceUID)

    def send_raw(self, instances: Sequence[Dataset], token: str) -> str:
        """Store a study with a token where `MARK` stands, which no toolkit would write there."""
        with RawPeer(self.node.port) as peer:
            peer.associate(associate_request(called=AE_TITLE, calling=SCANNER))
            for each in instances:
                data = bad_inputs.encode(each).replace(MARK, token.encode())
                assert peer.store(str(each.SOPInstanceUID), data) == 0
        return str(instances[0].StudyInstanceUID)

    def send_compressed(self, instances: Sequence[Dataset]) -> str:
        """Store a study whose compressed pixels are none."""
        garbage = (self.canary.plant("compressed pixels") * 50).encode()
        association = AE(SCANNER).associate(
            "127.0.0.1", self.node.port, [build_context(MR, JPEGLosslessSV1)], ae_title=AE_TITLE
        )
        for each in instances:
            each.file_meta.TransferSyntaxUID = JPEGLosslessSV1
            each.PixelData = encapsulate([garbage])
            each["PixelData"].is_undefined_length = True
            assert association.send_c_store(each).Status == 0
        association.release()
        return str(instances[0].StudyInstanceUID)

    def ask_web(self) -> None:
        """Ask for all that the node tells over HTTP, and for what there is not."""
        port = re.findall(r"web=127\.0\.0\.1:(\d+)", self._log.read_text())[-1]
        for path in ("healthz", "metrics", self.canary.plant("address")):
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/{path}", timeout=10
                ) as answer:
                    self.tell("http", str(answer.headers).encode() + answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    self.tell("http", str(error.headers).encode() + error.read())

    def ask_page(self, studies: Iterable[str], jobs: Iterable[str]) -> None:
        """Look at every page over HTTPS, as whoever sees most, and ask for what there is not."""
        certificates = self.folder / "page"
        certificates.mkdir()
        authority = make_authority(certificates)
        certificate, key = make_certificate(certificates, authority, "page")
        page = AdminProcess(
            self._configuration,
            (
                *self.overrides,
                "admin.port=0",
                "admin.patient_names=true",
                f"admin.tls={{certificate: {certificate}, key: {key}}}",
            ),
            self.folder / "page.log",
            self.environment,
        )
        plant = self.canary.plant
        with page.served() as port:
            client = Client(port, ssl.create_default_context(cafile=authority))
            told = [
                client.log_in(plant("a name that nobody has"), plant("a wrong password")),
                client.log_in(page.PERSON),
            ]
            paths = [route.path for route in ROUTES if route.method == "GET"]
            plain = [path for path in paths if "{" not in path]
            told += [client.get(path) for path in plain]
            told += [client.get(f"/studies/{uid}") for uid in studies]
            told += [client.get(f"/jobs/{job}") for job in jobs]
            told.append(client.get(f"/studies/{quote(plant('name of a study'))}"))
            told.append(client.get(f"/{quote(plant('name of a page'))}"))
            for answer in told:
                self.tell("admin page", str(answer.headers).encode() + answer.body)
            asked = client.post(f"/studies/{next(iter(studies))}/patient", {})
            assert asked.status == HTTPStatus.OK
            self.tell("whose study it is", asked.body)
        self.tell("page.log", (self.folder / "page.log").read_bytes())

    def ask(self, *commands: Sequence[str]) -> None:
        """Run commands of the node beside it and keep what they print."""
        sets = [word for override in self.overrides for word in ("--set", override)]
        lines = [[*words, "--config", str(self._configuration), *sets] for words in commands]
        done = subprocess.run(
            [sys.executable, "-c", _COMMANDS],
            input=json.dumps(lines).encode(),
            capture_output=True,
            env={**os.environ, **self.environment},
            timeout=PATIENCE_SECONDS,
            check=True,
        )
        for words, printed in zip(commands, done.stdout.split(_NEXT.encode()), strict=True):
            self.tell(f"dicom-node {' '.join(words[:1])}", printed)
        self.tell("standard error of commands", done.stderr)

    def look_around(self) -> None:
        """Keep what lies about: the log, names and texts of files, rows of the ledger."""
        data = self.folder / "data"
        self.tell("node.log", self._log.read_bytes())
        for root in (data, self.folder / "tmp"):
            for path in root.rglob("*"):
                self.tell("names of files", f"{path.relative_to(self.folder)}\n".encode())
                is_store = path.is_relative_to(data / "store") and path.parent != data / "store"
                if path.is_file() and not is_store and not path.name.startswith("ledger.sqlite"):
                    self.tell(str(path.relative_to(self.folder)), path.read_bytes())
        with closing(sqlite3.connect(data / "ledger.sqlite")) as connection:
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ):
                rows = connection.execute(f"SELECT * FROM {table}")  # noqa: S608 - its own names
                columns = [column[0] for column in rows.description]
                for row in rows:
                    kept = dict(zip(columns, row, strict=True))
                    kept.pop("header", None)
                    self.tell(f"ledger: {table}", repr(kept).encode())

    def _load(self) -> NodeSettings:
        return load(self._configuration, self.overrides).node


def describe(message: ET.Element) -> tuple[str | None, str | None]:
    """Return event and outcome of an audit message."""
    about = message.find("EventIdentification")
    assert about is not None
    event = about.find("EventID")
    assert event is not None
    return event.get("csd-code"), about.get("EventOutcomeIndicator")


def comment(canary: Canary, status: int) -> Dataset:
    """Return an answer to a C-STORE with tokens in it."""
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = canary.plant(f"Error Comment of 0x{status:04X}")
    answer.AffectedSOPInstanceUID = "1.2.3"
    return answer


@pytest.fixture(scope="module")
def told(phantom: Parcel, copying_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Everything that the node tells on a walk on which all goes wrong that may."""
    canary = Canary()
    answers = [comment(canary, each) for each in (OUT_OF_RESOURCES, WARNING, CANNOT_UNDERSTAND)]
    classes = (MR, REPORT, MAP)

    def answer(_: str) -> int | Dataset:
        return answers.pop() if answers else 0

    folder = tmp_path_factory.mktemp("canary")
    tls = make_certificates(folder)
    with (
        open_repository(folder) as repository,
        ScriptedPacs(answer, classes=classes, ae_title="ORTHANC") as pacs,
        ScriptedPacs(classes=classes, ae_title="STRICT", known="SOMEBODY") as strict,
    ):
        audit = f"audit={{host: 127.0.0.1, port: {repository.port}, tls: {tls}}}"
        walk = Walk(canary, folder, copying_models, pacs, strict, [audit, "audit.sweep_every=1 s"])
        try:
            _go(walk, phantom)
        finally:
            walk.node.stop()
        walk.told.audited = [describe(each) for each in repository.messages]
        walk.tell("audit messages", b"".join(repository.streams))
    walk.look_around()
    return walk.told


def renew(instances: Sequence[Dataset], name: str) -> list[Dataset]:
    """Return copies as a study of their own."""
    copies = deepcopy(list(instances))
    for index, one in enumerate(copies):
        one.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
        one.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
        one.SOPInstanceUID = generate_uid(entropy_srcs=[name, str(index)])
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    return copies


def _go(walk: Walk, phantom: Parcel) -> None:
    canary, told = walk.canary, walk.told
    good = canary.mark([dcmread(path) for path in phantom.files], "a study's")
    few = [one for one in good if one.SeriesDescription.startswith("T1")][:FEW]

    walk.start(
        DICOM_NODE_CRASH_AT="work.read", DICOM_NODE_CRASH_ONCE=str(walk.folder / "tmp" / "died")
    )
    walk.knock()
    studies = {"good": walk.send("good", good, calling=walk.scanner)}
    _wait_until(lambda: walk.node.child.poll() is not None, walk)
    walk.start()
    two = renew(few, "two patients")
    for one in two[::2]:
        del one.PatientID  # copies share it
        one.PatientID = canary.plant("the other patient's PatientID", accented=True)
    studies["two patients"] = walk.send("two patients", two)
    contested = bad_inputs.with_two_contents(renew(few, "two contents"))
    studies["two contents"] = walk.send("two contents", contested)
    for keywords in NUMBERS:
        odd = renew(few, " ".join(keywords))
        for one in odd:
            for keyword in keywords:
                count = one[keyword].VM if keyword in one else 1
                setattr(one, keyword, [MARK.decode(), *["1"] * (count - 1)])
        studies[keywords[0]] = walk.send_raw(odd, canary.plant(f"{keywords}, which are no numbers"))
    studies["compressed"] = walk.send_compressed(renew(few, "compressed"))
    with walk.ledger() as ledger:
        _wait_until(lambda: _is_over(ledger, studies.values()), walk)
        walk.ask_web()
        unread = walk.folder / "sent" / canary.plant("name of a folder")
        unread.mkdir()
        (unread / canary.plant("name of a file")).write_text(canary.plant("no DICOM"))
        sent = walk.folder / "sent" / "good"
        walk.ask(
            ["status"],
            ["status", "--json"],
            *(["explain", each] for each in studies.values()),
            ["status", studies["two contents"]],
            ["explain", str(sent), "--json"],
            ["explain", str(unread)],
            ["explain", str(unread / canary.plant("name of no folder"))],
            ["check", str(walk.folder / "sent")],
            ["doctor"],
        )
        walk.ask_page(
            studies.values(), [each.plan.plan_id for each in ledger.jobs(studies["good"])]
        )
        for name, uid in studies.items():
            told.jobs[name] = [job.state for job in ledger.jobs(uid)]
            told.holds[name] = ledger.study_row(uid).hold_code
        told.deliveries = {(each.peer, each.state) for each in ledger.deliveries()}
    told.sabotaged = len(list((walk.folder / "sabotaged").iterdir()))
    store = walk.folder / "data" / "store" / "incoming"
    found = canary.find({str(k): path.read_bytes() for k, path in enumerate(store.rglob("*.dcm"))})
    told.stored = set().union(*found.values())


def _is_over(ledger: Ledger, studies: Iterable[str]) -> bool:
    return (
        all(ledger.study_row(uid).state is not StudyState.RECEIVING for uid in studies)
        and not any(job.state in {JobState.QUEUED, JobState.RUNNING} for job in ledger.jobs())
        and "strict" in ledger.outages()
        and not any(
            each.state is DeliveryState.PENDING
            for each in ledger.deliveries()
            if each.peer == "pacs"
        )
    )


def _wait_until(holds: Callable[[], bool], walk: Walk) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, walk.node.child.read_log()[-3000:]
        time.sleep(0.1)


def test_walk_goes_everywhere(told):
    assert told.rejections == [(1, 1, 7), (1, 1, 3), [0, 0, 3]]
    assert told.jobs["good"] == [JobState.DONE]
    assert set(told.jobs["compressed"]) == {JobState.HELD}
    assert {name: told.holds[name] for name in told.holds if told.holds[name]} == {
        "two patients": "identity_conflict",
        "two contents": "uid_conflict",
        "RescaleSlope": "rescale",
        "PixelSpacing": "geometry_missing",
    }
    assert {state for peer, state in told.deliveries if peer == "pacs"} == {
        *(DeliveryState.SENT, DeliveryState.WARNED, DeliveryState.PARKED),
    }
    assert ("strict", DeliveryState.PENDING) in told.deliveries
    for event in ("instance_refused", "called_ae_title", "uid_conflict", "unrecognized_pdu"):
        assert f"receive.{event}" in told.log
    assert "node.recovered" in told.log
    assert {"dicom-node status", "dicom-node explain", "dicom-node check", "dicom-node doctor"} <= (
        told.texts.keys()
    )


def test_every_token_of_the_study_is_in_the_store(told):
    """The search sees them where they may be, so that it would see them elsewhere."""
    planted = {place for place in told.canary.planted.values() if place.startswith("a study's")}

    assert len(planted) > MOST_TEXTS
    assert planted <= told.stored


def test_every_process_failed_with_a_token_and_told_the_place_only(told):
    assert told.sabotaged >= len(
        ("node", "receiver", "its server", "worker", "command", "admin page")
    )
    for event in ("process.failed", "exception.ignored", "message withheld"):
        assert event in told.log
    assert "error=RuntimeError at sitecustomize.py:" in told.log


def test_codecs_print_nothing(told):
    assert "Not a JPEG file" not in told.log


def test_audit_messages_tell_all_of_it(told):
    """All of them follow the schema, or they could not have been read."""
    assert told.audited[0] == told.audited[-1] == ("110100", "0")  # the start, and the stop
    assert set(told.audited) >= {
        ("110101", "0"),  # who looked at the acts
        ("110102", "0"),  # what was to go
        ("110103", "0"),  # jobs
        *(("110104", outcome) for outcome in "048"),  # what came, and how it went
        ("110113", "4"),  # who was not let in
    }


def test_nothing_of_a_patient_is_told(told):
    # That of a peer in node.yaml: PS3.15 section A.5.2.2 wants the AE titles of both sides, the
    # doctor says what to type in at the PACS, and the page shows who is configured.
    assert told.canary.find(told.texts) == {
        "audit messages": {"AE title of a peer"},
        "dicom-node doctor": {"AE title of a peer"},
        "admin page": {"AE title of a peer"},
        "whose study it is": {
            *(f"a study's {name}" for name in ("PatientName", "PatientID", "AccessionNumber")),
            *("PatientBirthDate", "a study's date"),
        },
    }


def test_page_shows_whose_study_it_is_and_keeps_who_looked(told):
    assert b"page.patient_seen" in told.texts["ledger: event"]


@pytest.mark.parametrize(
    "write",
    [
        lambda token: token.encode(),
        lambda token: token.encode("latin-1"),
        lambda token: token.encode("utf-16-le"),
        lambda token: token.lower().encode(),
        lambda token: repr(token.encode()).encode(),
        lambda token: ascii(token).encode(),
        lambda token: json.dumps(token).encode(),
        lambda token: token.encode().hex().encode(),
        lambda token: token.encode("latin-1").hex(":").upper().encode(),
        lambda token: b64encode(b"a" + token.encode()),
        lambda token: quote(token).encode(),
        lambda token: fold(token).encode(),
    ],
    ids=[
        *("UTF-8", "Latin-1", "UTF-16", "lower case", "bytes", "literal", "JSON", "hexadecimal"),
        *("fingerprint", "Base64", "percent", "folded"),
    ],
)
@pytest.mark.parametrize("accented", [True, False])
def test_search_sees_a_leak_however_it_is_written(write, accented):
    canary = Canary()
    token = canary.plant("a name", accented=accented)
    line = b"2026-11-22T21:50:01.123Z INFO dicom_node.dispatch job.started name=%s attempt=1"

    assert canary.find({"log": line % write(token), "other": line}) == {"log": {"a name"}}
