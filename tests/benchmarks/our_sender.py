"""The node's own sender: what delivery does with results that are due, ledger and store included.

Usage: our_sender.py PORT AE_TITLE FILES WORK [--associations N] [--count N]

Prints how many instances were sent, how many of them were answered with success, and the seconds.
"""

import argparse
import hashlib
import json
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

from dicom_node.domain import DeliveryState, DerivedInstance
from dicom_node.part10 import decode_file_meta
from doubles.ledger import finish, make_derived, make_plan, receive_and_judge
from doubles.outbox import Outbox


def main() -> None:
    """Queue the files as results, deliver them, and say how it went."""
    options = read_options()
    outbox = Outbox(options.work)
    receive_and_judge(outbox.ledger, [make_plan(deliver_to=("sink",))])
    finish(outbox.ledger, *queue(outbox, sorted(options.files.iterdir()), options.count))
    sink = SimpleNamespace(port=options.port, ae_title=options.ae_title)
    peer = {"associations": options.associations}
    with closing(outbox.destination("sink", peer=peer, sink=sink)) as destination:
        began = time.perf_counter()
        while destination.sweep():
            pass
        seconds = time.perf_counter() - began
    states = outbox.states()
    outbox.ledger.close()
    taken = states.count(DeliveryState.SENT)
    print(json.dumps({"sent": len(states), "taken": taken, "seconds": seconds}))  # noqa: T201


def queue(outbox: Outbox, files: list[Path], count: int | None) -> list[DerivedInstance]:
    """Put files into the store and describe instances of them; more than there are are repeated."""
    derived = []
    for number in range(count or len(files)):
        if number < len(files):
            content = files[number].read_bytes()
            path = f"derived/{'a' * 32}/1/image-{number}.dcm"
            outbox.store.write(path, content)
            meta = decode_file_meta(content)
            facts = {
                "sop_instance_uid": meta.sop_instance_uid,
                "sop_class_uid": meta.sop_class_uid,
                "sha256": hashlib.sha256(content).hexdigest(),
                "path": path,
            }
            derived.append(make_derived(number, **facts))
        else:
            like = derived[number % len(files)]
            facts = {name: getattr(like, name) for name in ("sop_class_uid", "sha256", "path")}
            derived.append(make_derived(number, **facts))
    return derived


def read_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("ae_title")
    parser.add_argument("files", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--associations", type=int, default=1)
    parser.add_argument("--count", type=int)
    return parser.parse_args()


main()
