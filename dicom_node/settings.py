"""The configuration as a whole: four files, read once, checked strictly, and against one another.

A mistake is told as `node.yaml: line 9: peers.pacs.prt : seen 104, wanted no such key`, and all
mistakes of all files at once. What node.yaml may say is in `node_settings`; the other three decide
what is made of what, are in `rules`, and may change while the node runs (`live_rules`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from dicom_node.door_settings import Peer
from dicom_node.errors import ConfigurationError
from dicom_node.identifiers import hash_parts
from dicom_node.node_settings import NODE_FILE, NodeSettings, parse_node
from dicom_node.rules import (
    CONTRASTS_FILE,
    MODELS_FILE,
    ROUTING_FILE,
    Contrasts,
    ModelPolicy,
    Routing,
    find_disagreements,
)
from dicom_node.strict_yaml import Document, read_document, read_file

__all__ = ["FILES", "RULE_FILES", "Configuration", "NodeSettings", "Peer", "load", "reload_rules"]

RULE_FILES = (CONTRASTS_FILE, ROUTING_FILE, MODELS_FILE)
"""What decides what is made of what."""
FILES = (NODE_FILE, *RULE_FILES)
"""What a configuration folder holds."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """All that an admin has written, checked.

    Attributes:
        digest: of the four files and the overrides; recorded with every plan.
        node_digest: of node.yaml and the overrides alone.
        folder: where the files are.
        documents: the files that decide, by name, to tell where in them something stands.
    """

    node: NodeSettings
    contrasts: Contrasts
    routing: Routing
    models: ModelPolicy
    digest: str
    node_digest: str
    folder: Path
    documents: Mapping[str, Document] = field(repr=False, compare=False)


def load(folder: Path, overrides: Sequence[str] = ()) -> Configuration:
    """Read and check the configuration in `folder`.

    Each override is `dotted.key=value`, the value in YAML, and goes over node.yaml. Folders and
    files that node.yaml names are relative to `folder`.

    Raises:
        ConfigurationError: one line for each mistake: file, line, key, what was seen, what is
            wanted.
    """
    mistakes: list[str] = []
    text = read_file(folder / NODE_FILE)
    node = _collect(mistakes, lambda: parse_node(text, folder, overrides))
    rules = _collect(mistakes, lambda: _read_rules(folder))
    if node is None or rules is None:
        raise ConfigurationError("\n".join(mistakes))
    node_digest = hash_parts([hashlib.sha256(text).hexdigest(), *overrides])
    _check_names(rules, node)
    return Configuration(
        node=node,
        contrasts=rules.contrasts,
        routing=rules.routing,
        models=rules.models,
        digest=hash_parts([node_digest, rules.digest]),
        node_digest=node_digest,
        folder=folder.resolve(),
        documents=rules.documents,
    )


def reload_rules(configuration: Configuration) -> Configuration:
    """Return `configuration` with its rules as the files say now, and its node as it was.

    Raises:
        ConfigurationError: as `load` does.
    """
    rules = _read_rules(configuration.folder)
    _check_names(rules, configuration.node)
    return replace(
        configuration,
        contrasts=rules.contrasts,
        routing=rules.routing,
        models=rules.models,
        digest=hash_parts([configuration.node_digest, rules.digest]),
        documents=rules.documents,
    )


class _Rules(NamedTuple):
    """The three files that decide."""

    contrasts: Contrasts
    routing: Routing
    models: ModelPolicy
    documents: Mapping[str, Document]
    digest: str


def _read_rules(folder: Path) -> _Rules:
    mistakes: list[str] = []
    documents: dict[str, Document] = {}
    digests: list[str] = []
    for name in RULE_FILES:
        text = read_file(folder / name)
        digests.append(hashlib.sha256(text).hexdigest())
        document = _collect(mistakes, partial(read_document, text, name))
        if document is not None:
            documents[name] = document
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    contrasts = _collect(mistakes, lambda: documents[CONTRASTS_FILE].check(Contrasts))
    routing = _collect(mistakes, lambda: documents[ROUTING_FILE].check(Routing))
    models = _collect(mistakes, lambda: documents[MODELS_FILE].check(ModelPolicy))
    if contrasts is None or routing is None or models is None:
        raise ConfigurationError("\n".join(mistakes))
    return _Rules(contrasts, routing, models, documents, hash_parts(digests))


def _check_names(rules: _Rules, node: NodeSettings) -> None:
    """Refuse rules that name what no other file knows."""
    takers = [alias for alias, peer in node.peers.items() if "send" in peer.roles]
    asked = [alias for alias, peer in node.peers.items() if "query" in peer.roles]
    found = find_disagreements(rules.contrasts, rules.routing, rules.models, takers, asked)
    told = [rules.documents[each.file].tell(each.location, each.says) for each in found]
    if told:
        raise ConfigurationError("\n".join(told))


def _collect(mistakes: list[str], read: Callable[[], T]) -> T | None:
    """Return what `read` returns; what is wrong with it goes to `mistakes`."""
    try:
        return read()
    except ConfigurationError as error:
        mistakes.append(str(error))
        return None
