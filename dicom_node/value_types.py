"""The kinds of values that node.yaml is written in, from durations to fingerprints.

Each refuses what it does not know, in the words of what it wants.
"""

import ipaddress
import re
from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from dicom_node.storage_classes import STORAGE_CLASSES

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|min|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d+) ?(B|KiB|MiB|GiB)")
_AE_TITLE = re.compile(r"(?! )[ -\[\]-~]{1,16}(?<! )")
_FINGERPRINT = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){31}")
_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


class Strict(BaseModel):
    """Base of every type of the configuration: frozen, and an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _read_duration(value: object) -> timedelta:
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("a duration such as 30 s, 15 min, 72 h or 7 d")
    return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])


def _read_size(value: object) -> int:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("a size such as 64 KiB or 2 GiB")
    return int(found[1]) * _BYTES[found[2]]


def _read_network(value: object) -> IPNetwork:
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("an address such as 10.1.2.3, or a network such as 10.1.2.0/24") from None


def _read_address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise ValueError("an IP address to listen on, such as 127.0.0.1 or 0.0.0.0") from None


def _read_storage_class(value: object) -> str:
    found = STORAGE_CLASSES.get(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("the keyword of an image or a companion of images, such as MRImageStorage")
    return found


def _read_ae_title(value: object) -> str:
    if not isinstance(value, str) or not _AE_TITLE.fullmatch(value):
        raise ValueError("an AE title: 1 to 16 ASCII characters, no backslash, no outer space")
    return value


def _read_fingerprint(value: object) -> str:
    text = value.upper() if isinstance(value, str) else ""
    if not _FINGERPRINT.fullmatch(text):
        raise ValueError(
            "32 pairs of hexadecimal digits with colons, as printed by "
            "openssl x509 -noout -fingerprint -sha256 -in FILE"
        )
    return text


def _text(**facts: object) -> WithJsonSchema:
    """Return what an editor is told of a value that is written as text."""
    return WithJsonSchema({"type": "string", **facts})


Duration = Annotated[
    timedelta, PlainValidator(_read_duration), _text(pattern=f"^{_DURATION.pattern}$")
]
Size = Annotated[int, PlainValidator(_read_size), _text(pattern=f"^{_SIZE.pattern}$")]
Network = Annotated[
    IPNetwork, PlainValidator(_read_network), _text(pattern=r"^[0-9A-Fa-f.:]+(/\d+)?$")
]
Address = Annotated[str, PlainValidator(_read_address), _text(pattern="^[0-9A-Fa-f.:]+$")]
StorageClass = Annotated[
    str, PlainValidator(_read_storage_class), _text(enum=sorted(STORAGE_CLASSES))
]
Fingerprint = Annotated[
    str, PlainValidator(_read_fingerprint), _text(pattern="^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){31}$")
]
AETitle = Annotated[str, PlainValidator(_read_ae_title), _text(pattern=f"^{_AE_TITLE.pattern}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Alias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
HostName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
