"""What a PACS holds of a range of days, judged by the rules; and, where somebody wants it, fetched.

    asked day by day → studies by what their series are called → judged as they would be
        → fetched, one after another, whenever the node has nothing else to do

A PACS says what a series is called and not how it was acquired, so that the figures of a dry run
are estimates: the node labels by physics once a study is here, and asks whether it is really
missing. It goes on where it stopped, because a study that is here is passed over.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from dicom_node.domain import RemoteSeries, Series, Study, SynthesisPlan
from dicom_node.elsewhere import describe_remote
from dicom_node.headers import IMAGE_MODALITIES
from dicom_node.ledger import Ledger
from dicom_node.node_settings import NodeSettings
from dicom_node.query import open_conversation
from dicom_node.routing import Decision, Judge
from dicom_node.store import Store

POLL_SECONDS = 2.0
"""How often it is looked whether the node has nothing else to do."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What was found, rule by rule.

    Attributes:
        studies: how many a rule is for.
        lacking: rule and target to how many studies lack it.
        made: rule and target to how many of them would get it.
        refused: rule and target to how many of them would not, by code.
    """

    studies: Counter[str] = field(default_factory=Counter)
    lacking: Counter[tuple[str, str]] = field(default_factory=Counter)
    made: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: dict[tuple[str, str], Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )

    def add(self, decision: Decision) -> None:
        """Count one study."""
        self.studies.update(match.rule for match in decision.rules if match.matched)
        self.lacking.update((gap.rule, gap.target) for gap in decision.gaps)
        self.made.update((plan.rule, plan.target) for plan in _find_made(decision))
        for refusal in decision.refusals:
            self.refused[refusal.rule, refusal.target][refusal.code] += 1

    def describe(self) -> Iterator[str]:
        """Yield one sentence for each rule and contrast."""
        for rule, studies in sorted(self.studies.items()):
            targets = sorted(target for name, target in self.lacking if name == rule)
            if not targets:
                yield f"{rule}: of {studies} studies none lacks anything"
            for target in targets:
                key = (rule, target)
                refused = self.refused[key]
                because = ", ".join(f"{code} {count}" for code, count in refused.most_common())
                yield (
                    f"{rule}: of {studies} studies {self.lacking[key]} lack {target}, "
                    f"{self.made[key]} would be made, {refused.total()} refused"
                    + (f" because of {because}" if because else "")
                )

    def as_document(self) -> list[dict[str, Any]]:
        """Return the figures as JSON types."""
        return [
            {
                "rule": rule,
                "target": target,
                "studies": self.studies[rule],
                "lacking": count,
                "would_be_made": self.made[rule, target],
                "refused": dict(self.refused[rule, target]),
            }
            for (rule, target), count in sorted(self.lacking.items())
        ]


class Backfill:
    """A walk through the days of one peer."""

    def __init__(
        self,
        alias: str,
        settings: NodeSettings,
        judge: Judge,
        now: Callable[[], datetime],
        note: Callable[[Mapping[str, str]], None],
    ) -> None:
        """Describe it.

        Args:
            alias: of the peer, which has the role query.
            settings: peers, and how patient to be with them.
            judge: the rules.
            now: gives aware UTC times.
            note: keeps what a peer is asked for, before it is.
        """
        self._note = note
        self._alias = alias
        self._settings = settings
        self._judge = judge
        self._now = now

    def find(self, keys: Mapping[str, str]) -> Iterator[tuple[str, list[RemoteSeries], Decision]]:
        """Yield each study that matches a query, its series, and what the rules say of it.

        Args:
            keys: DICOM keywords of study and patient to what is looked for.

        Raises:
            DeliveryError: the peer refuses, or breaks off.
            TimeoutError: it says nothing.
        """
        self._note(keys)
        with open_conversation(self._settings, self._alias) as conversation:
            for uid in conversation.find_studies(keys):
                listed = [
                    each
                    for each in conversation.find_series(self._alias, uid)
                    if each.header.get("Modality") in IMAGE_MODALITIES
                ]
                yield uid, listed, self._decide(uid, listed)

    def estimate(self, days: Iterable[date]) -> Tally:
        """Return what the studies of some days lack, by what their series are called."""
        tally = Tally()
        for day in days:
            for _, _, decision in self.find({"StudyDate": f"{day:%Y%m%d}"}):
                tally.add(decision)
        return tally

    def run(
        self,
        days: Iterable[date],
        ledger: Ledger,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[str]:
        """Have the studies sent here for which something would be made; yield each when it is.

        One at a time, and none while a job waits or a study comes, so that what a scanner sends is
        never behind them. The days are walked in order; what is here is passed over.

        Raises:
            DeliveryError: the peer refuses, or breaks off: to be run again.
            TimeoutError: it says nothing.
        """
        for day in days:
            found = list(self.find({"StudyDate": f"{day:%Y%m%d}"}))
            for uid, listed, decision in found:
                if not _find_made(decision) or _is_here(ledger, uid, listed):
                    continue
                while not _is_idle(ledger):
                    sleep(POLL_SECONDS)
                self.fetch(uid, listed, ledger)
                logger.info("backfill.fetched study=%s series=%d", uid, len(listed))
                yield uid

    def fetch(self, uid: str, listed: Iterable[RemoteSeries], ledger: Ledger) -> None:
        """Have the series of a study sent to the node that runs, but for what is there.

        Raises:
            DeliveryError: the peer refuses, or breaks off.
            TimeoutError: it says nothing.
        """
        here = ledger.count_series(uid)
        store = Store(self._settings.store_folder)
        with open_conversation(self._settings, self._alias, ledger, store) as conversation:
            for each in listed:
                if here.get(each.series_instance_uid, 0) < (each.instances or 1):
                    conversation.fetch(each)

    def _decide(self, study_instance_uid: str, listed: Iterable[RemoteSeries]) -> Decision:
        series: list[Series] = [describe_remote(each, self._judge.contrasts) for each in listed]
        study = Study(study_instance_uid=study_instance_uid, generation=1, series=tuple(series))
        return self._judge.judge(study, self._now())


def list_days(first: date, last: date) -> Iterator[date]:
    """Yield every day from `first` to `last`."""
    for number in range((last - first).days + 1):
        yield first + timedelta(number)


def _find_made(decision: Decision) -> list[SynthesisPlan]:
    """Return the plans for what is missing; what is only compared is no reason to move a study."""
    return [plan for plan in decision.plans if plan.truth is None]


def _is_here(ledger: Ledger, study_instance_uid: str, listed: Iterable[RemoteSeries]) -> bool:
    here = ledger.count_series(study_instance_uid)
    return all(here.get(each.series_instance_uid, 0) >= (each.instances or 1) for each in listed)


def _is_idle(ledger: Ledger) -> bool:
    counts = ledger.counts()
    return not any(
        counts.get(name, 0) for name in ("jobs.queued", "jobs.running", "studies.receiving")
    )
