"""The configuration as a whole: four files, read once, checked strictly, and against one another.

A mistake is told as `node.yaml: peers.pacs.prt : seen 104, wanted no such key`, and all mistakes of
a file at once. What node.yaml may say is in `node_settings`; the other three are in `rules`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dicom_node.errors import ConfigurationError
from dicom_node.identifiers import hash_parts
from dicom_node.node_settings import NODE_FILE, NodeSettings, Peer, parse_node
from dicom_node.rules import Contrasts, ModelPolicy, Routing, find_disagreements
from dicom_node.strict_yaml import check_document, read_file, read_yaml

__all__ = ["FILES", "Configuration", "NodeSettings", "Peer", "load"]

CONTRASTS_FILE = "contrasts.yaml"
ROUTING_FILE = "routing.yaml"
MODELS_FILE = "models.yaml"
FILES = (NODE_FILE, CONTRASTS_FILE, ROUTING_FILE, MODELS_FILE)
"""What a configuration folder holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """All that an admin has written, checked.

    Attributes:
        digest: of the four files and the overrides; recorded with every plan.
        folder: where the files are.
    """

    node: NodeSettings
    contrasts: Contrasts
    routing: Routing
    models: ModelPolicy
    digest: str
    folder: Path


def load(folder: Path, overrides: Sequence[str] = ()) -> Configuration:
    """Read and check the configuration in `folder`.

    Each override is `dotted.key=value`, the value in YAML, and goes over node.yaml. Folders and
    files that node.yaml names are relative to `folder`.

    Raises:
        ConfigurationError: one line for each mistake: file, key, what was seen, what is wanted.
    """
    texts = {name: read_file(folder / name) for name in FILES}
    documents = {name: read_yaml(texts[name], name) for name in FILES[1:]}
    node = parse_node(texts[NODE_FILE], folder, overrides)
    contrasts = check_document(Contrasts, documents[CONTRASTS_FILE], CONTRASTS_FILE)
    routing = check_document(Routing, documents[ROUTING_FILE], ROUTING_FILE)
    models = check_document(ModelPolicy, documents[MODELS_FILE], MODELS_FILE)
    takers = [alias for alias, peer in node.peers.items() if "send" in peer.roles]
    disagreements = list(find_disagreements(contrasts, routing, models, takers))
    if disagreements:
        raise ConfigurationError("\n".join(disagreements))
    digests = [hashlib.sha256(text).hexdigest() for text in texts.values()]
    return Configuration(
        node=node,
        contrasts=contrasts,
        routing=routing,
        models=models,
        digest=hash_parts([*digests, *overrides]),
        folder=folder.resolve(),
    )
