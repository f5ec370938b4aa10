import json

import pytest

from dicom_node.attributes import (
    FAILED_SOP_SEQUENCE,
    FAILURE_REASON,
    REFERENCED_SOP_CLASS_UID,
    REFERENCED_SOP_INSTANCE_UID,
    REFERENCED_SOP_SEQUENCE,
    TRANSACTION_UID,
    encode_attributes,
)
from dicom_node.commitment import LONGEST_REPORT, MOST_REFERENCES, decode_report

LONGEST_UID = "1." + "2" * 62
CLASS = "1.2.840.10008.5.1.4.1.1.4"
BOTH = pytest.mark.parametrize("explicit", [True, False])


def make_item(uid: str, reason: int | None = None) -> dict[int, str]:
    item = {REFERENCED_SOP_CLASS_UID: CLASS, REFERENCED_SOP_INSTANCE_UID: uid}
    return item if reason is None else {**item, FAILURE_REASON: str(reason)}


def encode(kept: list[str], lost: dict[str, int], *, explicit: bool) -> bytes:
    return encode_attributes(
        {
            TRANSACTION_UID: "2.25.1",
            REFERENCED_SOP_SEQUENCE: [make_item(uid) for uid in kept],
            FAILED_SOP_SEQUENCE: [make_item(uid, reason) for uid, reason in lost.items()],
        },
        explicit=explicit,
    )


@BOTH
def test_report_tells_what_is_kept_and_why_the_rest_is_lost(explicit):
    data_set = encode(["1.2.3", "1.2.4"], {"1.2.5": 0x0112}, explicit=explicit)

    report = decode_report(data_set, explicit=explicit)

    assert report.transaction_uid == "2.25.1"
    assert report.kept == ("1.2.3", "1.2.4")
    assert report.lost == {"1.2.5": 0x0112}


def test_instance_that_is_both_kept_and_lost_is_lost():
    report = decode_report(encode(["1.2.3"], {"1.2.3": 0x0110}, explicit=True), explicit=True)

    assert (report.kept, report.lost) == ((), {"1.2.3": 0x0110})


def test_loss_without_a_reason_is_a_failure_to_process():
    item = make_item("1.2.3")
    data_set = encode_attributes(
        {TRANSACTION_UID: "2.25.1", FAILED_SOP_SEQUENCE: [item]}, explicit=True
    )

    assert decode_report(data_set, explicit=True).lost == {"1.2.3": 0x0110}


@pytest.mark.parametrize(
    "data_set",
    [
        b"",
        b"garbage, and much of it",
        encode(["1.2.3", "../../etc"], {}, explicit=True),
        encode([f"1.2.{number}" for number in range(MOST_REFERENCES + 1)], {}, explicit=True),
        encode_attributes({TRANSACTION_UID: "", REFERENCED_SOP_SEQUENCE: []}, explicit=True),
    ],
)
def test_what_is_no_report_on_a_request_of_ours_is_refused(data_set):
    with pytest.raises(ValueError, match=r"."):
        decode_report(data_set, explicit=True)


@BOTH
def test_longest_report_fits_into_one_message(explicit):
    """Over the network, and between the processes of the receiver (`crew`: 64 KiB)."""
    uids = [f"{LONGEST_UID[:-3]}{number}" for number in range(100, 100 + MOST_REFERENCES)]
    data_set = encode([], dict.fromkeys(uids, 0xFFFF), explicit=explicit)

    report = decode_report(data_set, explicit=explicit)

    inside = json.dumps(["report", 10**9, "a" * 32, LONGEST_UID, [], list(report.lost.items())])
    assert len(report.lost) == MOST_REFERENCES
    assert len(data_set) < LONGEST_REPORT
    assert len(inside) < 65_536
