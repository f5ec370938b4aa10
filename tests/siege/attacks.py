"""Three ways to wear a receiver down, and what a good peer notices of each."""

import contextlib
import itertools
import random
import socket
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from doubles.raw_peer import RawPeer, associate_request, data_set, echo_command, p_data, pdv
from doubles.tools import find_data
from siege.sessions import damage, make_sessions, read_captured
from siege.target import Reading, Target

_ATTACKERS = 8
_WARM_UP = 500
_CONNECT_SECONDS = 15
_NOISE = (
    *(b"", b"\1", b"\x99", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3"),
    *(b"\1\0\xff\xff\xff\xff", bytes(500), b"\xff" * 500),
)
_BROKEN = associate_request(calling="BROKEN")
_LINGER_AND_RESET = b"\1\0\0\0\0\0\0\0"


def list_sessions() -> list[bytes]:
    """Return sound sessions, captured ones among them where the folder of test data is there."""
    folder = find_data()
    return make_sessions() + (read_captured(folder / "net_pdu" / "in-dicom") if folder else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """What so many malformed connections did to a receiver, after those that warmed it up."""

    connections: int
    seed: int
    before: Reading
    after: Reading
    lines: int
    seconds: float


def send_malformed(target: Target, connections: int, seed: int) -> Flood:
    """Open malformed connections one after another, eight at a time."""
    sessions = list_sessions()
    fresh = target.read()
    _attack(target, sessions, min(_WARM_UP, connections), seed)
    # Threads that have served outlive their connections for a moment.
    before, lines = target.settle(like=fresh), len(target.read_log())
    began = time.monotonic()
    _attack(target, sessions, connections, seed + 1)
    seconds = time.monotonic() - began
    return Flood(
        connections=connections,
        seed=seed,
        before=before,
        after=target.settle(like=before),
        lines=len(target.read_log()) - lines,
        seconds=seconds,
    )


def _attack(target: Target, sessions: Sequence[bytes], connections: int, seed: int) -> None:
    counter = itertools.count()

    def attack(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        while next(counter) < connections:
            source = f"127.0.{rng.randint(0, 2)}.{rng.randint(1, 250)}"
            said = rng.choice(_NOISE) if not rng.randrange(8) else rng.choice(sessions)
            said = damage(rng, said, sessions)
            with contextlib.suppress(OSError), _connect(target.port, source) as sock:
                sock.sendall(said)
                if not rng.randrange(10):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_AND_RESET)
                    continue
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65_536):
                    pass

    attackers = [threading.Thread(target=attack, args=(k,)) for k in range(_ATTACKERS)]
    for each in attackers:
        each.start()
    for each in attackers:
        each.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """What a good peer noticed beside stuck sockets.

    Attributes:
        established: seconds of each C-ECHO over an association that it had.
        anew: seconds from TCP connection to the answer of a C-ECHO, for each try.
        refused: how many tries were turned away.
        cpu_percent: of one core, that the receiver used.
    """

    sockets: int
    established: Sequence[float]
    anew: Sequence[float]
    refused: int
    cpu_percent: float
    opened: int


def hold_stuck(target: Target, sockets: int, seconds: float) -> Stuck:
    """Hold so many stuck sockets, opened anew when they are closed, while a good peer echoes."""
    ending = threading.Event()
    holder = _Holder(target.port, sockets, ending)
    thread = threading.Thread(target=holder.run)
    with RawPeer(target.port) as good:
        good.associate()
        thread.start()
        holder.full.wait(30)
        before, began = target.read(), time.monotonic()
        established, anew, refused = [], [], 0
        while time.monotonic() - began < seconds:
            started = time.monotonic()
            good.echo()
            established.append(time.monotonic() - started)
            started = time.monotonic()
            try:
                with RawPeer(target.port) as another:
                    another.associate()
                    another.echo()
                anew.append(time.monotonic() - started)
            except (OSError, AssertionError):
                refused += 1
            time.sleep(0.05)
        used = target.read().cpu_seconds - before.cpu_seconds
        elapsed = time.monotonic() - began
    ending.set()
    thread.join()
    return Stuck(
        sockets=sockets,
        established=established,
        anew=anew,
        refused=refused,
        cpu_percent=100 * used / elapsed,
        opened=holder.opened,
    )


class _Holder:
    """Keeps sockets open that say nothing, or hardly anything, or half of something."""

    def __init__(self, port: int, sockets: int, ending: threading.Event) -> None:
        self.full = threading.Event()
        self.opened = 0
        self._port = port
        self._places: list[socket.socket | None] = [None] * sockets
        self._ending = ending

    def run(self) -> None:
        while not self._ending.wait(0.5):
            for index, sock in enumerate(self._places):
                if sock is None or _is_closed(sock):
                    self._places[index] = self._open(index)
                elif index % 5 == 2:
                    with contextlib.suppress(OSError):
                        sock.send(b"\0")  # a trickle
            self.full.set()
        for sock in self._places:
            if sock is not None:
                sock.close()

    def _open(self, index: int) -> socket.socket | None:
        said = (
            b"",
            b"\1",
            b"\1\0\0\0\3\xe8",
            _BROKEN + p_data(pdv(1, echo_command(), is_command=True))[:20],
            b"\x16\x03\x01\x02\0\1",
        )[index % 5]
        source = "127.0.1.1" if index % 5 == 3 else f"127.0.2.{1 + index % 250}"
        self.opened += 1
        try:
            sock = _connect(self._port, source)  # half of a message comes from a peer that is known
            sock.sendall(said)
            sock.setblocking(False)
        except OSError:
            return None
        return sock


def _is_closed(sock: socket.socket) -> bool:
    try:
        while sock.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    sock.close()
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """How fast a good association stored, alone and in storms of associations."""

    alone: float
    in_storm: float
    requests: int
    answers: dict[str, int]


def raise_storm(target: Target, instances: int, requests: int, rounds: int) -> Storm:
    """Store over one association, alone and while so many others are asked for at once.

    The medians of so many rounds of each, in turn.
    """
    rates: dict[bool, list[float]] = {False: [], True: []}
    answers: dict[str, int] = {}
    content = bytes(20_000)
    numbers = itertools.count()
    with RawPeer(target.port) as good:
        good.associate()
        for _, stormy in itertools.product(range(rounds), (False, True)):
            askers = [
                threading.Thread(target=_ask, args=(target.port, k, answers))
                for k in range(requests if stormy else 0)
            ]
            for each in askers:
                each.start()
            began = time.monotonic()
            for _ in range(instances):
                uid = f"1.2.3.43.{next(numbers)}"
                if good.store(uid, data_set(uid, content)) != 0:
                    raise RuntimeError("an instance was refused")
            rates[stormy].append(instances / (time.monotonic() - began))
            for each in askers:
                each.join()
    return Storm(
        alone=statistics.median(rates[False]),
        in_storm=statistics.median(rates[True]),
        requests=requests * rounds,
        answers=answers,
    )


def _ask(port: int, number: int, answers: dict[str, int]) -> None:
    answer = "closed"
    with contextlib.suppress(OSError), RawPeer(port, source=f"127.0.1.{1 + number % 14}") as peer:
        peer.send(_BROKEN)
        pdu = peer.read_pdu()
        if pdu is not None:
            answer = "accepted" if pdu[0] == 2 else f"RJ {tuple(pdu[1][1:4])}"
    answers[answer] = answers.get(answer, 0) + 1


def _connect(port: int, source: str) -> socket.socket:
    return socket.create_connection(
        ("127.0.0.1", port), timeout=_CONNECT_SECONDS, source_address=(source, 0)
    )
