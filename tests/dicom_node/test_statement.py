"""The Conformance Statement beside what the node really negotiates, both ways."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    UserIdentityNegotiation,
)

from dicom_node import statement
from dicom_node.audit_messages import MESSAGES
from dicom_node.confirmation import Confirmation
from dicom_node.delivery import Destination
from dicom_node.domain import DeliveryState, Question
from dicom_node.ledger import Ledger
from dicom_node.performer import Performer
from dicom_node.query import Inquirer
from dicom_node.settings import Configuration, load
from dicom_node.spool import build_structure_limits
from dicom_node.storage_classes import STORAGE_CLASSES
from dicom_node.store import Durability, Store
from doubles.bench import CONFIGURATION
from doubles.ledger import STUDY, finish, judge, make_instance, make_plan, receive_and_judge, record
from doubles.outbox import Outbox
from doubles.raw_peer import MR, RawPeer, associate_request
from doubles.receiver import build_receiver, open_spool
from doubles.task_manager import UPS_PULL

PEERS = {"ORTHANC": "pacs", "STORESCU": "modality", "ECHO": "echo", "TELLER": "teller"}
COMMITMENT = "1.2.840.10008.1.20.1"
FIND, MOVE = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2"
OTHERS = (
    *("1.2.840.10008.1.1", COMMITMENT, "1.2.840.10008.3.1.2.3.3", "1.2.840.10008.5.1.4.33"),
    *(FIND, MOVE, "1.2.840.10008.5.1.4.31", "1.2.840.10008.5.1.1.9", "1.2.3.4.5"),
)
SYNTAXES = (*map(str, AllTransferSyntaxes), "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
IN_ONE_REQUEST = 128


def configure(folder: Path, *overrides: str) -> Configuration:
    return load(
        CONFIGURATION,
        [
            f"data_folder={folder}",
            "receiver.port=0",
            "peers.pacs.commitment=storage_commitment",
            "peers.echo={ae_title: ECHO, address: 127.0.0.1, roles: [echo]}",
            "peers.teller={ae_title: TELLER, address: 127.0.0.1, roles: [receive, notify]}",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    return configure(tmp_path_factory.mktemp("receiver"))


@pytest.fixture(scope="module")
def port(configuration: Configuration) -> Iterator[int]:
    """A receiver that runs with the configuration."""
    node = configuration.node
    store = Store(node.store_folder).open()
    with (
        closing(Ledger(node.ledger_url, lambda: datetime.now(UTC)).open()) as ledger,
        open_spool(store, ledger, build_structure_limits(node), Durability.SYNCED) as spool,
    ):
        receiver = build_receiver(node, spool)
        try:
            yield receiver.start()[1]
        finally:
            receiver.stop(5)


@contextmanager
def associate(port: int, *contexts: Any, title: str = "ORTHANC", more: Any = ()) -> Iterator[Any]:
    """Give an association that another toolkit asks for."""
    association = AE(title).associate(
        "127.0.0.1", port, list(contexts), ae_title="DICOM_NODE", ext_neg=list(more)
    )
    assert association.is_established
    yield association
    association.release()


@pytest.mark.integration
@pytest.mark.parametrize(("title", "alias"), PEERS.items())
def test_exactly_what_is_stated_is_accepted(configuration, port, title, alias):
    """Every class that a configuration may let in, and others, in every transfer syntax."""
    stated = {
        (each["abstract_syntax"], syntax)
        for each in statement.describe(configuration)["accepts"]
        if each["peer"] == alias
        for syntax in each["transfer_syntaxes"]
    }
    accepted = set()
    pairs = list(product((*STORAGE_CLASSES.values(), *OTHERS), dict.fromkeys(SYNTAXES)))
    for start in range(0, len(pairs), IN_ONE_REQUEST):
        some = pairs[start : start + IN_ONE_REQUEST]
        request = associate_request(
            [(uid, (syntax,)) for uid, syntax in some], called="DICOM_NODE", calling=title
        )
        with RawPeer(port) as peer:
            results = peer.associate(request)
        accepted |= {pair for pair, result in zip(some, results, strict=True) if result == 0}

    assert stated
    assert accepted == stated


@pytest.mark.integration
def test_first_stated_transfer_syntax_is_chosen(configuration, port):
    [stated] = [
        each["transfer_syntaxes"]
        for each in statement.describe(configuration)["accepts"]
        if each["peer"] == "pacs" and each["abstract_syntax"] == MR
    ]
    for start in range(len(stated)):
        proposed = list(reversed(stated[start:]))
        with associate(port, build_context(MR, proposed)) as association:
            [accepted] = association.accepted_contexts
            assert accepted.transfer_syntax == [stated[start]]


@pytest.mark.integration
def test_stated_role_is_the_one_that_is_granted(configuration, port):
    roles = {
        each["abstract_syntax"]: each["role"]
        for each in statement.describe(configuration)["accepts"]
        if each["peer"] == "pacs"
    }
    asked = [build_role(uid, scu_role=True, scp_role=True) for uid in (COMMITMENT, MR)]
    contexts = [build_context(uid) for uid in (COMMITMENT, MR)]
    with associate(port, *contexts, more=asked) as association:
        granted = {str(each.abstract_syntax): each for each in association.accepted_contexts}

    assert roles[COMMITMENT] == "SCU"
    assert (granted[COMMITMENT].as_scu, granted[COMMITMENT].as_scp) == (False, True)
    assert roles[MR] == "SCP"
    assert (granted[MR].as_scu, granted[MR].as_scp) == (True, False)


@pytest.mark.integration
def test_extended_negotiation_is_answered_as_stated(configuration, port):
    window, identity = AsynchronousOperationsWindowNegotiation(), UserIdentityNegotiation()
    window.maximum_number_operations_invoked = 8
    window.maximum_number_operations_performed = 8
    identity.user_identity_type, identity.primary_field = 1, b"somebody"
    identity.positive_response_requested = True
    with associate(port, build_context(MR), more=[window, identity]) as association:
        answer = association.acceptor
        granted = answer.asynchronous_operations
        told = (answer.maximum_length, str(answer.implementation_class_uid), answer.user_identity)

    stated = statement.describe(configuration)
    assert granted == (1, 1)
    assert told == (stated["maximum_length"], stated["implementation_class_uid"], None)
    text = statement.write(configuration)
    assert "| operations performed at a time, as acceptor | 1:" in text
    assert "| user identity of a requestor | ignored, and not answered |" in text


@pytest.fixture
def called(tmp_path: Path) -> Iterator[tuple[Configuration, list[Any]]]:
    """Give a configuration whose PACS listens, and what it was asked for."""
    asked: list[Any] = []
    pacs = AE("ORTHANC")
    pacs.add_supported_context("1.2.840.10008.1.1")
    handlers = [(evt.EVT_REQUESTED, lambda event: asked.append(event.assoc.requestor))]
    server = pacs.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        configuration = configure(
            tmp_path,
            f"peers.pacs.port={server.server_address[1]}",
            "peers.pacs.window=4",
            "peers.pacs.roles=[send, receive, query, worklist]",
            "steps.workitems=[{value: COMPLETE, scheme: 99SITE, meaning: Complete it}]",
        )
        yield configuration, asked
    finally:
        server.shutdown()


def find_stated(configuration: Configuration) -> set[tuple[str, tuple[str, ...]]]:
    return {
        (each["abstract_syntax"], tuple(each["transfer_syntaxes"]))
        for each in statement.describe(configuration)["proposes"]
        if each["peer"] == "pacs"
    }


@pytest.mark.integration
def test_what_is_stated_is_what_the_sender_proposes(called, tmp_path):
    configuration, asked = called
    outbox, node = Outbox(tmp_path / "outbox"), configuration.node
    ledger = outbox.ledger
    stated = find_stated(configuration)
    classes = sorted({uid for uid, _ in stated if uid in STORAGE_CLASSES.values()})
    with closing(ledger):
        receive_and_judge(ledger, [make_plan()])
        finish(ledger, *(outbox.write(number, uid) for number, uid in enumerate(classes, 1)))
        with closing(Destination("pacs", ledger, outbox.store, node, outbox.clock)) as destination:
            destination.sweep()

    [seen] = asked
    proposed = {
        (str(each.abstract_syntax), tuple(map(str, each.transfer_syntax)))
        for each in seen.requested_contexts
    }
    assert len(classes) >= len(("MR", "SR", "map", "key object"))
    assert proposed == {each for each in stated if each[0] in classes}
    assert seen.asynchronous_operations[0] == 4
    assert (
        str(seen.implementation_class_uid)
        == (statement.describe(configuration)["implementation_class_uid"])
    )


@pytest.mark.integration
def test_what_is_stated_is_what_is_proposed_for_questions(called, tmp_path):
    configuration, asked = called
    outbox, node = Outbox(tmp_path / "outbox"), configuration.node
    ledger, clock = outbox.ledger, outbox.clock
    with closing(ledger):
        ledger.record_instances([make_instance()], "pacs", None)
        ledger.ask(STUDY, 1, [Question(peer="pacs", siblings_within_days=None, fetch=True)])
        Inquirer("pacs", ledger, outbox.store, node, clock).sweep()
        assert judge(ledger, [make_plan()])
        finish(ledger, outbox.write(1, MR))
        for each in ledger.deliveries():
            record(ledger, each.delivery_id, DeliveryState.SENT, 0, None)
        Confirmation("pacs", ledger, node, clock).sweep()
        Performer("pacs", ledger, outbox.store, node, clock).sweep()

    proposed = {
        (str(each.abstract_syntax), tuple(map(str, each.transfer_syntax)))
        for seen in asked
        for each in seen.requested_contexts
    }
    assert proposed == {
        each for each in find_stated(configuration) if each[0] in {FIND, MOVE, COMMITMENT, UPS_PULL}
    }
    assert {uid for uid, _ in proposed} == {FIND, MOVE, COMMITMENT, UPS_PULL}


def test_statement_has_the_chapters_of_the_standard(configuration):
    text = statement.write(configuration)

    heads = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert [head.partition(" ")[0] for head in heads] == list("12345678")
    assert "$" not in text
    assert "No audit messages are sent." in text


def test_statement_tells_what_is_asked_of_which_dicomweb_service(tmp_path):
    archives = (
        "peers.archive={dicomweb: {url: 'https://a.example/web'}, roles: [send, query]}",
        "peers.results={dicomweb: {url: 'https://b.example'}, roles: [send], commitment: query}",
    )
    configuration = configure(tmp_path, *archives)
    told = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ")
        for line in statement.write(configuration).splitlines()
        if "-RS)" in line
    }

    assert told == {
        "Store Instances (STOW-RS)": "archive, results",
        "Search for Instances (QIDO-RS)": "archive, results",
        "Search for Series (QIDO-RS)": "archive",
        "Search for Studies (QIDO-RS)": "archive",
        "Retrieve Series (WADO-RS)": "archive",
    }


def test_statement_tells_where_audit_messages_go(tmp_path):
    files = "tls: {certificate: a.pem, key: a.key, ca: ca.pem}"
    configuration = configure(tmp_path, f"audit={{host: audit.example, {files}}}")

    told = " ".join(statement.write(configuration).split())
    assert "to audit.example port 6514" in told
    assert [name for name in MESSAGES if name not in told] == []
