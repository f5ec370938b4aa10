"""What is measured, one function for each kind; every result is a flat record for one JSON line."""

import hashlib
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.load import VERIFICATION, Link, find_percentile, send
from benchmarks.receivers import (
    OURS,
    OURS_FAST,
    OURS_STRICT,
    SINK,
    SINK_LARGE,
    STORESCP_SHIPPED,
    Running,
    running,
)
from benchmarks.senders import OURS as OUR_SENDER
from benchmarks.senders import SENDERS, send_files
from benchmarks.studies import Study
from dicom_node.ledger import Ledger, Receipt
from dicom_node.part10 import decode_file_meta
from dicom_node.recorder import Recorder
from dicom_node.store import Store
from doubles.ledger import make_instance

Record = dict[str, Any]

_CHECKED = (OURS, OURS_STRICT, OURS_FAST)
_BEFORE = 256
_SETTLING_SECONDS = 2.0
_WARM_MEMORY = 1_200 * 2**20
_IDLE_ASSOCIATIONS = 64
_IDLE_SECONDS = 5.0
_CONTEXTS = 100
_ROWS = 4_000
_WRITERS = 16

_runs = iter(range(int(time.time()) % 10**9 * 1_000, 10**12))


def measure_reception(
    name: str, folder: Path, tools: Path, cases: list[tuple[Study, int]]
) -> Iterator[Record]:
    """Send each study over so many associations to one receiver, which has been at work before."""
    with running(name, folder, tools) as receiver:
        _let_work(receiver)
        for study, associations in cases:
            samples = study.samples(next(_runs))
            warm_up = study.samples(next(_runs))[: 2 * associations]
            _warm_memory()
            os.sync()
            load = send(
                receiver.port, receiver.ae_title, warm_up, samples, associations, receiver.meter
            )
            cpu_seconds = load.after.cpu_seconds - load.before.cpu_seconds
            yield {
                "kind": "reception",
                "receiver": name,
                "study": study.name,
                "associations": associations,
                "rate": load.rate,
                "p50": load.p50,
                "p99": load.p99,
                "bad": load.bad,
                "cpu_ms": 1e3 * cpu_seconds / load.instances,
                "memory_mib": load.after.memory_mib,
                "peak_mib": load.after.peak_mib,
                "lost": _count_lost(receiver, samples) if name in _CHECKED else 0,
            }


def measure_shipped_senders(name: str, folder: Path, tools: Path, study: Study) -> Iterator[Record]:
    """Let DCMTK's senders, as shipped, send a study to one receiver that was at work before."""
    with running(name, folder, tools) as receiver, tempfile.TemporaryDirectory() as files:
        _let_work(receiver)
        for program in ("dcmsend", "storescu"):
            place = Path(files) / program
            files_sent = len(study.write_files(place, next(_runs)))
            began = time.perf_counter()
            done = subprocess.run(
                [program, "-aec", receiver.ae_title, *_calling(program), "+sd", "127.0.0.1",
                 str(receiver.port), str(place)],
                capture_output=True,
                check=False,
            )  # fmt: skip
            yield {
                "kind": "shipped",
                "receiver": name,
                "sender": program,
                "rate": files_sent / (time.perf_counter() - began),
                "bad": done.returncode,
            }


def measure_sending(name: str, folder: Path, tools: Path, studies: list[Study]) -> Iterator[Record]:
    """Let one sender send studies into sinks that hold it up as little as can be."""
    for study in studies:
        sink = SINK_LARGE if study.name == "ct" else SINK
        yield _send(name, sink, folder / study.name, tools, study)


def measure_into_shipped(name: str, folder: Path, tools: Path, study: Study) -> Iterator[Record]:
    """Let one sender send to a receiver that is as it is shipped, Nagle's algorithm and all."""
    yield _send(name, STORESCP_SHIPPED, folder, tools, study)


def measure_answers(folder: Path, tools: Path, count: int) -> Iterator[Record]:
    """Let our sender send very many small instances, and count those that got no answer."""
    study = Study("small", 8)
    yield _send(OUR_SENDER, SINK, folder, tools, study, ("--count", str(count))) | {
        "kind": "answers"
    }


def _send(
    name: str,
    sink_name: str,
    folder: Path,
    tools: Path,
    study: Study,
    options: tuple[str, ...] = (),
) -> Record:
    folder.mkdir(parents=True)
    files = folder / "files"
    study.write_files(files, next(_runs), SENDERS[name].most)
    with running(sink_name, folder / "sink", tools) as sink:
        sent = send_files(name, sink, files, folder / "work", options)
    return {
        "kind": "sending",
        "sender": name,
        "receiver": sink_name,
        "study": study.name,
        "instances": sent.instances,
        "rate": sent.rate,
        "bad": sent.bad,
    }


def measure_set_up(name: str, folder: Path, tools: Path) -> Iterator[Record]:
    """Measure a C-ECHO and the set-up of associations with few and many contexts."""
    with running(name, folder, tools) as receiver:
        link = Link(receiver.port, receiver.ae_title, [VERIFICATION])
        echoes = [link.echo() for _ in range(200)]
        link.release()
        classes = [f"1.2.840.10008.5.1.4.1.1.{number}" for number in range(2, 2 + _CONTEXTS)]
        record: Record = {"kind": "set-up", "receiver": name, "bad": 0}
        record["echo_ms"] = 1e3 * find_percentile(echoes, 0.5)
        for key, contexts in (("one_ms", [VERIFICATION]), ("hundred_ms", classes)):
            seconds = []
            for _ in range(30):
                link = Link(receiver.port, receiver.ae_title, contexts)
                seconds.append(link.seconds)
                link.release()
            record[key] = 1e3 * find_percentile(seconds, 0.5)
        yield record


def measure_idleness(name: str, folder: Path, tools: Path) -> Iterator[Record]:
    """Measure what associations cost over which nothing comes."""
    with running(name, folder, tools) as receiver:
        before = receiver.memory_mib()
        links = [
            Link(receiver.port, receiver.ae_title, [VERIFICATION])
            for _ in range(_IDLE_ASSOCIATIONS)
        ]
        time.sleep(0.5)
        used = receiver.cpu_seconds()
        time.sleep(_IDLE_SECONDS)
        used = receiver.cpu_seconds() - used
        yield {
            "kind": "idle",
            "receiver": name,
            "core_percent": 100 * used / _IDLE_SECONDS,
            "mib_each": (receiver.memory_mib() - before) / _IDLE_ASSOCIATIONS,
            "bad": 0,
        }
        for link in links:
            link.release()


def measure_ledger(folder: Path) -> Iterator[Record]:
    """Measure durable rows: in groups from many writers, and one commit for each."""
    folder.mkdir(parents=True)

    def clock() -> datetime:
        return datetime.now(UTC)

    for grouped in (True, False):
        receipts = [
            Receipt(instance=make_instance(number), peer="p", association_id="a")
            for number in range(_ROWS)
        ]
        url = f"sqlite:///{folder / str(grouped)}.sqlite"
        with Ledger(url, clock).open() as ledger:
            if grouped:
                rate = _measure_group(ledger, Store(folder / "store").open(), receipts)
            else:
                alone = receipts[: _ROWS // 20]
                began = time.perf_counter()
                for receipt in alone:
                    ledger.record_receipts([receipt])
                rate = len(alone) / (time.perf_counter() - began)
        yield {"kind": "ledger", "grouped": grouped, "rate": rate, "bad": 0}


def measure_disk(folder: Path) -> Iterator[Record]:
    """Measure the disk itself: files of 135 KB, written, synced and named one after another."""
    folder.mkdir(parents=True)
    content = os.urandom(135_000)
    seconds = []
    for number in range(100):
        began = time.perf_counter()
        descriptor = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, content)
        os.fsync(descriptor)
        os.close(descriptor)
        seconds.append(time.perf_counter() - began)
    yield {"kind": "disk", "sync_ms": 1e3 * statistics.median(seconds), "bad": 0}


def _measure_group(ledger: Ledger, store: Store, receipts: list[Receipt]) -> float:
    # Each writer gives what 16 associations with a window of 16 would have under way.
    with Recorder(ledger, store, waited_for=False) as recorder:
        threads = [
            threading.Thread(
                target=lambda part: [recorder.record(each) for each in part],
                args=(receipts[index::_WRITERS],),
            )
            for index in range(_WRITERS)
        ]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        recorder.close_association("a")
        return len(receipts) / (time.perf_counter() - began)


def _calling(program: str) -> list[str]:
    return ["-aet", program.upper()]


def _count_lost(receiver: Running, samples: list[Any]) -> int:
    """Return how many of the data sets that were sent are not stored byte for byte."""
    incoming = receiver.folder / "data" / "store" / "incoming"
    digests = set()
    for path in incoming.glob("*/*.dcm"):
        content = path.read_bytes()
        digests.add(
            hashlib.sha256(content[decode_file_meta(content).data_set_offset :]).hexdigest()
        )
    return sum(sample.digest not in digests for sample in samples)


def _let_work(receiver: Running) -> None:
    """Let a receiver take its first instances: it is measured as one that is up for days."""
    before = Study("small", _BEFORE).samples(next(_runs))
    send(receiver.port, receiver.ae_title, [], before, _WRITERS, receiver.meter)
    time.sleep(_SETTLING_SECONDS)


def _warm_memory() -> None:
    """Touch memory and give it back: a virtual machine may bill its next use to a receiver."""
    memory = bytearray(_WARM_MEMORY)
    del memory
