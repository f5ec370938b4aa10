"""What node.yaml says to the receiving process, in plain values, read by a process that then ends.

The library that checks YAML takes as much memory as all of a process that receives. So one process
reads, tells what it has read and is gone, and those that receive have no trace of it.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from dicom_node.acceptor import Caller, Door
from dicom_node.admission import Budget
from dicom_node.commitment import Patience
from dicom_node.errors import ConfigurationError
from dicom_node.network import LOSSLESS, UNCOMPRESSED, normalize_address
from dicom_node.spool import build_structure_limits
from dicom_node.store import Durability
from dicom_node.structure import StructureLimits
from dicom_node.tls import OwnFiles, ServerSide
from dicom_node.wire import Limits

if TYPE_CHECKING:
    from dicom_node.door_settings import Peer
    from dicom_node.node_settings import NodeSettings

_LONGEST_BEAT_SECONDS = 10.0
_FAILED = 1

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """What there is to know before anybody comes in.

    Attributes:
        host: address to listen on.
        port: 0 is any free one.
        door: who comes in and how, before its TLS is loaded.
        tls: what is loaded, if any.
        budget: how many come in.
        structure: how much structure an instance may have.
        durability: what an instance survives once it was answered with success.
        processes: that serve connections.
        beat_seconds: between two signs of life of an association.
        ledger_url: for SQLAlchemy.
        patience: with peers that do not keep what they got.
    """

    host: str
    port: int
    door: Door
    tls: OwnFiles | None
    budget: Budget
    structure: StructureLimits
    durability: Durability
    processes: int
    beat_seconds: float
    ledger_url: str
    patience: Patience

    def open_door(self) -> Door:
        """Return the door with its TLS.

        Raises:
            ConfigurationError: its certificate cannot be used.
        """
        return replace(self.door, tls=None if self.tls is None else ServerSide(self.tls))

    def is_known(self, host: str) -> bool:
        """Say whether a peer calls from this address."""
        address = normalize_address(host)
        return any(address in caller.network for caller in self.door.callers)


class _OwnFiles(NamedTuple):
    certificate: Path
    key: Path
    ca: Path


class _Patience(NamedTuple):
    first_retry: timedelta
    longest_retry: timedelta
    give_up_after: timedelta


def read_entrance(folder: Path, overrides: Sequence[str]) -> Entrance:
    """Return what the node.yaml of a folder says, with `key=value` settings over its own.

    Nothing may have started a thread before.

    Raises:
        ConfigurationError: it is wrong.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        _read_and_end(writing, folder, overrides)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    if not told:
        raise RuntimeError("node.yaml was not read")
    said: dict[str, Any] | str = json.loads(told)
    if isinstance(said, str):
        raise ConfigurationError(said)
    return _restore(said)


def _read_and_end(descriptor: int, folder: Path, overrides: Sequence[str]) -> NoReturn:
    """Tell what is read there, or why it cannot be."""
    try:
        from dicom_node.node_settings import read_node  # noqa: PLC0415 - in this process alone

        said: dict[str, Any] | str
        try:
            said = asdict(build_entrance(read_node(folder, overrides)))
        except ConfigurationError as error:
            said = str(error)
        with os.fdopen(descriptor, "w") as pipe:
            json.dump(said, pipe, default=_make_plain)
        os._exit(os.EX_OK)
    except BaseException:
        _logger.critical("receiver.configuration_not_read", exc_info=True)
        raise
    finally:
        os._exit(_FAILED)


def _make_plain(value: object) -> float | str:
    """Return what stands for a value that JSON does not know; `_restore` knows it again."""
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


def _restore(said: dict[str, Any]) -> Entrance:
    """Return the entrance that was written as JSON."""
    door, tls = said["door"], said["tls"]
    door |= {
        "callers": tuple(map(_restore_caller, door["callers"])),
        "plain": tuple(map(ip_network, door["plain"])),
        "storage": {uid: tuple(syntaxes) for uid, syntaxes in door["storage"].items()},
        "folder": Path(door["folder"]),
        "limits": Limits(**door["limits"]),
    }
    said |= {
        "door": Door(**door),
        "tls": None if tls is None else _OwnFiles(*map(Path, tls)),
        "budget": Budget(**said["budget"]),
        "structure": StructureLimits(**said["structure"]),
        "durability": Durability(said["durability"]),
        "patience": _Patience(*(timedelta(seconds=each) for each in said["patience"])),
    }
    return Entrance(**said)


def _restore_caller(said: dict[str, Any]) -> Caller:
    said |= {
        "network": ip_network(said["network"]),
        "certificates": tuple(said["certificates"]),
    }
    return Caller(**said)


def build_entrance(node: "NodeSettings") -> Entrance:
    """Return what the configuration says about who comes in, and how."""
    receiver, limits = node.receiver, node.receiver.limits
    tls, delivery = receiver.tls, node.delivery
    callers = tuple(caller for _, caller in find_callers(node))
    return Entrance(
        host=receiver.host,
        port=receiver.port,
        door=Door(
            ae_title=node.ae_title,
            callers=callers,
            plain=receiver.allow_plain,
            storage=find_storage(node),
            folder=node.store_folder,
            minimum_free_bytes=receiver.minimum_free,
            handshake_seconds=limits.handshake.total_seconds(),
            request_seconds=limits.first_pdu.total_seconds(),
            room_seconds=limits.room.total_seconds(),
            no_context_seconds=limits.no_context.total_seconds(),
            messages_per_second=limits.messages_per_second,
            instance_bytes=limits.instance,
            limits=Limits(
                pdu_seconds=limits.each_pdu.total_seconds(),
                message_seconds=limits.message.total_seconds(),
                idle_seconds=limits.idle.total_seconds(),
                send_seconds=limits.send.total_seconds(),
                flush_seconds=limits.flush.total_seconds(),
                request_bytes=limits.request,
                pdu_bytes=limits.pdu,
                command_bytes=limits.command,
            ),
        ),
        tls=None if tls is None else _OwnFiles(tls.certificate, tls.key, tls.ca),
        budget=Budget(
            connections=limits.connections,
            connections_per_address=limits.connections_per_address,
            associations=limits.associations,
            associations_per_peer=limits.associations_per_peer,
            associations_per_second=limits.associations_per_second,
            peers=len(callers),
        ),
        structure=build_structure_limits(node),
        durability=Durability(receiver.durability),
        processes=receiver.processes,
        beat_seconds=min(
            _LONGEST_BEAT_SECONDS, node.assembly.stale_association.total_seconds() / 3
        ),
        ledger_url=node.ledger_url,
        patience=_Patience(delivery.first_retry, delivery.longest_retry, delivery.give_up_after),
    )


def find_callers(node: "NodeSettings") -> list[tuple["Peer", Caller]]:
    """Return who may ask for an association, and what for."""
    return [
        (
            peer,
            Caller(
                alias=alias,
                ae_title=peer.ae_title,
                network=peer.address,
                certificates=peer.certificates,
                may_store="receive" in peer.roles,
                may_report=peer.commitment == "storage_commitment",
                may_notify="notify" in peer.roles,
            ),
        )
        for alias, peer in node.peers.items()
        # Whoever may call has both: `Peer` sees to it.
        if peer.may_call and peer.ae_title is not None and peer.address is not None
    ]


def find_storage(node: "NodeSettings") -> dict[str, tuple[str, ...]]:
    """Return the storage SOP classes that are taken, and their transfer syntaxes, best first."""
    return dict.fromkeys(node.receiver.storage_classes.all, (*UNCOMPRESSED, *LOSSLESS))
