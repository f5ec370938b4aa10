"""What a site's own archive holds, as de-identified volumes with a manifest for `synthesis train`.

    C-FIND → studies that a rule calls complete → C-MOVE here → labelled by physics and pixels
        → one NIfTI file per contrast → people.yaml

Nothing of a DICOM header leaves but the geometry of the voxels (the Basic Profile of PS3.15 E.2 by
leaving everything out): no UID, date, text or device. A person is named by a random key of this
export alone, so that nobody can find them again, and is in one split. Pixels with burned-in text
are left out, and so are pictures of one exposure: what is written are volumes. A head is as
recognizable as it was: what was exported stays at the site.
"""

import hashlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import SimpleITK as sitk  # noqa: N813
import yaml

from dicom_node.assembly import label_study, look_closer, read_headers
from dicom_node.backfill import Backfill
from dicom_node.candidates import choose_series
from dicom_node.domain import ContrastLabel, Instance, Series, Study
from dicom_node.errors import ConfigurationError, UnusableStudy
from dicom_node.headers import FLAT_MODALITIES, IDENTITY
from dicom_node.ledger import Ledger
from dicom_node.routing import Judge
from dicom_node.slots import fills, find_members
from dicom_node.store import Store
from dicom_node.volumes import read_volume
from synthesis.preprocessing import to_image

MANIFEST = "people.yaml"
DATASET = "site"
SPLITS = ("train", "train", "train", "train", "train", "validation", "test")
"""Of seven people in turn."""
FETCH_SECONDS = 600.0
"""How long the node that runs may take to receive a study that the peer has sent."""
POLL_SECONDS = 1.0
NAME_DIGITS = 12

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What became of the studies that were found.

    Attributes:
        exported: how many are in the manifest.
        left_out: reason to how many are not.
    """

    exported: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """Return one sentence."""
        reasons = ", ".join(f"{count} {why}" for why, count in self.left_out.most_common())
        return f"{self.exported} people exported" + (f"; left out: {reasons}" if reasons else "")


class Export:
    """A walk through what one peer holds.

    Args:
        walk: asks the peer, and has studies sent here.
        judge: the rules.
        ledger: of the node that runs, which receives.
        store: of that node.
        out: folder to write, which must be empty or absent.
        by: who exports; kept for good with each study.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        walk: Backfill,
        judge: Judge,
        ledger: Ledger,
        store: Store,
        out: Path,
        by: str,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._walk = walk
        self._judge = judge
        self._ledger = ledger
        self._store = store
        self._out = out
        self._by = by
        self._sleep = sleep
        self._key = secrets.token_bytes(32)
        self._people: dict[str, dict[str, str]] = {}
        self.tally = Tally()

    def run(self, keys: Mapping[str, str]) -> Iterator[int]:
        """Export what matches a query; yield how many people there are, study by study.

        The manifest is written at the end, with all people.

        Args:
            keys: DICOM keywords of study and patient to what is looked for.

        Raises:
            ConfigurationError: the folder holds something.
            DeliveryError: the peer refuses, or breaks off.
            TimeoutError: the peer says nothing, or the node that runs does not receive.
        """
        if self._out.exists() and any(self._out.iterdir()):
            raise ConfigurationError("--out : seen a folder with files, wanted an empty one")
        self._out.mkdir(parents=True, exist_ok=True)
        for uid, listed, decision in list(self._walk.find(keys)):
            if decision.gaps or not decision.slots:
                self.tally.left_out["incomplete"] += 1
            else:
                self._walk.fetch(uid, listed, self._ledger)
                self._wait_for(uid, {each.series_instance_uid: each.instances for each in listed})
                self._take(uid)
            yield self.tally.exported
        self._write_manifest()

    def _wait_for(self, uid: str, wanted: Mapping[str, int | None]) -> None:
        deadline = time.monotonic() + FETCH_SECONDS
        while True:
            here = self._ledger.count_series(uid)
            if all(here.get(series, 0) >= (count or 1) for series, count in wanted.items()):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"study {uid} was sent, but not received: is the node running?")
            self._sleep(POLL_SECONDS)

    def _take(self, uid: str) -> None:
        """Export one study that is here, or count why not."""
        row = self._ledger.study_row(uid)
        instances = read_headers(self._ledger.read_instances(uid), self._store)
        subject = self._name(instances)
        if subject in self._people:
            self.tally.left_out["of a person who is there already"] += 1
            return
        study = label_study(row, instances, (), self._ledger, self._store, self._judge)
        study = look_closer(study, self._judge.contrasts, self._find_path)
        chosen = self._choose(study)
        if any(each.modality in FLAT_MODALITIES for each in chosen.values()):
            self.tally.left_out["of pictures, which have no place in a volume"] += 1
            return
        if any(_is_written_on(each) for each in chosen.values()):
            self.tally.left_out["with burned-in text"] += 1
            return
        if not chosen:
            self.tally.left_out["incomplete by physics"] += 1
            return
        try:
            self._people[subject] = {
                label: self._write(subject, label, series) for label, series in chosen.items()
            }
        except UnusableStudy as error:
            self.tally.left_out[f"unreadable ({error.code})"] += 1
            return
        self.tally.exported += 1
        self._ledger.note_command("study.exported", self._by, study=uid)
        logger.info("export.written study=%s contrasts=%d", uid, len(chosen))

    def _name(self, instances: Sequence[Instance]) -> str:
        """Return a name for the person that only this export can make."""
        header: Mapping[str, Any] = instances[0].header or {}
        identity = str(header.get(IDENTITY) or instances[0].study_instance_uid)
        digest = hashlib.blake2b(identity.encode(), key=self._key)
        return f"person-{digest.hexdigest()[:NAME_DIGITS]}"

    def _find_path(self, instance: Instance) -> Path:
        return self._store.path(instance.path)

    def _choose(self, study: Study) -> dict[ContrastLabel, Series]:
        """Return the best series of each slot of the first rule that the study fills."""
        decision = self._judge.find_gaps(study)
        for rule in self._judge.routing.in_order():
            if rule.name not in decision.slots:
                continue
            members = find_members(study, rule)
            chosen = {}
            for slot in rule.expects:
                filling = [
                    each
                    for each in members
                    if each.label is not None
                    and each.label.contrast == slot.slot
                    and fills(each, slot, self._judge.contrasts)
                ]
                if filling:
                    chosen[slot.slot] = choose_series(filling, quality=slot.quality).series
            if all(slot.slot in chosen for slot in rule.expects if slot.need == "required"):
                return chosen
        return {}

    def _write(self, subject: str, label: ContrastLabel, series: Series) -> str:
        volume, _ = read_volume([self._find_path(each) for each in series.instances], series.frames)
        path = Path(subject) / f"{label}.nii.gz"
        (self._out / subject).mkdir(exist_ok=True)
        sitk.WriteImage(to_image(volume), self._out / path)
        return str(path)

    def _write_manifest(self) -> None:
        people = [
            {
                "subject": subject,
                "dataset": DATASET,
                "split": SPLITS[number % len(SPLITS)],
                "mask": "body",
                "aligned": False,
                "images": images,
            }
            for number, (subject, images) in enumerate(sorted(self._people.items()))
        ]
        licence = f"patients of this site, exported {datetime.now(UTC):%Y-%m}: not to leave it"
        document = {
            "datasets": {DATASET: {"licence": licence, "skull": "whole head"}},
            "people": people,
        }
        (self._out / MANIFEST).write_text(yaml.safe_dump(document, sort_keys=False))


def _is_written_on(series: Series) -> bool:
    return any((each.header or {}).get("BurnedInAnnotation") == "YES" for each in series.instances)
