"""Coverage-guided fuzzing of everything that a peer's bytes pass on their way into the node.

    make fuzz                                     a minute
    make fuzz FUZZ_ARGS="-max_total_time=3600"    any options of libFuzzer

One input is one connection, served by the real acceptor on a socket that is none and a spool that
keeps nothing: association request, P-DATA, command set, structure, notice. The first byte picks
what is decoded alone instead. Nothing may escape but the refusals that each decoder documents; an
input that takes more than a second, or 400 MiB, is a finding as well. Findings lie in build/fuzz.
"""

import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dicom_node"]):
    from dicom_node.acceptor import Acceptor, Caller, Door
    from dicom_node.admission import Entry
    from dicom_node.command import decode_command
    from dicom_node.commitment import decode_report
    from dicom_node.errors import DeliveryError, RefusedInstance
    from dicom_node.notices import PERFORMED_PROCEDURE_STEP as STEP
    from dicom_node.notices import decode_notice
    from dicom_node.spool import Announced
    from dicom_node.structure import BeyondHeadError, Memory, StructureLimits, read_identity
    from dicom_node.upper_layer import (
        IMPLICIT_VR_LITTLE_ENDIAN,
        ProtocolError,
        decode_accept,
        decode_request,
    )
    from dicom_node.wado import read_parts
    from dicom_node.wire import Limits

from doubles.raw_peer import EXPLICIT, IMPLICIT, MR, associate_request, data_set, echo_command
from doubles.tools import find_data
from siege.sessions import make_sessions, read_captured

BUILD = Path(__file__).resolve().parents[2] / "build" / "fuzz"
SECONDS, LONGEST, MEBIBYTES = 60, 4_096, 400
_LIMITS = StructureLimits(depth=8, elements=200, bytes_outside_pixels=2_048)
_LONGEST_INSTANCE = 3_000  # limits that an input can reach
_PARTS = "multipart/related; boundary=x"
_PATIENCE = 3_600.0  # this socket never blocks, so that no deadline is met


class Bytes:
    """A socket from which a peer's bytes come, and then the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def recv_into(self, buffer: memoryview, _: int = 0, __: int = 0) -> int:
        piece = self._data[self._position : self._position + min(len(buffer), 4_096)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def sendmsg(self, pieces: Sequence[bytes | memoryview], _: object = (), __: int = 0) -> int:
        size = sum(map(len, pieces))
        assert size < 200_000  # no answer is much longer than what it answers
        return size

    def sendall(self, data: bytes) -> None:
        self.sendmsg([data])

    def setsockopt(self, *_: object) -> None: ...
    def settimeout(self, _: float | None) -> None: ...
    def shutdown(self, _: int) -> None: ...
    def close(self) -> None: ...


class Nothing:
    """Counts nobody, records nothing, and has heard only our own words."""

    is_shut = is_hindered = False

    def associate(self, address: str, peer: str) -> Entry:
        return Entry.WELCOME

    def part(self, address: str, peer: str) -> None: ...
    def leave(self, address: str) -> None: ...
    def close_association(self, association_id: str) -> None: ...

    def take_report(self, peer: str, report: object) -> int:
        return 0

    def take_notice(self, peer: str, notice: object) -> int:
        return 0

    def note(self, event: str, *, who: str, **numbers: int | str) -> None:
        assert event.isidentifier()
        assert who in {"127.0.0.1", "peer"}


class Walked:
    """A spool that walks each instance as the real one does, and keeps nothing."""

    def __init__(self) -> None:
        self.recorder = Nothing()
        self.memory = Memory()

    def begin(self, announced: Announced, _: object) -> "Coming":
        return Coming(self, announced)

    def keep(self, announced: Announced, fragments: Sequence[memoryview], origin: object) -> None:
        self.write(announced, fragments, origin)

    def write(
        self, announced: Announced, fragments: Sequence[memoryview], origin: object
    ) -> "Settled":
        self.begin(announced, origin).keep(fragments)
        return Settled()


class Settled:
    """An instance that is kept already."""

    is_settled = True

    def settle(self) -> None: ...


class Coming:
    """An instance that comes in several pieces."""

    def __init__(self, spool: Walked, announced: Announced) -> None:
        self._memory = spool.memory
        self._explicit = announced.transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN
        self._pieces: list[bytes] = []

    def __enter__(self) -> "Coming":
        return self

    def __exit__(self, *_: object) -> None: ...

    def write(self, fragments: Sequence[memoryview]) -> None:
        self._pieces += [bytes(each) for each in fragments]

    def keep(self, fragments: Sequence[memoryview]) -> None:
        self.write(fragments)
        walk(b"".join(self._pieces), explicit=self._explicit, memory=self._memory)


def walk(data: bytes, *, explicit: bool, memory: Memory) -> None:
    """Walk a data set with and without what earlier walks have met: they agree."""
    verdicts = []
    for each in (Memory(), memory):
        try:
            verdicts.append(read_identity(data, explicit=explicit, limits=_LIMITS, memory=each))
        except RefusedInstance as error:
            verdicts.append(error.status)
    if not all(isinstance(each, int) for each in verdicts):  # of two defects either may be told
        assert verdicts[0] == verdicts[1], verdicts
    if isinstance(verdicts[0], int):
        raise RefusedInstance("as the walk said", verdicts[0])


class OpenDoor(Door):
    """A door at which everybody is known."""

    def find_caller(self, *_: object) -> Caller:
        return self.callers[0]


def _build_acceptor() -> Acceptor:
    everywhere = ip_network("0.0.0.0/0")
    peer = Caller(
        alias="peer",
        ae_title="PEER",
        network=everywhere,
        may_store=True,
        may_report=True,
        may_notify=True,
    )
    door = OpenDoor(
        ae_title="NODE",
        callers=(peer,),
        plain=(everywhere,),
        storage={MR: (EXPLICIT, IMPLICIT)},
        folder=Path("/"),
        messages_per_second=10**9,
        instance_bytes=_LONGEST_INSTANCE,
        limits=Limits(pdu_seconds=_PATIENCE, message_seconds=_PATIENCE, idle_seconds=_PATIENCE),
    )
    nothing = Nothing()
    return Acceptor(door, Walked(), nothing, nothing, lambda: False)


def _build_targets() -> list[Callable[[bytes], object]]:
    acceptor, memory = _build_acceptor(), Memory()

    def head(data: bytes) -> None:
        """Walk the first half of a data set whose length is known."""
        half = len(data) // 2
        read_identity(data[:half], explicit=True, limits=_LIMITS, length=len(data), memory=memory)

    def serve(data: bytes) -> None:
        """Serve a connection to its end as `hall` does, but on one thread."""
        session = acceptor.admit(Bytes(data), "127.0.0.1")
        while session is not None:
            session.answer_now(time.monotonic(), None, read=True)
            if not session.answer_next():
                return

    return [
        serve,
        decode_request,
        decode_accept,
        decode_command,
        lambda data: walk(data, explicit=True, memory=memory),
        lambda data: walk(data, explicit=False, memory=memory),
        head,
        lambda data: decode_notice(STEP, "1.2.3", data, {MR}, explicit=True, is_new=True),
        lambda data: [b"".join(each) for each in read_parts(_PARTS, iter((data[:9], data[9:])))],
        lambda data: decode_report(data, explicit=True),
    ]


def list_seeds() -> list[bytes]:
    """Return sound inputs of every kind."""
    folder = find_data()
    captured = read_captured(folder / "net_pdu" / "in-dicom") if folder else []
    sessions = [*make_sessions("1.2.3.5"), *captured]
    request, content = associate_request()[6:], data_set("1.2.3.5")
    alone = [request, request, echo_command(), content, content[:200], content, content]
    alone.append(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--x--")
    return [b"\0" + each for each in sessions] + [
        bytes((index,)) + each for index, each in enumerate(alone, 1)
    ]


def main() -> None:
    """Fuzz until libFuzzer is told to end, or something is found."""
    targets = _build_targets()

    def one_input(data: bytes) -> None:
        if not data:
            return
        try:
            targets[data[0] % len(targets)](data[1:])
        except (ProtocolError, RefusedInstance, BeyondHeadError, DeliveryError):
            pass
        except ValueError:
            if data[0] % len(targets) != len(targets) - 1:  # what decode_report alone documents
                raise

    corpus = BUILD / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(list_seeds()):
        (corpus / f"seed-{index:02d}").write_bytes(seed)
    given = sys.argv[1:]
    options = {
        "-max_total_time": SECONDS,
        "-max_len": LONGEST,
        "-timeout": 1,
        "-rss_limit_mb": MEBIBYTES,
        "-print_final_stats": 1,
        "-artifact_prefix": f"{BUILD}/",
    }
    chosen = [
        f"{name}={value}"
        for name, value in options.items()
        if not any(each.startswith(f"{name}=") for each in given)
    ]
    folders = [] if any(not each.startswith("-") for each in given) else [str(corpus)]
    atheris.Setup([sys.argv[0], *chosen, *given, *folders], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
