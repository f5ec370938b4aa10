import io

from rich.console import Console

from dicom_node.demonstration.page import lay_out, show, write_page

DOCUMENT = {
    "completed": True,
    "failures": [],
    "study_instance_uid": "1.2.3",
    "phantom": True,
    "note": "A PHANTOM: nobody <b>was</b> imaged.",
    "pacs": "Orthanc",
    "series": [
        {
            "series_instance_uid": "1.2.3.4",
            "modality": "MR",
            "instances": 60,
            "origin": "acquired",
            "label": "T1w",
            "confidence": 0.95,
            "evidence": ["short TR and TE", "<script>alert(1)</script>"],
            "problem": None,
        }
    ],
    "slots": {"brain-mr-complete": {"T1w": "present", "T2w": "missing"}},
    "gaps": [{"rule": "brain-mr-complete", "target": "T2w", "state": "missing"}],
    "refusals": [],
    "jobs": [
        {
            "target": "T2w",
            "modality": "MR",
            "sources": {"T1w": "1.2.3.4"},
            "model": "brain-any-unet25d",
            "model_digest": "0" * 64,
            "rule_reason": "brain-mr-complete wants T2w, and none came",
            "state": "done",
            "reason": None,
            "quality": {"verdict": "warn", "reasons": ["thick slices"]},
            "seconds": {"predict": 4.2},
            "derived": [{"sop_instance_uid": "1", "in_pacs": True}],
            "deliveries": [
                {
                    "peer": "pacs",
                    "role": "image",
                    "state": "sent",
                    "instances": 60,
                    "attempts": 1,
                    "statuses": ["0x0000"],
                    "reasons": [],
                }
            ],
        }
    ],
    "comparisons": {},
    "validation": {"tools": ["dicom_node.conformance"], "problems": []},
    "seconds": {"start the node": 1.5},
}


def test_page_shows_what_came_in_what_lacked_and_what_was_made():
    page = write_page(DOCUMENT, ["T2w.png"])

    for text in ("T1w", "short TR and TE", "T2w", "brain-any-unet25d", "thick slices", "0x0000"):
        assert text in page
    assert '<img src="T2w.png"' in page
    assert "phantom study" in page


def test_page_carries_nothing_that_a_peer_wrote_as_markup():
    page = write_page(DOCUMENT, [])

    assert "<script>" not in page
    assert "nobody <b>" not in page


def test_tables_without_rows_are_left_out():
    titles = [sheet.title for sheet in lay_out(DOCUMENT)]

    assert "Series received" in titles
    assert "Against the series that was held back" not in titles


def test_terminal_tells_a_failure():
    output = io.StringIO()

    show({**DOCUMENT, "completed": False, "failures": ["T2w: refused"]}, Console(file=output))

    assert "FAILED: T2w: refused" in output.getvalue()
