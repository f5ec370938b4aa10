"""The two forms in which a node runs, for tests that hold in both."""

from collections.abc import Sequence

import pytest

EMBEDDED, CLUSTERED = "embedded", "clustered"
"""Names of the fixtures that give a form."""

IN_BOTH_FORMS = pytest.mark.parametrize("form", [EMBEDDED, CLUSTERED], indirect=True)
IN_ONE_FORM = pytest.mark.parametrize("form", [EMBEDDED], indirect=True)
"""For tests that share a node of their module with some that are run in both forms."""

MOST_NODES = 32
"""Nodes of one run of the tests that have a ledger in PostgreSQL; a worker knows all ledgers."""


class Form:
    """Where nodes keep their ledgers, and what runs their jobs."""

    def __init__(self, ledgers: Sequence[str] = (), executor: str = "") -> None:
        """Describe it; without arguments it is the form in which the node comes.

        Args:
            ledgers: environment variables that hold addresses of empty PostgreSQL databases.
            executor: that entry of node.yaml, in YAML.
        """
        self._ledgers = list(ledgers)
        self._executor = executor

    def take_ledger(self) -> tuple[str, ...]:
        """Return the settings of one more node, whose ledger is empty."""
        if not self._executor:
            return ()
        ledger = f"ledger={{kind: postgresql, dsn_env: {self._ledgers.pop()}}}"
        return (ledger, f"executor={self._executor}")
