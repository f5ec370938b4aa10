from dicom_node.admission import Admission, Budget

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


def test_an_association_does_not_count_as_a_connection():
    admission = Admission(BUDGET)
    for _ in range(2):
        admission.enter("a")

    assert admission.associate("a", "pacs")
    assert admission.enter("a")
    assert admission.total() == 3
    assert not admission.associate("a", "pacs")
    assert admission.associate("a", "scanner")
    assert admission.total() == 3


def test_the_end_of_an_association_makes_room():
    admission = Admission(BUDGET)
    admission.enter("a")
    admission.associate("a", "pacs")

    admission.part("a", "pacs")
    admission.leave("a")

    assert admission.total() == 0
    admission.enter("a")
    assert admission.associate("a", "pacs")
