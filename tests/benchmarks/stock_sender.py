"""pynetdicom as its documentation shows how to send files.

Usage: stock_sender.py PORT AE_TITLE FILES [--no-delay]
"""

import json
import socket
import sys
import time
from pathlib import Path

from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.transport import AssociationSocket

if "--no-delay" in sys.argv:
    # pynetdicom has no setting for it.
    create = AssociationSocket._create_socket

    def create_without_delay(self: AssociationSocket, *arguments: object) -> socket.socket:
        made = create(self, *arguments)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    AssociationSocket._create_socket = create_without_delay

port, ae_title, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
files = sorted(folder.iterdir())
first = dcmread(files[0], stop_before_pixels=True)
application = AE("BENCHMARK")
application.add_requested_context(first.SOPClassUID, first.file_meta.TransferSyntaxUID)
association = application.associate("127.0.0.1", port, ae_title=ae_title)
began = time.perf_counter()
taken = 0
for number, path in enumerate(files):
    status = association.send_c_store(path, msg_id=number + 1)
    taken += status.get("Status") == 0x0000
seconds = time.perf_counter() - began
association.release()
print(json.dumps({"sent": len(files), "taken": taken, "seconds": seconds}))  # noqa: T201
