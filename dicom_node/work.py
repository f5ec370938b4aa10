"""Steps 8 to 11 of the walk: the job that a worker process runs, from ids to derived files.

    read the sources → synthesize → write and check the derived instances → record

A rule in shadow mode also has what is made compared with the real series, whose pixels nothing else
of the job sees.

The worker records the outcome itself, fenced by its attempt: one whose lease has lapsed changes
nothing. What cannot be worked with, or is not good enough, is held for a person; what would fail
again fails; everything else leaves as an exception, which to `dispatch` is a lost worker.
"""

import hashlib
import io
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from dicom_node.conformance import check
from dicom_node.crashpoints import reach
from dicom_node.derive import SourceSeries, write_derived
from dicom_node.domain import ContrastLabel, DerivedInstance, Instance, SynthesisPlan
from dicom_node.elements import encode
from dicom_node.errors import JobFailed, StorageError, UnusableStudy
from dicom_node.exposures import EXPOSURE_CLASSES
from dicom_node.ledger import Ledger
from dicom_node.node_settings import NodeSettings, read_node
from dicom_node.store import Store
from dicom_node.volumes import read_picture, read_volume
from synthesis import types
from synthesis.backends import CACHE
from synthesis.engine import synthesize
from synthesis.errors import MissingExtra, MissingSource, UntrustedModel, UnusableInput
from synthesis.evaluation import compare_with_truth
from synthesis.registry import load_card

SCANNER = {
    "manufacturer": "Manufacturer",
    "model_name": "ManufacturerModelName",
    "field_strength": "MagneticFieldStrength",
}
"""What the figures of a comparison are kept for: technical facts of the real series."""

RENEWALS_PER_LEASE = 4
"""Three renewals may be late or lost before the lease runs out."""

BACKENDS = "backends"
"""Folder below the data folder: by which back end each network is run on a machine."""

MASK = "mask.npz"
"""Beside the derived instances: where they are synthesis and not padding, and on which grid."""

Sources = Mapping[ContrastLabel, SourceSeries]
Written = list[tuple[DerivedInstance, Dataset]]

logger = logging.getLogger(__name__)


def run(plan_id: str, attempt: int, config_folder: Path, overrides: Sequence[str]) -> None:
    """Do one job and record how it ended.

    Args:
        plan_id: of a plan that this attempt has claimed.
        attempt: the fence.
        config_folder: of the node whose job it is.
        overrides: `key=value` settings over those of its node.yaml.

    Raises:
        StorageError: store or ledger do not answer; the job may be tried again.
    """
    # The rules are not read: what they decided is in the plan, and they may change meanwhile.
    node = read_node(config_folder, overrides)
    keep_back_ends(node)
    store = Store(node.store_folder).open()
    with Ledger(node.ledger_url, lambda: datetime.now(UTC)).open(create=False) as ledger:
        job = Attempt(node, store, ledger, ledger.job(plan_id).plan, attempt)
        with _held_lease(ledger, plan_id, attempt, node.dispatch.lease):
            _finish(job)


def keep_back_ends(node: NodeSettings) -> None:
    """Have it kept in the data folder how each network is run here.

    It is measured once, and not again at each start: it changes pixels.
    """
    os.environ.setdefault(CACHE, str(node.data_folder / BACKENDS))


def _finish(job: "Attempt") -> None:
    """Do the job, and record what stands in the way when it cannot be done."""
    plan_id, attempt = job.plan.plan_id, job.attempt
    try:
        job.do()
    except (UnusableStudy, UnusableInput) as error:
        job.ledger.refuse_job(plan_id, attempt, [f"{error.code}: {error}"])
        logger.warning("job.held plan=%s code=%s", plan_id, error.code)
    except (JobFailed, MissingExtra, MissingSource, UntrustedModel) as error:
        job.ledger.fail_job(plan_id, attempt, f"{type(error).__name__}: {error}")
        logger.error("job.failed plan=%s error=%s", plan_id, type(error).__name__)


class Attempt:
    """One attempt at one plan."""

    def __init__(
        self,
        node: NodeSettings,
        store: Store,
        ledger: Ledger,
        plan: SynthesisPlan,
        attempt: int,
    ) -> None:
        self.ledger = ledger
        self.plan = plan
        self.attempt = attempt
        self._node = node
        self._store = store
        self._seconds: dict[str, float] = {}

    def do(self) -> None:
        """Read, synthesize, write, check, record.

        Raises:
            UnusableStudy: a source cannot be read as a volume, or has changed on the disk.
            UnusableInput: the sources do not fit together or to the model.
            JobFailed: the sources are gone, or the derived instances are not what they must be.
            MissingSource: the model needs a contrast that the plan does not have.
            UntrustedModel: the model is not the one that was planned with.
            MissingExtra: a library that the model needs is not installed here.
            StorageError: the store or the ledger does not answer.
        """
        with self._timed("read"):
            sources = self._read_sources()
        reach("work.read")
        synthesis = self._synthesize(sources)
        reach("work.synthesized")
        with self._timed("write"):
            instances = self._write(synthesis, sources)
        reach("work.written")
        comparison = {}
        if self.plan.truth is not None:
            with self._timed("compare"):
                comparison["comparison"] = self._compare(synthesis, sources)
        self._record(synthesis, instances, comparison)
        reach("work.recorded")

    def _read_sources(self) -> Sources:
        try:
            contents = self.ledger.read_sources(self.plan.plan_id)
        except LookupError as error:
            raise JobFailed(str(error)) from None
        sources = {}
        for label, instances in contents.items():
            paths = [self._check(instance) for instance in instances]
            if self.plan.target_modality in EXPOSURE_CLASSES:
                volume, headers = read_picture(paths[0])
            else:
                volume, headers = read_volume(paths, self.plan.source_frames.get(label, ()))
            sources[label] = SourceSeries(
                series_instance_uid=self.plan.sources[label], datasets=headers, volume=volume
            )
        return sources

    def _check(self, instance: Instance) -> Path:
        """Return where a source lies, if it still is what was received."""
        path = self._store.path(instance.path)
        if not path.is_file():
            raise JobFailed(f"the file of {instance.sop_instance_uid} is gone; send it again")
        if hashlib.sha256(self._store.read(instance.path)).hexdigest() != instance.sha256:
            raise UnusableStudy(
                "source_altered",
                f"the file of {instance.sop_instance_uid} is not what was received",
            )
        return path

    def _synthesize(self, sources: Sources) -> types.Synthesis:
        plan = self.plan
        return synthesize(
            {types.ContrastLabel(label): source.volume for label, source in sources.items()},
            target=types.ContrastLabel(plan.target),
            reference=types.ContrastLabel(next(iter(plan.sources))),
            model_id=plan.model_id,
            model_digest=plan.model_digest,
            models_folder=self._node.models_folder,
            seed=plan.seed,
            out_of_memory=self._node.dispatch.out_of_memory,
        )

    def _write(self, synthesis: types.Synthesis, sources: Sources) -> list[DerivedInstance]:
        written = write_derived(
            self.plan,
            synthesis,
            sources,
            load_card(self._node.models_folder, self.plan.model_id),
            self._node.installation or self._store.namespace(),
            station_name=self._node.ae_title,
        )
        problems = check(
            [dataset for _, dataset in written],
            [dataset for source in sources.values() for dataset in source.datasets],
        )
        if problems:
            raise JobFailed(f"the derived instances do not conform: {'; '.join(problems)}")
        folder = self._store.derived_folder(self.plan.plan_id, self.attempt)
        instances = []
        for facts, dataset in written:
            path = f"{folder}/{facts.role}-{facts.number:04d}.dcm"
            digest = self._store.write(path, encode(dataset))
            instances.append(replace(facts, path=path, sha256=digest))
        self._store.write(f"{folder}/{MASK}", _pack_mask(synthesis))
        return instances

    def _compare(self, synthesis: types.Synthesis, sources: Sources) -> dict[str, Any]:
        """Return how far the result is from the real series that its plan names, and its scanner.

        The scanner is told by its make, never by its owner. What stands in the way of comparing is
        told in `problem`, and is no fault of the job.
        """
        truth = self.ledger.read_truth(self.plan.plan_id)
        header = truth[0].header or {}
        told = {name: header.get(keyword) for name, keyword in SCANNER.items()}
        if synthesis.quality.verdict is types.Verdict.REFUSE:
            return {**told, "problem": "refused"}
        reference = sources[next(iter(self.plan.sources))].volume
        card = load_card(self._node.models_folder, self.plan.model_id)
        try:
            paths = [self._check(instance) for instance in truth]
            real, _ = read_volume(paths, self.plan.truth_frames)
            figures = compare_with_truth(synthesis, real, reference, card=card)
        except (UnusableStudy, UnusableInput) as error:
            return {**told, "problem": error.code}
        return {**told, **figures}

    def _record(
        self,
        synthesis: types.Synthesis,
        instances: Sequence[DerivedInstance],
        comparison: Mapping[str, Any],
    ) -> None:
        report = synthesis.quality
        outcome: dict[str, Any] = {
            "quality": {**asdict(report), "verdict": report.verdict.value, **comparison},
            "seconds": {**self._seconds, **synthesis.seconds},
            "record": synthesis.record,
        }
        plan_id, attempt = self.plan.plan_id, self.attempt
        if report.verdict is types.Verdict.REFUSE:
            current = self.ledger.refuse_job(plan_id, attempt, report.reasons, instances, **outcome)
        else:
            current = self.ledger.record_derived(plan_id, attempt, instances, **outcome)
        if current:
            logger.info("job.recorded plan=%s verdict=%s", plan_id, report.verdict)
        else:
            logger.warning("job.fenced_off plan=%s attempt=%d", plan_id, attempt)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds[step] = round(time.monotonic() - began, 3)


def _pack_mask(synthesis: types.Synthesis) -> bytes:
    """Return the mask, array (slices, rows, columns) and affine to LPS mm, as a NumPy archive."""
    buffer = io.BytesIO()
    covered = synthesis.covered
    np.savez_compressed(buffer, covered=covered.array > 0, affine=covered.affine)
    return buffer.getvalue()


@contextmanager
def _held_lease(ledger: Ledger, plan_id: str, attempt: int, lease: timedelta) -> Iterator[None]:
    """Renew the lease from a thread of its own, for as long as the block runs.

    A job that is no longer ours goes on to its end and is fenced off there: nothing can stop
    machine code half-way but the end of the process.
    """
    done = threading.Event()

    def renew() -> None:
        while not done.wait(lease.total_seconds() / RENEWALS_PER_LEASE):
            try:
                if not ledger.renew(plan_id, attempt, lease):
                    return
            except StorageError:
                logger.warning("job.lease_not_renewed plan=%s", plan_id)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
