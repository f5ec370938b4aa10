"""What peers say in one connection: sound sessions, and what becomes of them on a bad day.

Captured sessions come from the folder of test data (net_pdu), addressed anew; a few of our own are
always there.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from dicom_node.upper_layer import encode_pdu
from doubles.raw_peer import (
    EXPLICIT,
    IMPLICIT,
    MR,
    RELEASE_RQ,
    VERIFICATION,
    associate_request,
    data_set,
    echo_command,
    p_data,
    pdv,
    store_command,
)

_HEADER = 6
_TITLES = slice(10, 42)  # called and calling AE title in an association request
_LIES = (0, 1, 2, 4, 0x7F, 0x80, 0xFF)
_RELEASE = encode_pdu(RELEASE_RQ, bytes(4))


def make_sessions(uid: str = "1.2.3.5") -> list[bytes]:
    """Return sessions of our own; those that store an instance store `uid`."""
    content = data_set(uid, bytes(3_000))
    pieces = [content[start : start + 400] for start in range(0, len(content), 400)]
    last = len(pieces) - 1
    store = pdv(3, store_command(uid), is_command=True)
    fragments = [
        pdv(3, piece, is_command=False, is_last=index == last) for index, piece in enumerate(pieces)
    ]
    both = associate_request(((VERIFICATION, (IMPLICIT,)), (MR, (EXPLICIT, IMPLICIT))))
    echo = p_data(pdv(1, echo_command(), is_command=True))
    return [
        both + echo + _RELEASE,
        both + p_data(store) + b"".join(map(p_data, fragments)) + _RELEASE,
        both + echo * 3 + p_data(store, *fragments) + _RELEASE,
    ]


def read_captured(folder: Path) -> list[bytes]:
    """Return what requestors said in the captured sessions of a folder, to NODE from SCANNER."""
    titles = b"NODE".ljust(16) + b"SCANNER".ljust(16)
    sessions = [path.read_bytes() for path in sorted(folder.glob("*.raw"))]
    return [each[: _TITLES.start] + titles + each[_TITLES.stop :] for each in sessions]


def split(session: bytes) -> list[bytes]:
    """Return the PDUs of a session; the last may be cut off."""
    pdus, position = [], 0
    while position < len(session):
        end = position + _HEADER + int.from_bytes(session[position + 2 : position + 6], "big")
        pdus.append(session[position:end])
        position = end
    return pdus


def damage(rng: random.Random, session: bytes, others: Sequence[bytes]) -> bytes:
    """Return a session with one to four faults in it."""
    for _ in range(rng.randint(1, 4)):
        session = rng.choice(_FAULTS)(rng, session, others)
    return session


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return a file or a data set with one to four faults in it."""
    faults = (_flip_bits, _cut, _lie, _repeat_bytes)
    for _ in range(rng.randint(1, 4)):
        content = rng.choice(faults)(rng, content, ())
    return content


def _flip_bits(rng: random.Random, session: bytes, _: Sequence[bytes]) -> bytes:
    damaged = bytearray(session)
    for _ in range(rng.randint(1, 8) if session else 0):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _cut(rng: random.Random, session: bytes, _: Sequence[bytes]) -> bytes:
    return session[: rng.randint(0, len(session))]


def _lie(rng: random.Random, session: bytes, _: Sequence[bytes]) -> bytes:
    """Overwrite what may be a length of two or four bytes."""
    size = rng.choice((2, 4))
    if len(session) <= size:
        return session
    start = rng.randrange(len(session) - size)
    return session[:start] + bytes(rng.choices(_LIES, k=size)) + session[start + size :]


def _lie_about_a_pdu(rng: random.Random, session: bytes, _: Sequence[bytes]) -> bytes:
    pdus = split(session)
    if pdus:
        index = rng.randrange(len(pdus))
        lie = bytes(rng.choices(_LIES, k=4))
        pdus[index] = pdus[index][:2] + lie + pdus[index][_HEADER:]
    return b"".join(pdus)


def _repeat(rng: random.Random, session: bytes, _: Sequence[bytes]) -> bytes:
    pdus = split(session)
    if pdus:
        index = rng.randrange(len(pdus))
        pdus[index:index] = [pdus[index]] * rng.randint(1, 3)
    return b"".join(pdus)


def _swap(rng: random.Random, session: bytes, _: Sequence[bytes]) -> bytes:
    pdus = split(session)
    rng.shuffle(pdus)
    return b"".join(pdus)


def _drop(rng: random.Random, session: bytes, _: Sequence[bytes]) -> bytes:
    pdus = split(session)
    if pdus:
        del pdus[rng.randrange(len(pdus))]
    return b"".join(pdus)


def _splice(rng: random.Random, session: bytes, others: Sequence[bytes]) -> bytes:
    """Go on with another session from somewhere."""
    pdus, more = split(session), split(rng.choice(others))
    keep = rng.randint(0, len(pdus))
    return b"".join(pdus[:keep] + more[rng.randint(0, len(more)) :])


def _repeat_bytes(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start = rng.randint(0, len(content))
    piece = content[start : start + rng.randint(1, 64)]
    return content[:start] + piece + content[start:]


_FAULTS: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    *(_flip_bits, _cut, _lie, _lie_about_a_pdu, _repeat, _swap, _drop, _splice),
)
