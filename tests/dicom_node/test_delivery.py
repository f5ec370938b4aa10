import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dicom_node.delivery import Destination, park_unserved
from dicom_node.domain import DeliveryState
from dicom_node.door_settings import TLS
from dicom_node.outcomes import find_pause, judge_status
from doubles.certificates import make_authority, make_certificate
from doubles.ledger import (
    judge,
    make_instance,
)
from doubles.outbox import DERIVED_STUDY, Outbox
from doubles.scripted_pacs import ABORT, EXPLICIT, IMPLICIT, ScriptedPacs
from doubles.window_pacs import WindowPacs

PENDING, SENT, WARNED, PARKED = (
    DeliveryState.PENDING,
    DeliveryState.SENT,
    DeliveryState.WARNED,
    DeliveryState.PARKED,
)
SR = "1.2.840.10008.5.1.4.1.1.88.34"


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Outbox]:
    one = Outbox(tmp_path)
    yield one
    one.ledger.close()


@pytest.fixture
def outbox(empty: Outbox) -> Outbox:
    empty.fill()
    return empty


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (0x0000, SENT),
        (0xB000, WARNED),
        (0xB006, WARNED),
        (0xB007, WARNED),
        (0x0111, WARNED),
        (0x0107, WARNED),
        (0xA700, PENDING),
        (0xA7FF, PENDING),
        (0x0213, PENDING),
        (0x0110, PENDING),
        (0x0210, PENDING),
        (0xFE00, PENDING),
        (0xA900, PARKED),
        (0xC000, PARKED),
        (0xCFFF, PARKED),
        (0x0118, PARKED),
        (0x0211, PARKED),
        (0x0212, PARKED),
        (0x0122, PARKED),
        (0x0117, PARKED),
        (0x0124, PARKED),
    ],
)
def test_every_status_means_what_the_catalogue_says(status, state):
    assert judge_status(status).state == state


def test_pauses_double_up_to_the_longest():
    first, longest = timedelta(seconds=30), timedelta(minutes=15)

    pauses = [find_pause(first, longest, attempts).total_seconds() for attempts in range(7)]

    assert pauses == [30, 60, 120, 240, 480, 900, 900]
    assert find_pause(first, longest, 10_000) == longest


@pytest.mark.integration
def test_what_the_peer_takes_is_called_sent(outbox):
    with ScriptedPacs() as pacs:
        assert outbox.sweep(pacs) == 3
        assert outbox.sweep(pacs) == 0

    assert outbox.states() == [SENT] * 3
    assert [each.status for each in outbox.deliveries()] == [0, 0, 0]
    assert pacs.received == outbox.uids
    assert pacs.associations == 1


@contextmanager
def working(outbox: Outbox, pacs: ScriptedPacs, **peer: Any) -> Iterator[Destination]:
    """Give a worker, and close it at the end."""
    with closing(outbox.destination("pacs", peer=peer, pacs=pacs)) as destination:
        yield destination


@pytest.mark.integration
def test_a_sweep_goes_on_over_the_association_of_the_last(outbox):
    statuses = dict.fromkeys(outbox.uids, 0) | {outbox.uids[2]: 0xA700}
    with ScriptedPacs(statuses.__getitem__) as pacs, working(outbox, pacs) as destination:
        destination.sweep()
        statuses[outbox.uids[2]] = 0
        outbox.clock.advance(minutes=1)
        assert destination.sweep() == 1
        destination.sweep()
        still_open = pacs.releases == 0
        destination.close()

        assert pacs.wait_until(lambda it: it.releases == 1)
    assert still_open
    assert pacs.associations == 1


@pytest.mark.integration
def test_an_association_is_released_when_nothing_is_left_to_send(outbox):
    with ScriptedPacs() as pacs, working(outbox, pacs, keep_open="0 s") as destination:
        destination.sweep()
        destination.sweep()

        assert pacs.wait_until(lambda it: it.releases == 1)


@pytest.mark.integration
def test_an_association_that_the_peer_ended_while_it_was_idle_is_no_failure(outbox):
    statuses = dict.fromkeys(outbox.uids, 0) | {outbox.uids[2]: 0xA700}
    with ScriptedPacs(statuses.__getitem__) as pacs, working(outbox, pacs) as destination:
        destination.sweep()
        pacs.hang_up()
        statuses[outbox.uids[2]] = 0
        outbox.clock.advance(minutes=1)
        assert destination.sweep() == 1

    assert pacs.associations == 2
    assert outbox.ledger.outages() == {}


@pytest.mark.integration
def test_a_kept_association_that_dies_at_its_first_message_is_no_failure(outbox):
    """As behind a firewall that has forgotten the connection and resets it."""
    first, *_, last = outbox.uids
    tries = Counter()

    def dies_at(uid: str) -> bool:
        tries[uid] += 1
        return uid == last and tries[uid] == 2

    def answer(uid: str) -> int:
        return 0xA700 if uid == last and tries[uid] == 1 else 0

    with (
        WindowPacs(answers=answer, dies_at=dies_at) as pacs,
        working(outbox, pacs) as destination,
    ):
        destination.sweep()
        outbox.clock.advance(minutes=1)
        assert destination.sweep() == 1

    assert pacs.received.count(last) == 3
    assert pacs.received.count(first) == 1
    assert [each.attempts for each in outbox.deliveries()] == [1, 1, 2]
    assert outbox.ledger.outages() == {}


@pytest.mark.integration
def test_results_go_over_as_many_associations_as_the_peer_may_have(empty):
    empty.fill(instances=60)
    here = threading.Barrier(3)
    numbers = count()

    def answer(_: str) -> int:
        # The first goes alone; then three are under way at a time.
        if 1 <= next(numbers) <= 3:
            here.wait(20)
        return 0

    with ScriptedPacs(answer) as pacs:
        assert empty.sweep(pacs, associations=3) == 60

    assert pacs.associations == 3
    assert sorted(pacs.received) == sorted(empty.uids)
    assert empty.states() == [SENT] * 60


@pytest.mark.integration
def test_one_association_is_enough_for_a_peer_that_grants_no_more(empty):
    empty.fill(instances=60)
    with ScriptedPacs(most_associations=1) as pacs:
        assert empty.sweep(pacs, associations=4) == 60

    assert sorted(pacs.received) == sorted(empty.uids)
    assert empty.ledger.outages() == {}


@pytest.mark.integration
def test_an_association_that_breaks_stops_no_other(empty):
    empty.fill(instances=60)
    broken = empty.uids[2]
    with ScriptedPacs(lambda uid: ABORT if uid == broken else 0) as pacs:
        empty.sweep(pacs, associations=2)

    states = dict(zip(empty.uids, empty.states(), strict=True))
    assert states.pop(broken) is PENDING
    assert set(states.values()) == {SENT}


@pytest.mark.integration
def test_a_stop_waits_for_what_is_under_way_and_begins_nothing(empty):
    empty.fill(instances=20)
    reached, release = threading.Event(), threading.Event()

    def answer(uid: str) -> int:
        if uid == empty.uids[4]:
            reached.set()
            release.wait(20)
        return 0

    with ScriptedPacs(answer) as pacs, working(empty, pacs) as destination:
        sweep = threading.Thread(target=destination.sweep)
        sweep.start()
        assert reached.wait(20)
        destination.stop()
        release.set()
        sweep.join(20)
        destination.close()

        assert pacs.wait_until(lambda it: it.releases == 1)
    # One more may have been read ahead.
    assert empty.states().count(SENT) in {5, 6}


@pytest.mark.integration
def test_a_kind_that_turns_up_later_gets_an_association_that_is_for_it(empty):
    # Two syntaxes in one job: only one of them is seen before the association is asked for.
    empty.fill(instances=6, syntaxes=(EXPLICIT, IMPLICIT))
    with WindowPacs() as pacs, working(empty, pacs) as destination:
        taken = [destination.sweep(), destination.sweep()]

    assert taken == [3, 3]
    assert len(pacs.proposed) == 2


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one authority signed for the node and for PACS, and a stranger's."""
    folder = tmp_path_factory.mktemp("keys")
    authority = make_authority(folder)
    for name in ("node", "pacs"):
        make_certificate(folder, authority, name)
    make_certificate(folder, authority, "elsewhere", host="DNS:elsewhere.example")
    make_certificate(
        folder, authority, "expired", starts=timedelta(days=-2), lasts=timedelta(days=1)
    )
    make_certificate(folder, make_authority(folder, "other"), "stranger")
    return folder


@pytest.fixture
def own(keys: Path) -> TLS:
    return TLS(certificate=keys / "node.pem", key=keys / "node.key", ca=keys / "authority.pem")


def show(keys: Path, name: str) -> ssl.SSLContext:
    """Return the settings of a PACS that shows a certificate, and wants one of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(keys / "authority.pem")
    context.load_cert_chain(keys / f"{name}.pem", keys / f"{name}.key")
    return context


@pytest.mark.integration
def test_results_go_over_one_tls_session_as_long_as_there_is_work(outbox, keys, own):
    statuses = dict.fromkeys(outbox.uids, 0) | {outbox.uids[2]: 0xA700}
    with (
        ScriptedPacs(statuses.__getitem__, tls=show(keys, "pacs")) as pacs,
        closing(outbox.destination("pacs", peer={"tls": True}, tls=own, pacs=pacs)) as destination,
    ):
        destination.sweep()
        statuses[outbox.uids[2]] = 0
        outbox.clock.advance(minutes=1)
        assert destination.sweep() == 1

    assert outbox.states() == [SENT] * 3
    assert pacs.associations == 1


@pytest.mark.integration
@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ("elsewhere", "IP address mismatch"),
        ("expired", "expired"),
        ("stranger", "unable to get local issuer certificate"),
    ],
)
def test_nothing_goes_to_a_peer_whose_certificate_is_not_good(outbox, keys, own, shown, reason):
    with (
        ScriptedPacs(tls=show(keys, shown)) as pacs,
        closing(outbox.destination("pacs", peer={"tls": True}, tls=own, pacs=pacs)) as destination,
    ):
        assert destination.sweep() == 0

    assert pacs.received == []
    assert {each.attempts for each in outbox.deliveries()} == {0}
    assert reason in outbox.ledger.outages()["pacs"].reason


@pytest.mark.integration
def test_a_real_pacs_holds_what_is_called_sent(outbox, orthanc):
    assert outbox.sweep(orthanc) == 3

    assert outbox.states() == [SENT] * 3
    assert set(orthanc.find_instances(DERIVED_STUDY)) == set(outbox.uids)


@pytest.mark.integration
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_peer_gets_the_transfer_syntax_that_it_takes(outbox, syntax):
    with ScriptedPacs(syntaxes=(syntax,)) as pacs:
        assert outbox.sweep(pacs) == 3

    assert {each.Rows for each in pacs.datasets.values()} == {512}


@pytest.mark.integration
def test_each_instance_keeps_its_own_status(outbox):
    statuses = dict(zip(outbox.uids, (0xB000, 0xA700, 0xC000), strict=True))
    with ScriptedPacs(statuses.__getitem__) as pacs:
        outbox.sweep(pacs)

    assert outbox.states() == [WARNED, PENDING, PARKED]
    assert [each.status for each in outbox.deliveries()] == [0xB000, 0xA700, 0xC000]
    assert pacs.received == outbox.uids


@pytest.mark.integration
def test_what_failed_is_tried_again_after_its_pause_and_nothing_else(outbox):
    statuses = dict(zip(outbox.uids, (0, 0xA700, 0), strict=True))
    with ScriptedPacs(lambda uid: statuses[uid]) as pacs:
        outbox.sweep(pacs)
        statuses[outbox.uids[1]] = 0
        outbox.clock.advance(seconds=20)
        outbox.sweep(pacs)
        early = list(pacs.received)
        outbox.clock.advance(seconds=20)
        outbox.sweep(pacs)

    assert early == outbox.uids
    assert pacs.received == [*outbox.uids, outbox.uids[1]]
    assert outbox.states() == [SENT] * 3


@pytest.mark.integration
def test_an_association_that_breaks_leaves_the_rest_due(outbox):
    statuses = dict(zip(outbox.uids, (0, ABORT, 0), strict=True))
    with ScriptedPacs(lambda uid: statuses[uid]) as pacs:
        outbox.sweep(pacs)
        after_break = outbox.states()
        statuses[outbox.uids[1]] = 0
        outbox.clock.advance(minutes=1)
        outbox.sweep(pacs)

    assert after_break == [SENT, PENDING, PENDING]
    assert outbox.states() == [SENT] * 3
    assert pacs.received.count(outbox.uids[0]) == 1


@pytest.fixture
def gone() -> ScriptedPacs:
    """A PACS that was there a moment ago."""
    with ScriptedPacs() as pacs:
        pass
    return pacs


@pytest.mark.integration
def test_an_absent_peer_is_called_ever_more_rarely(outbox, gone):
    pauses = []
    for _ in range(7):
        outbox.sweep(gone)
        pause = outbox.ledger.outages()["pacs"].next_call - outbox.clock.now
        pauses.append(pause.total_seconds())
        outbox.clock.advance(seconds=pause.total_seconds())

    for pause, middle in zip(pauses, (30, 60, 120, 240, 480, 900, 900), strict=True):
        assert 0.8 * middle <= pause <= 1.2 * middle


@pytest.mark.integration
def test_what_waits_for_an_absent_peer_loses_no_attempt(outbox, gone):
    for _ in range(3):
        outbox.sweep(gone)
        outbox.clock.advance(hours=1)

    assert outbox.states() == [PENDING] * 3
    assert {each.attempts for each in outbox.deliveries()} == {0}


@pytest.mark.integration
def test_a_silent_peer_is_tried_with_one_instance_in_each_pause(outbox):
    with ScriptedPacs(lambda uid: ABORT) as pacs:
        for _ in range(2):
            outbox.sweep(pacs)
            outbox.sweep(pacs)
            outbox.clock.advance(minutes=20)

    assert pacs.associations == 2
    assert len(pacs.received) == 2


@pytest.mark.integration
def test_an_instance_on_which_a_peer_chokes_holds_up_no_other(outbox):
    first = outbox.uids[0]
    with ScriptedPacs(lambda uid: ABORT if uid == first else 0) as pacs:
        outbox.sweep(pacs)
        outbox.clock.advance(minutes=1)
        outbox.sweep(pacs)

    assert sorted(outbox.states()) == [PENDING, SENT, SENT]


@pytest.mark.integration
def test_answer_to_one_instance_lets_the_others_go_at_once(outbox, gone):
    outbox.sweep(gone)
    outbox.clock.advance(minutes=1)
    with ScriptedPacs() as pacs:
        assert outbox.sweep(pacs) == 3

    assert outbox.ledger.outages() == {}
    assert pacs.associations == 1


@pytest.mark.integration
def test_third_failure_in_a_row_is_told_once(outbox, gone, caplog):
    for _ in range(4):
        outbox.sweep(gone)
        outbox.clock.advance(hours=1)

    errors = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert errors == [
        "destination.does_not_answer peer=pacs failures=3: no connection: ConnectionRefusedError"
    ]
    [alert] = outbox.alerts(gone)
    assert alert.startswith("peer pacs: no association for 4.0 h, 3 instances wait")


@pytest.mark.integration
def test_a_peer_that_refuses_for_good_is_asked_slowly_and_told_at_once(outbox, caplog):
    with ScriptedPacs(known="OTHER") as pacs:
        outbox.sweep(pacs)

    outage = outbox.ledger.outages()["pacs"]
    assert outage.next_call - outbox.clock.now >= timedelta(minutes=12)
    assert "RJ(1,1,3)" in outage.reason
    assert "destination.refuses peer=pacs" in caplog.text


@pytest.mark.integration
def test_what_nobody_takes_in_time_waits_for_a_person(outbox, gone, caplog):
    outbox.clock.advance(hours=73)
    outbox.sweep(gone)

    assert outbox.states() == [PARKED] * 3
    assert "delivery.overdue peer=pacs instances=3" in caplog.text
    assert "3 instances are parked" in outbox.alerts(gone)[-1]


@pytest.mark.integration
def test_what_is_late_is_tried_twice_before_it_is_parked(outbox):
    outbox.clock.advance(hours=73)
    with ScriptedPacs(dict(zip(outbox.uids, (0, 0xA700, 0), strict=True)).__getitem__) as pacs:
        outbox.sweep(pacs)
        first = outbox.states()
        outbox.clock.advance(minutes=1)
        outbox.sweep(pacs)

    assert first == [SENT, PENDING, SENT]
    assert outbox.states() == [SENT, PARKED, SENT]


def test_what_waits_for_a_peer_that_is_not_configured_is_parked_in_time(outbox):
    nobody = outbox.settings()
    park_unserved(outbox.ledger, nobody, outbox.clock)
    early = outbox.states()
    [alert] = outbox.alerts_of(nobody)
    outbox.clock.advance(hours=73)
    park_unserved(outbox.ledger, nobody, outbox.clock)

    assert early == [PENDING] * 3
    assert alert == "peer pacs: 3 instances wait, and no such peer is configured"
    assert outbox.states() == [PARKED] * 3


@pytest.mark.integration
def test_a_class_that_the_peer_does_not_take_is_parked(empty):
    empty.fill(sop_class=SR)
    with ScriptedPacs() as pacs:
        assert empty.sweep(pacs) == 0

    assert pacs.received == []
    assert empty.states() == [PARKED] * 3


@pytest.mark.integration
def test_a_file_that_changed_on_disk_is_not_sent(outbox):
    outbox.store.write(outbox.deliveries()[1].instance.path, b"rotten")
    with ScriptedPacs() as pacs:
        assert outbox.sweep(pacs) == 2

    assert outbox.states() == [SENT, PARKED, SENT]


@pytest.mark.integration
def test_a_study_that_receives_again_sends_nothing(outbox):
    outbox.ledger.record_instances([make_instance(2)], "scanner", None)
    with ScriptedPacs() as pacs:
        assert outbox.sweep(pacs) == 0

    assert pacs.associations == 0
    assert judge(outbox.ledger)


def measure(task: Callable[[], object]) -> float:
    began = time.monotonic()
    task()
    return time.monotonic() - began


@pytest.mark.integration
def test_a_peer_that_falls_silent_delays_nobody_else(empty):
    empty.fill(peers=("alone", "beside", "silent"), instances=20)
    release, reached = threading.Event(), threading.Event()

    def fall_silent(_: str) -> int:
        reached.set()
        release.wait(30)
        return 0

    with ScriptedPacs(fall_silent) as silent, ScriptedPacs() as live:
        pacs = {"alone": live, "beside": live, "silent": silent}

        def sweep(alias: str) -> None:
            with closing(empty.destination(alias, **pacs)) as destination:
                destination.sweep()

        alone = measure(lambda: sweep("alone"))
        other = threading.Thread(target=sweep, args=("silent",))
        other.start()
        assert reached.wait(10)
        beside = measure(lambda: sweep("beside"))
        is_waiting = other.is_alive()
        release.set()
        other.join()

    assert is_waiting
    assert len(live.received) == 40
    assert beside < 2 * alone + 0.5


@pytest.mark.integration
def test_500_series_outlive_an_outage_of_72_hours(empty, gone):
    """Goal G10: nothing lost, drained at the next call, nothing sent more than once too often."""
    empty.fill(instances=500)
    end = empty.clock() + timedelta(hours=72)
    calls = 0
    while empty.clock() < end:
        empty.sweep(gone)
        calls += 1
        empty.clock.now = empty.ledger.outages()["pacs"].next_call
    late = empty.clock() - end
    broken = empty.uids[250]

    def answer(uid: str) -> int:
        return ABORT if uid == broken and pacs.received.count(broken) == 1 else 0

    with ScriptedPacs(answer) as pacs:
        while empty.sweep(pacs):
            empty.clock.advance(seconds=36)

    assert empty.states() == [SENT] * 500
    assert late <= timedelta(minutes=15 * 1.2)
    assert {uid: pacs.received.count(uid) for uid in pacs.datasets} == {
        uid: 2 if uid == broken else 1 for uid in empty.uids
    }
    assert 72 * 60 / (15 * 1.2) < calls < 400
