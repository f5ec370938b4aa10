from dicom_node.admission import Admission, Budget, Entry, Pace

BUDGET = Budget(connections=3, connections_per_address=2, associations=2, associations_per_peer=1)


def test_one_address_cannot_take_all_connections():
    admission = Admission(BUDGET)

    assert [admission.enter("a") for _ in range(3)] == [True, True, False]
    assert [admission.enter("b") for _ in range(2)] == [True, False]


def test_who_leaves_makes_room():
    admission = Admission(BUDGET)
    admission.enter("a")
    admission.enter("a")

    admission.leave("a")

    assert admission.enter("a")


def test_strangers_leave_half_of_the_connections_to_addresses_of_peers():
    admission = Admission(
        Budget(connections=6, connections_per_address=2), lambda address: address == "pacs"
    )

    assert [admission.enter(each) for each in "aabbcc"] == [True, True, True, False, False, False]
    assert [admission.enter("pacs") for _ in range(3)] == [True, True, False]
    admission.leave("a")
    assert admission.enter("c")


def test_an_association_does_not_count_as_a_connection():
    admission = Admission(BUDGET)
    for _ in range(2):
        admission.enter("a")

    assert admission.associate("a", "pacs") is Entry.WELCOME
    assert admission.enter("a")
    assert admission.total() == 3
    assert admission.associate("a", "pacs") is not Entry.WELCOME
    assert admission.associate("a", "scanner") is Entry.WELCOME
    assert admission.total() == 3


def test_the_end_of_an_association_makes_room():
    admission = Admission(BUDGET)
    admission.enter("a")
    admission.associate("a", "pacs")

    admission.part("a", "pacs")
    admission.leave("a")

    assert admission.total() == 0
    admission.enter("a")
    assert admission.associate("a", "pacs") is Entry.WELCOME


def associate(admission: Admission, peer: str, times: int) -> int:
    """Return how many of so many requests of one peer were welcome."""
    welcome = 0
    for _ in range(times):
        admission.enter(peer)
        if admission.associate(peer, peer) is Entry.WELCOME:
            welcome += 1
        else:
            admission.leave(peer)
    return welcome


def test_the_last_places_are_for_peers_that_have_none():
    admission = Admission(
        Budget(
            connections=64,
            connections_per_address=64,
            associations=20,
            associations_per_peer=8,
            peers=6,
        )
    )

    busy = [associate(admission, peer, 20) for peer in ("a", "b", "c")]
    late = [associate(admission, peer, 20) for peer in ("d", "e", "f")]

    assert busy == [8, 8, 1]
    assert late == [1, 1, 1]


def test_of_more_peers_than_places_half_the_places_are_shared_by_those_who_came():
    admission = Admission(Budget(associations=4, associations_per_peer=4, peers=100))

    assert associate(admission, "a", 10) == 2
    assert [associate(admission, peer, 10) for peer in ("b", "c", "d")] == [1, 1, 0]


def test_a_crowd_is_not_kept_waiting_for_room():
    admission = Admission(
        Budget(connections=64, connections_per_address=4, associations=1, associations_per_peer=1)
    )
    assert associate(admission, "a", 1) == 1

    answers = []
    for _ in range(3):
        admission.enter("a")
        answers.append(admission.associate("a", "a"))

    assert answers == [Entry.NOT_YET, Entry.NOT_YET, Entry.FULL]


def test_a_peer_that_asks_too_often_is_too_fast_and_nobody_else():
    admission = Admission(
        Budget(
            connections=99,
            connections_per_address=99,
            associations=99,
            associations_per_peer=99,
            associations_per_second=2,
            peers=2,
        )
    )

    assert associate(admission, "a", 12) == 10
    admission.enter("a")
    assert admission.associate("a", "a") is Entry.TOO_FAST
    assert associate(admission, "b", 1) == 1


def test_what_was_not_taken_is_saved_up_for_five_seconds():
    now = 1_000.0
    pace = Pace(8, lambda: now)

    assert [pace.take() for _ in range(41)] == [0.0] * 40 + [0.125]
    now += 0.25
    assert [pace.take() == 0 for _ in range(3)] == [True, True, False]
    now += 3_600
    assert sum(pace.take() == 0 for _ in range(100)) == 40
