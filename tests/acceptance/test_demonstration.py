"""`make demo` as a program: it ends with 0 only when the completed study is in the PACS."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from dicom_node.demonstration import __main__ as demonstration
from dicom_node.demonstration import tour
from doubles.node import CONFIGURATION
from doubles.tools import require_data

pytestmark = pytest.mark.acceptance


@pytest.fixture
def quick_configuration(copying_models: Path, tmp_path: Path) -> Path:
    """The shipped configuration with a model that is quick."""
    folder = shutil.copytree(CONFIGURATION, tmp_path / "config")
    node = yaml.safe_load((folder / "node.yaml").read_text())
    (folder / "node.yaml").write_text(
        yaml.safe_dump({**node, "models_folder": str(copying_models)})
    )
    return folder


@pytest.fixture
def phantom_folder(phantom, tmp_path) -> Path:
    folder = tmp_path / "phantom"
    for path in phantom.files:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.parent.name)
    return folder


def read_report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_real_ct_is_seen_by_the_report_alone(tmp_path):
    limb = require_data("sts_ctmrpet_dicom", "STS_015")
    out = tmp_path / "demo"

    status = demonstration.main(
        [
            str(limb / "MR_T1" / "image"),
            *("--held-back", f"CT={limb / 'CT' / 'image'}"),
            *("--config", str(CONFIGURATION), "--out", str(out)),
        ]
    )

    report = read_report(out)
    assert status == 0, report["failures"]
    assert [one["modality"] for one in report["series"]] == ["MR"]
    figures = report["comparisons"]["CT"]
    assert figures["mean_absolute_error"] < figures["mean_absolute_error_of_a_constant"]
    assert (out / "CT.png").stat().st_size > 0
    assert "CT.png" in (out / "report.html").read_text()


def test_archive_stands_in_where_orthanc_cannot_be_had(
    monkeypatch, capsys, phantom_folder, quick_configuration, tmp_path
):
    for module in (demonstration, tour):
        monkeypatch.setattr(module, "find_orthanc", lambda: None)
    out = tmp_path / "demo"

    status = demonstration.main(
        [str(phantom_folder), "--config", str(quick_configuration), "--out", str(out)]
    )

    report = read_report(out)
    assert status == 0, report["failures"]
    assert report["pacs"] == "built-in archive"
    assert "built-in archive stands in" in capsys.readouterr().out
    derived = [one for job in report["jobs"] for one in job["derived"]]
    assert derived
    assert all(one["in_pacs"] for one in derived)
    assert len(list((out / "derived").rglob("*.dcm"))) == len(derived)


def test_folder_that_no_demonstration_wrote_is_left_alone(phantom_folder, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("keep me")

    status = demonstration.main([str(phantom_folder), "--out", str(tmp_path / "letters")])

    assert status == 2
    assert (tmp_path / "letters" / "mine.txt").exists()
