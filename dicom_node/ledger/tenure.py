"""The ledger has one node at a time: a lease that says which, and a number that says since when.

Two nodes at one ledger would send each result twice, and each would take the other's jobs for those
of a crash. Who takes the lease gets the next number, and what a node writes holds only while its
number is the newest one: a node whose machine was away for a while, and which does not know that
another has followed it, changes nothing any more. Workers are fenced by the attempts of their jobs,
and persons decide under their own names; neither needs the number.
"""

from datetime import timedelta

from sqlalchemy import insert, select, update

from dicom_node.errors import StorageError
from dicom_node.ledger.database import Database
from dicom_node.ledger.engines import LEDGER_STATUS
from dicom_node.schema import tenure


class Tenure(Database):
    """What the node writes when it starts, while it runs, and when it ends."""

    def begin_tenure(self, holder: str, lease: timedelta, *, alone: bool = False) -> int:
        """Take the ledger for `lease`, and return the number under which the node now writes.

        Args:
            holder: who takes it. One who comes again under the same name has died before, and does
                not wait for the end of its own lease.
            lease: how long the node may be silent.
            alone: nobody else can be there, whatever the ledger says.

        Raises:
            StorageError: another node has it.
        """
        now = self._clock()
        with self._writing() as connection:
            row = connection.execute(select(tenure)).one_or_none()
            if row and row.holder != holder and row.lease_until > now and not alone:
                left = (row.lease_until - now).total_seconds()
                raise StorageError(
                    f"another node works with this ledger ({row.holder}): stop it first; if it has "
                    f"died, it can be followed in {left:.0f} s",
                    LEDGER_STATUS,
                )
            number: int = row.number + 1 if row else 1
            values = {"number": number, "holder": holder, "lease_until": now + lease}
            connection.execute(
                update(tenure).values(values) if row else insert(tenure).values(values)
            )
            self._note(connection, "tenure.begun", holder=holder, number=number)
        self._number = number
        return number

    def renew_tenure(self, lease: timedelta) -> bool:
        """Prolong the lease; False when another node has followed."""
        with self._writing(fenced=False) as connection:
            renewed = connection.execute(
                update(tenure)
                .where(tenure.c.number == self._number)
                .values(lease_until=self._clock() + lease)
            ).rowcount
        return bool(renewed)

    def end_tenure(self) -> None:
        """Give the lease back, so that another node may follow at once."""
        with self._writing(fenced=False) as connection:
            ended = connection.execute(
                update(tenure)
                .where(tenure.c.number == self._number)
                .values(lease_until=self._clock())
            ).rowcount
            if ended:
                self._note(connection, "tenure.ended", number=self._number)
        self._number = None

    def write_under(self, number: int | None) -> None:
        """Let what this process writes hold only while the node with this number has the ledger."""
        self._number = number
