"""What must hold after every crash, read from the files and the ledger without the node's code."""

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import create_engine, text

from durability.sender import Key


@dataclass
class Verdict:
    """What was found.

    Attributes:
        lost: what was acknowledged and is not there as it was sent.
        broken: whatever else does not hold, in words.
    """

    lost: list[Key] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def examine(data: Path, ledger_url: str, acknowledged: Collection[Key], known: set[str]) -> Verdict:
    """Examine a receiver that has started again and gets nothing.

    Args:
        data: its data folder.
        ledger_url: its ledger, as SQLAlchemy wants it.
        acknowledged: all that this data folder was ever acknowledged for.
        known: paths whose content was examined before; those of now are added.
    """
    verdict = Verdict()
    store = data / "store"
    engine = create_engine(ledger_url.replace("postgresql:", "postgresql+psycopg:", 1))
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT sop_instance_uid, sha256, path FROM instance ORDER BY sequence")
        ).all()
        if engine.dialect.name == "sqlite":
            said = connection.execute(text("PRAGMA integrity_check")).scalars().all()
            verdict.broken += [f"integrity_check: {line}" for line in said if line != "ok"]
    engine.dispose()
    whole: set[Key] = set()
    for row in rows:
        path = store / row.path
        if not path.is_file():
            verdict.broken.append(f"row without its file: {row.path}")
        elif row.path in known or _digest(path) == row.sha256:
            known.add(row.path)
            whole.add((row.sop_instance_uid, row.sha256))
        else:
            verdict.broken.append(f"file that is not what its row says: {row.path}")
    verdict.lost = sorted(set(acknowledged) - whole)
    files = {
        path.relative_to(store).as_posix()
        for folder in ("incoming", "quarantine")
        for path in (store / folder).rglob("*.dcm")
    }
    without_row = files - {row.path for row in rows}
    verdict.broken += [f"file without its row: {path}" for path in sorted(without_row)]
    verdict.broken += [f"left half-written: {path.name}" for path in store.rglob("*.part")]
    sources = Counter(
        row.sop_instance_uid for row in rows if not row.path.startswith("quarantine/")
    )
    verdict.broken += [f"two first contents: {uid}" for uid, count in sources.items() if count > 1]
    return verdict


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
