"""Deterministic identifiers: plan ids and derived UIDs, so that a retry makes the same instances.

A derived UID is `2.25.` and the integer of a UUIDv5 (PS3.5 B.2; PS3.17 KKK.7 asks for determinism).
Destinations, configuration digest, priority and generation never enter an id: an unrelated edit
re-sends nothing.
"""

import hashlib
import uuid
from collections.abc import Iterable

WRITER_VERSION = "3"
"""Enters every id. Raise it with any change of the bytes that `derive` writes: a PACS that already
holds a UID answers success and keeps its old object."""

IMPLEMENTATION_CLASS_UID = "2.25.313069276925938174629402217347326110475"
IMPLEMENTATION_VERSION_NAME = "DICOM_NODE_0_1"


def hash_parts(parts: Iterable[str]) -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of `parts` in the order given."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def derive_uid(namespace: uuid.UUID, *parts: str) -> str:
    """Return the UID, at most 44 characters, that `parts` always have in `namespace`."""
    return f"2.25.{uuid.uuid5(namespace, hash_parts((WRITER_VERSION, *parts))).int}"


def derive_plan_id(namespace: uuid.UUID, *parts: str) -> str:
    """Return the plan id (32 hexadecimal digits) that `parts` always have in `namespace`."""
    return uuid.uuid5(namespace, hash_parts((WRITER_VERSION, "plan", *parts))).hex


def installation_uid(namespace: uuid.UUID) -> str:
    """Return the Instance Creator UID (0008,0014) of this installation."""
    return f"2.25.{namespace.int}"
