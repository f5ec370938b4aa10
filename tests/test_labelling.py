import json

import pytest

from doubles.studies import load_contrasts
from doubles.tools import require_data
from labelling.measure import Figures, judge
from labelling.truth import Truth, build_header, is_held_out, read_truth

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def truths() -> list[Truth]:
    data = require_data("series_headers", "series.json").parents[1]
    require_data("dicom_brain_adi", "adi.tar.xz")
    return read_truth(data)


def test_every_real_header_has_a_truth(truths: list[Truth]) -> None:
    headers = json.loads(require_data("series_headers", "series.json").read_text())

    labelled = {truth.name for truth in truths}

    assert {f"{header['set']} {k}" for k, header in enumerate(headers)} <= labelled


@pytest.mark.parametrize("held_out", [False, True])
def test_labels_of_real_series_reach_their_bars(truths: list[Truth], held_out: bool) -> None:
    part = [truth for truth in truths if truth.held_out == held_out]

    found = Figures(judge(part, load_contrasts()))

    assert found.surely_wrong == 0
    assert found.right_share >= 0.99
    assert found.missed_share <= 0.1
    assert found.undecidable_labelled == 0


@pytest.mark.parametrize("held_out", [False, True])
def test_labels_of_real_series_reach_their_bars_without_text(
    truths: list[Truth], held_out: bool
) -> None:
    part = [truth for truth in truths if truth.held_out == held_out]

    found = Figures(judge(part, load_contrasts(), text_hidden=True))

    assert found.surely_wrong == 0
    assert found.right_share >= 0.99
    assert found.missed_share <= 0.1


def test_what_is_held_out_is_decided_by_the_name_of_the_set() -> None:
    assert [is_held_out(name) for name in ("dcm_qa", "dicom2nifti")] == [False, True]


def test_facts_of_functional_groups_become_those_of_a_header() -> None:
    header = build_header(
        {
            "Modality": "MR",
            "NumberOfFrames": 2,
            "MREchoSequence.EffectiveEchoTime": 90.0,
            "MRModifierSequence.InversionRecovery": "YES",
        }
    )

    assert header["EchoTime"] == 90.0
    assert header["ScanningSequence"] == ["IR"]
