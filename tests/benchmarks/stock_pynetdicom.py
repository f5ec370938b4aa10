"""pynetdicom as its documentation shows it, in the fastest of the usual forms.

Usage: stock_pynetdicom.py PORT FOLDER [--sync]
"""

import os
import sys
from pathlib import Path

from pynetdicom import AE, AllStoragePresentationContexts, evt

port, folder = int(sys.argv[1]), Path(sys.argv[2])
is_synced = "--sync" in sys.argv


def store(event: evt.Event) -> int:
    with (folder / f"{event.request.AffectedSOPInstanceUID}.dcm").open("wb") as file:
        file.write(event.encoded_dataset())
        if is_synced:
            file.flush()
            os.fdatasync(file.fileno())
    return 0x0000


application = AE(ae_title="BENCH")
application.maximum_associations = 200
application.supported_contexts = AllStoragePresentationContexts
application.add_supported_context("1.2.840.10008.1.1")
application.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store)])
