import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage

from dicom_node.archive import Archive
from doubles import saboteur
from doubles.dcmtk import echoscu, storescu
from doubles.tools import require_program

pytestmark = pytest.mark.integration

MR_FILE = Path(str(get_testdata_file("MR_small.dcm")))
MR = dcmread(MR_FILE)


@pytest.fixture
def mover() -> Iterator[tuple[int, list[str]]]:
    """An SCP named MOVER: its port, and the SOP Instance UIDs that it was given."""
    received: list[str] = []

    def on_store(event: evt.Event) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    ae = AE("MOVER")
    ae.add_supported_context(MRImageStorage)
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    yield server.server_address[1], received
    ae.shutdown()


@pytest.fixture
def archive(tmp_path, mover) -> Iterator[Archive]:
    one = Archive(
        tmp_path / "archive",
        peers={"SCANNER": ("127.0.0.1", 1), "MOVER": ("127.0.0.1", mover[0])},
    )
    one.start()
    yield one
    one.stop()


def run(program: str, archive: Archive, *arguments: str) -> subprocess.CompletedProcess[str]:
    titles = ["-S", "-aet", "SCANNER", "-aec", archive.ae_title]
    return subprocess.run(
        [require_program(program, "dcmtk"), *titles, *arguments, "127.0.0.1", str(archive.port)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def find(archive: Archive, *keys: str) -> str:
    options = [part for key in keys for part in ("-k", key)]
    done = run("findscu", archive, "-v", *options)
    return done.stdout + done.stderr


def test_it_answers_echo_and_keeps_what_it_is_sent(archive):
    assert echoscu(archive.port, called="ARCHIVE", calling="SCANNER").returncode == 0
    assert storescu(archive.port, MR_FILE, called="ARCHIVE", calling="SCANNER").returncode == 0

    assert archive.find_instances(MR.StudyInstanceUID) == {MR.SOPInstanceUID: MR.SeriesInstanceUID}
    assert archive.read_instance(MR.SOPInstanceUID)[128:132] == b"DICM"


def test_a_stranger_is_turned_away(archive):
    assert echoscu(archive.port, called="ARCHIVE", calling="STRANGER").returncode != 0


def test_it_finds_by_level_wildcard_and_uid(archive):
    storescu(archive.port, MR_FILE, called="ARCHIVE", calling="SCANNER")

    study = find(archive, "QueryRetrieveLevel=STUDY", "PatientID=4MR*", "StudyInstanceUID")
    nothing = find(archive, "QueryRetrieveLevel=STUDY", "PatientID=5*", "StudyInstanceUID")
    image = find(
        archive,
        "QueryRetrieveLevel=IMAGE",
        f"SeriesInstanceUID={MR.SeriesInstanceUID}",
        "SOPInstanceUID",
    )

    assert MR.StudyInstanceUID in study
    assert MR.StudyInstanceUID not in nothing
    assert MR.SOPInstanceUID in image


def test_it_moves_a_study_to_a_known_peer_only(archive, mover):
    storescu(archive.port, MR_FILE, called="ARCHIVE", calling="SCANNER")
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={MR.StudyInstanceUID}"]

    moved = run("movescu", archive, "-aem", "MOVER", *keys)
    refused = run("movescu", archive, "-aem", "ELSEWHERE", *keys)

    assert moved.returncode == 0
    assert mover[1] == [MR.SOPInstanceUID]
    assert refused.returncode != 0


def test_it_still_holds_everything_after_a_restart(archive, tmp_path):
    storescu(archive.port, MR_FILE, called="ARCHIVE", calling="SCANNER")
    archive.stop()

    again = Archive(tmp_path / "archive")
    again.start()
    again.stop()

    assert again.find_instances(MR.StudyInstanceUID)


def test_as_a_program_it_tells_no_value(tmp_path):
    text = "DOE^JANE"
    environment = {
        **os.environ,
        "PYTHONPATH": saboteur.__path__[0],
        "SABOTEUR_TEXT": text,
        "SABOTEUR_FOLDER": str(tmp_path),
    }
    command = [sys.executable, "-m", "dicom_node.archive", tmp_path / "archive", "--port", "0"]
    log = tmp_path / "log"

    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / str(process.pid)).exists() or "archive.ready" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    finally:
        process.terminate()
        process.wait()

    told = log.read_text()
    assert "INFO dicom_node.archive archive.ready port=" in told
    assert "ERROR pydicom message withheld" in told
    assert text not in told
