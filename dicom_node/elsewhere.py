"""What peers list of a study, put beside what is here: counts that differ, and series that are not.

Between the ledger's inquiries and `routing`, for `assembly` and `explain`. Nothing is labelled by
physics here that is not here: a series at a peer has its description only, unless it came with
another study.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from dicom_node.contrast import describe
from dicom_node.domain import (
    Elsewhere,
    Instance,
    Label,
    Origin,
    RemoteSeries,
    Series,
    Study,
)
from dicom_node.headers import read_header
from dicom_node.ledger import Inquiry, Ledger
from dicom_node.rules import Contrasts
from dicom_node.series import split_series
from dicom_node.store import Store

INCOMPLETE = "not_all_came"
"""Code of the problem of a series of which a peer has more than came here."""


def add_answers(
    study: Study,
    inquiries: Iterable[Inquiry],
    contrasts: Contrasts,
    ledger: Ledger,
    store: Store,
) -> Study:
    """Return `study` with what peers say of it."""
    listed = [each for inquiry in inquiries for each in inquiry.found]
    here = Counter(
        {
            uid: len({instance.sop_instance_uid for instance in instances})
            for uid, instances in _group(study.series).items()
        }
    )
    whole = {
        each.series_instance_uid: each.instances or 0
        for each in listed
        if each.study_instance_uid == study.study_instance_uid
    }
    siblings = {each.study_instance_uid for each in listed} - {study.study_instance_uid}
    known = {
        uid: volumes
        for sibling in siblings
        for uid, volumes in _read_volumes(sibling, contrasts, ledger, store).items()
    }
    return replace(
        study,
        series=tuple(
            _compare(each, here[each.series_instance_uid], whole.get(each.series_instance_uid, 0))
            for each in study.series
        ),
        elsewhere=tuple(
            found
            for each in listed
            if not here[each.series_instance_uid]
            for found in _label(each, known.get(each.series_instance_uid, ()), contrasts)
        ),
    )


def _group(series: Iterable[Series]) -> dict[str, list[Instance]]:
    grouped: dict[str, list[Instance]] = {}
    for each in series:
        grouped.setdefault(each.series_instance_uid, []).extend(each.instances)
    return grouped


def _compare(series: Series, here: int, there: int) -> Series:
    """Return a series, which has a problem when not all of it came."""
    if series.problem is not None or there <= here:
        return series
    return replace(series, problem=(INCOMPLETE, f"{here} of {there} instances came"))


def _read_volumes(
    study_instance_uid: str, contrasts: Contrasts, ledger: Ledger, store: Store
) -> dict[str, list[Series]]:
    """Return what came of another study, described, by Series Instance UID."""
    instances = [
        each
        if each.header is not None
        else replace(each, header=read_header(store.path(each.path)))
        for each in ledger.read_instances(study_instance_uid)
    ]
    own = ledger.own_uids(each.sop_instance_uid for each in instances)
    volumes: dict[str, list[Series]] = {}
    for each in split_series(instances):
        is_own = any(instance.sop_instance_uid in own for instance in each.instances)
        described = describe(each, contrasts, is_own=is_own)
        volumes.setdefault(each.series_instance_uid, []).append(described)
    return volumes


def _label(
    remote: RemoteSeries, volumes: Iterable[Series], contrasts: Contrasts
) -> Iterator[Elsewhere]:
    """Yield what a series at a peer is: each of its volumes where it came, else what it says."""
    is_known = False
    for each in volumes:
        if each.label is not None and each.problem is None:
            is_known = True
            yield Elsewhere(remote=remote, origin=each.origin, label=each.label, is_known=True)
    if not is_known:
        yield _read_description(remote, contrasts)


def _read_description(remote: RemoteSeries, contrasts: Contrasts) -> Elsewhere:
    described = describe_remote(remote, contrasts)
    label = described.label or Label(contrast=None, confidence=0.0, evidence=())
    return Elsewhere(remote=remote, origin=described.origin, label=label, is_known=False)


def describe_remote(remote: RemoteSeries, contrasts: Contrasts) -> Series:
    """Return a series at a peer, labelled by what the peer says; one image stands in for it."""
    stand_in = Instance(
        sop_instance_uid="",
        sop_class_uid="",
        series_instance_uid=remote.series_instance_uid,
        study_instance_uid=remote.study_instance_uid,
        transfer_syntax_uid="",
        sha256="",
        path="",
        header=remote.header,
    )
    return describe(
        Series(
            series_instance_uid=remote.series_instance_uid,
            modality=str(remote.header.get("Modality", "")),
            origin=Origin.ACQUIRED,
            instances=(stand_in,),
        ),
        contrasts,
    )
