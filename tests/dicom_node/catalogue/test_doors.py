"""The doors that the tests of the catalogue share: what one test leaves is not in another's log."""

import time

import pytest

from doubles.door_watch import told
from doubles.receiver import lend, open_door

pytestmark = pytest.mark.integration


def test_a_door_has_told_of_everybody_before_the_next_test_has_it(tmp_path, caplog, monkeypatch):
    with open_door(tmp_path) as door:
        note = door.complaints.note

        def note_late(event: str, **facts: str) -> None:
            time.sleep(0.2)
            note(event, **facts)

        monkeypatch.setattr(door.complaints, "note", note_late)
        with lend(door), door.connect() as peer:
            peer.associate()

        assert told(caplog) == ["connection_closed"]
