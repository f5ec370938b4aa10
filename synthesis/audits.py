"""Audits: what a row of the table, or a model, does beyond its figures on clean images.

An audit asks a method for the tasks that its table names (`audited`), of the test people of the
fixed split, and keeps what it measured of each person as JSON. Like a row it is kept under the
digest of what decides it: what was learnt, the code that measures, and the people. A stopped audit
goes on with the person that it was at.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthesis.datasets import PREPARATION
from synthesis.errors import TrainingError
from synthesis.fingerprint import fingerprint
from synthesis.lesions import SIGNATURES
from synthesis.people import read_manifest
from synthesis.registry import ModelCard, load_card, load_cards, load_method
from synthesis.results import cut_middle, read_cases, restore
from synthesis.synthesizer import Synthesizer
from synthesis.table import (
    FIXED,
    Fold,
    Table,
    key_of_fit,
    list_rows,
    make_folds,
    parse_task,
    read_table,
)
from synthesis.types import ContrastLabel

if TYPE_CHECKING:
    from synthesis.segmenter import Segmenter

SEED = 2026

Figures = dict[str, dict[str, dict[str, float]]]
"""Task to person to figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who is audited: a model, or a row that was learnt.

    Attributes:
        table: that names the people and the tasks.
        name: of the model or the row.
        method: its name in the table of methods.
        key: digest of what was learnt.
        load: returns the method of each task.
        twin: the row that a row is compared with.
    """

    table: Path
    name: str
    method: str
    key: str
    load: Callable[[], Mapping[str, Synthesizer[Any]]]
    twin: str | None = None


AUDITS: Mapping[str, str] = {
    "robustness": "synthesis.robustness:measure",
    "lesions": "synthesis.faithfulness:measure",
    "use": "synthesis.usefulness:measure",
    "memory": "synthesis.memorization:measure",
    "steps": "synthesis.trade_off:measure",
}
"""Name to the function that measures one person and task."""
SCALES = frozenset({"robustness", "lesions"})
"""Told the anchor of the scale, which they measure by."""
COMPARES_WITH_TRAINING = frozenset({"memory"})
SEGMENTS = frozenset({"use", "steps"})
SEGMENTER = "synthesis.segmenter:learn_segmenter"
KNOWN = SIGNATURES["demyelination"]
"""Contrasts in which it is known how a lesion looks."""


def find_model(model_id: str, path: Path, models_folder: Path) -> Subject:
    """Return a model as a subject of the table at `path`.

    Raises:
        TrainingError: it has learnt from a test person of the table, or answers on another grid or
            scale than that on which the table's people are prepared.
    """
    table, card = read_table(path), load_card(models_folder, model_id)
    tested = {person.subject for person in _make_fold(table).test}
    known = tested & {*card.training.subjects, *card.training.validation}
    if known:
        raise TrainingError(f"{model_id} has learnt from {', '.join(sorted(known))}")
    seen, wanted = (card.spacing_mm, card.anchor), (table.spacing_mm, table.anchor)
    if seen != wanted:
        raise TrainingError(
            f"{model_id} answers on {seen[0]:g} mm and {seen[1]}; the people of {path.name} are "
            f"prepared on {wanted[0]:g} mm and {wanted[1]}: audit it on a table of its own"
        )
    facts = [card.digest, PREPARATION, table.spacing_mm, table.middle_slices]
    return Subject(
        table=path,
        name=model_id,
        method=card.method,
        key=_digest(facts),
        load=partial(_load_model, card, table, models_folder),
    )


def _load_model(
    card: ModelCard, table: Table, models_folder: Path
) -> Mapping[str, Synthesizer[Any]]:
    method = load_method(models_folder, card.id, card.digest)
    found = {}
    for task in table.audited:
        sources, target = parse_task(task)
        if target in card.targets and set(sources) <= set(card.sources):
            found[task] = method
    return found


def find_row(name: str, path: Path, work: Path, device: str) -> Subject:
    """Return a row of the fixed split of the table at `path`.

    Raises:
        TrainingError: the table has no such row.
    """
    table = read_table(path)
    for row in list_rows(path, on_gpu=device.startswith("cuda")):
        if row.name == name and row.fold.name == FIXED:
            return Subject(
                table=path,
                name=name,
                method=row.settings.method,
                key=key_of_fit(row, table),
                load=partial(restore, row, table, work, device),
                twin=row.settings.twin,
            )
    raise TrainingError(f"{path} has no row {name} on the fixed split")


def list_kept(results: Path, tables: Path, work: Path, models_folder: Path) -> list[Subject]:
    """Return every subject of whom an audit is kept, models before rows."""
    kept = sorted({(f.parent.name, f.stem) for f in (results / "audits").glob("*/*/*.json")})
    models = {card.id for card in load_cards(models_folder)}
    found = []
    for table, name in kept:
        path = tables / f"{table}.yaml"
        if name in models:
            found.append(find_model(name, path, models_folder))
        else:
            found.append(find_row(name, path, work, "cpu"))
    return sorted(found, key=lambda subject: subject.name not in models)


def audit_path(audit: str, subject: Subject, results: Path) -> Path:
    """Return where an audit's JSON is kept."""
    return results / "audits" / audit / subject.table.stem / f"{subject.name}.json"


def key_of(audit: str, subject: Subject) -> str:
    """Return the digest of all that decides an audit's figures."""
    table = read_table(subject.table)
    people = [p.model_dump(mode="json") for p in _make_fold(table).test]
    facts: list[object] = [subject.key, fingerprint(AUDITS[audit]), people]
    return _digest([*facts, _key_of_segmenter(table)] if audit in SEGMENTS else facts)


def run(
    audit: str,
    subject: Subject,
    *,
    results: Path,
    work: Path,
    data_folder: Path,
    only: Sequence[str] = (),
) -> Iterator[str]:
    """Measure what is absent or stale, person by person, and yield what was done.

    Args:
        audit: one of `AUDITS`.
        subject: who is audited.
        results: folder of the JSON.
        work: where prepared people and what rows have learnt are kept.
        data_folder: where images lie of people who are not prepared.
        only: tasks; all that the table names when empty.

    Raises:
        TrainingError: there is no such audit, or the subject does none of the tasks.
    """
    if audit not in AUDITS:
        raise TrainingError(f"no audit {audit!r}; known: {', '.join(AUDITS)}")
    table, path = read_table(subject.table), audit_path(audit, subject, results)
    key = key_of(audit, subject)
    figures: Figures = {}
    if path.exists() and (kept := json.loads(path.read_text()))["key"] == key:
        figures = kept["figures"]
    methods = subject.load()
    tasks = [t for t in table.audited if t in methods and (not only or t in only)]
    if not tasks:
        raise TrainingError(
            f"{subject.name} does none of the tasks {', '.join(only or table.audited)}"
        )
    module, _, name = AUDITS[audit].partition(":")
    measure = getattr(import_module(module), name)
    people, taught = _make_fold(table).test, _make_fold(table).train
    if audit in SCALES:
        measure = partial(measure, anchor=table.anchor)
    if audit in COMPARES_WITH_TRAINING:
        trained = read_cases(taught, table, data_folder, work)
        measure = partial(measure, trained=[cut_middle(c, table.middle_slices) for c in trained])
    if audit in SEGMENTS:
        measure = partial(measure, segmenter=_find_segmenter(table, data_folder, work))
    for person, case in zip(people, read_cases(people, table, data_folder, work), strict=True):
        middle = cut_middle(case, table.middle_slices)
        for task in tasks:
            sources, target = parse_task(task)
            absent = person.subject not in figures.setdefault(task, {})
            if not absent or not {*sources, target} <= set(middle.images):
                continue
            figures[task][person.subject] = measure(
                methods[task], middle, sources, target, seed=SEED
            )
            _write(path, {"key": key, "method": subject.method, "figures": figures})
            yield f"{audit}, {subject.name}, {task}: {person.subject}"


def _find_segmenter(table: Table, data_folder: Path, work: Path) -> "Segmenter | None":
    """Return the segmenter that judges on a table, learnt where it is not kept below `work`.

    None where nobody has labels, or no task makes MR.
    """
    from synthesis import segmenter  # noqa: PLC0415 - loads torch

    contrasts = _list_mr(table)
    folder = work / "segmenters" / _key_of_segmenter(table)
    if (folder / segmenter.CONTRASTS).exists():
        return segmenter.load_segmenter(folder)
    taught = read_cases(_make_fold(table).train, table, data_folder, work) if contrasts else ()
    found = segmenter.learn_segmenter(
        [cut_middle(case, table.middle_slices) for case in taught], contrasts, SEED
    )
    if found is not None:
        segmenter.save_segmenter(found, folder)
    return found


def _key_of_segmenter(table: Table) -> str:
    people = [p.model_dump(mode="json") for p in _make_fold(table).train]
    facts = [fingerprint(SEGMENTER), PREPARATION, people, _list_mr(table), SEED]
    return _digest([*facts, table.spacing_mm, table.middle_slices])


def _list_mr(table: Table) -> list[ContrastLabel]:
    """Return the MR contrasts of a table's tasks if it audits one that makes MR."""
    targets = [parse_task(task)[1] for task in table.audited]
    if not any(target in KNOWN for target in targets):
        return []
    named = [parse_task(task) for tasks in table.task_sets.values() for task in tasks]
    contrasts = dict.fromkeys(c for sources, target in named for c in (*sources, target))
    return [c for c in contrasts if c in KNOWN]


def _make_fold(table: Table) -> Fold:
    return make_folds(table, read_manifest(table.people))[FIXED]


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(_rounded(document), indent=1, ensure_ascii=False) + "\n")
    temporary.rename(path)


def _rounded(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _rounded(value) for name, value in document.items()}
    return float(f"{document:.5g}") if isinstance(document, float) else document


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
