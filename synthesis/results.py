"""Rows of the table of results, each computed once and kept as JSON under the key that it has.

Each row runs in a process of its own, so that its memory is its own; a stopped fit goes on where it
was.
"""

import fcntl
import json
import logging
import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from synthesis.datasets import cached_cases, cases_folder, read_fit
from synthesis.errors import TrainingError
from synthesis.faithfulness import implant_many
from synthesis.judging import find_judge
from synthesis.lesions import SIGNATURES
from synthesis.methods import build_method
from synthesis.methods.ensemble import Ensemble, EnsembleParameters
from synthesis.metrics.ours import mean_absolute_error
from synthesis.people import Person
from synthesis.pictures import write_strip
from synthesis.rendered import render_case
from synthesis.synthesizer import Synthesizer, ask
from synthesis.table import (
    FIXED,
    Fold,
    Row,
    Table,
    is_fresh,
    key_of,
    key_of_fit,
    list_rows,
    make_task,
    parse_task,
    read_table,
    row_path,
)
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    Case,
    ContrastLabel,
    Prediction,
    SynthesisTask,
)

LEARNT, FITTED = "learnt", "fitted.json"
KIBIBYTE, MEGABYTE = 1024, 1_000_000
LESION = 1
"""The label of one that was put in; whoever learns of lesions knows it."""
RANDOMIZATION = 0.2
"""Of rendered heads: relaxation times that differ by a fifth, as tissues and scanners do."""
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")

logger = logging.getLogger(__name__)


def compute_absent(
    path: Path,
    *,
    results: Path,
    work: Path,
    data_folder: Path,
    device: str,
    only: Sequence[str] = (),
    folds: Sequence[str] = (),
) -> Iterator[tuple[Row, str]]:
    """Compute the rows that are absent or stale, and yield each with what became of it.

    A row that another process computes is left to it.

    Args:
        path: the table's file.
        results: where rows are kept.
        work: where prepared people and fits are kept.
        data_folder: where images lie.
        device: see `Synthesizer`.
        only: names of rows; all of them when empty.
        folds: names of folds; all of them when empty.
    """
    table = read_table(path)
    on_gpu = device.startswith("cuda")
    for row in list_rows(path, on_gpu=on_gpu):
        is_wanted = (not only or row.name in only) and (not folds or row.fold.name in folds)
        if not is_wanted or is_fresh(row, table, results):
            continue
        with _claim(work / "rows" / f"{row.table}-{row.fold.name}-{row.name}.lock") as is_ours:
            if not is_ours:
                yield row, "is being computed by another process"
                continue
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
                try:
                    pool.submit(compute, row, table, results, work, data_folder, device).result()
                except Exception as error:  # one row that fails costs no other row
                    logger.exception("%s, %s", row.name, row.fold.name)
                    yield row, f"failed: {error}"
                    continue
            yield row, "computed"


def compute(
    row: Row, table: Table, results: Path, work: Path, data_folder: Path, device: str
) -> None:
    """Fit, predict and judge one row, and write its JSON and its picture."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    started = time.monotonic()
    # before anything is learnt: the code may change on disk meanwhile
    key, folder = key_of(row, table), work / "rows" / key_of_fit(row, table)
    cases = {
        split: [cut_middle(case, table.middle_slices) for case in members]
        for split, members in read_people(row.fold, table, data_folder, work).items()
    }
    cases["train"] += [
        implant_lesions(case, seed=row.settings.seed + 1000 * number)
        for number, case in enumerate(cases["train"] * row.settings.implanted, start=1)
    ]
    cases["train"] += render_heads(row, table)
    methods: dict[str, Synthesizer[Any]] = {}
    minutes = 0.0
    if row.members:
        methods, minutes = restore(row, table, work, device), _read_minutes(row, table, work)
    for number, task in enumerate(_tasks_to_fit(row)):
        method, taken = _fit(row, task, cases, folder / str(number), device)
        minutes += taken / 60
        methods = _serve(row, task, method) | methods  # the first that can answers
    pictured = table.pictured if row.fold.name == FIXED else None
    figures: dict[str, dict[str, dict[str, float]]] = {}
    taken_by_task: list[float] = []
    path = row_path(row, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in row.tasks:
        sources, target = parse_task(name)
        figures[name] = {}
        for person, case in zip(row.fold.test, cases["test"], strict=True):
            if not {*sources, target} <= set(case.images):
                continue
            at = time.monotonic()
            answer = ask(methods[name], case, sources, target, seed=row.settings.seed)
            taken_by_task.append(time.monotonic() - at)
            judged = judge_fitted if table.fits_ct else find_judge(target)
            figures[name][person.subject] = judged(case, target, answer)
            if person.subject == pictured and name in table.pictured_tasks:
                write_strip(path.with_name(f"{row.name}-{_slug(name)}.png"), case, target, answer)
        logger.info("%s, %s: %s judged", row.name, row.fold.name, name)
    document = {
        "key": key,
        "method": row.settings.method,
        "recipe": row.recipe.model_dump(mode="json"),
        "people": {
            split: [p.subject for p in getattr(row.fold, split)]
            for split in ("train", "validation", "test")
        },
        "fit_minutes": round(minutes, 2),
        "predict_seconds": round(float(np.mean(taken_by_task)), 3) if taken_by_task else None,
        "row_minutes": round((time.monotonic() - started) / 60, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE / MEGABYTE),
        "machine": _describe_machine(on_gpu=row.on_gpu),
        "figures": _rounded(figures),
    }
    if table.fits_ct:
        cache = _find_cache(table, work)
        document["fits"] = {p.subject: read_fit(cache / f"{p.name}.npz") for p in row.fold.test}
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.rename(path)


def judge_fitted(case: Case, target: ContrastLabel, answer: Prediction) -> dict[str, float]:
    """Return the figures where both bodies lie, the error in the whole mask, the band's width.

    The width is what the method says of its own error.
    """
    scale = np.float32(UNITS_PER_NORMALIZED)
    region = case.mask if case.judged is None else case.judged
    figures = find_judge(target)(replace(case, mask=region), target, answer)
    figures["whole_mae"] = mean_absolute_error(
        case.images[target] * scale, answer.mean * scale, case.mask
    )
    if answer.lower is not None and answer.upper is not None:
        figures["band_width"] = float((answer.upper - answer.lower)[region].mean() * scale)
    return figures


def read_people(fold: Fold, table: Table, data_folder: Path, work: Path) -> dict[str, list[Case]]:
    """Return the prepared cases of each part of a fold."""
    return {
        split: list(read_cases(getattr(fold, split), table, data_folder, work))
        for split in ("train", "validation", "test")
    }


def read_cases(
    people: Sequence[Person], table: Table, data_folder: Path, work: Path
) -> Iterator[Case]:
    """Yield the prepared cases of people, on the table's grid."""
    yield from cached_cases(
        list(people),
        data_folder,
        _find_cache(table, work),
        spacing_mm=table.spacing_mm,
        anchor=table.anchor,
        brain_mask=table.brain_mask,
        fits_ct=table.fits_ct,
    )


def restore(row: Row, table: Table, work: Path, device: str) -> dict[str, Synthesizer[Any]]:
    """Return what a row has learnt, kept below `work`: the method of each of its tasks.

    Raises:
        TrainingError: the row, or one of its members, has not been learnt there.
    """
    if row.members:
        learnt = [restore(member, table, work, device) for member in row.members]
        parameters = EnsembleParameters.model_validate(row.recipe.parameters)
        return {
            name: Ensemble(make_task(name), parameters, device=device).gather(
                [each[name] for each in learnt]
            )
            for name in row.tasks
        }
    folder, methods = work / "rows" / key_of_fit(row, table), dict[str, Synthesizer[Any]]()
    for number, task in enumerate(_tasks_to_fit(row)):
        kept = folder / str(number)
        if not (kept / FITTED).exists():
            raise TrainingError(
                f"{row.name}, {row.fold.name}, has not been learnt below {work}; "
                f"synthesis results --row {row.name} --fold {row.fold.name} learns it"
            )
        method = build_method(row.settings.method, task, dict(row.recipe.parameters), device=device)
        methods = _serve(row, task, method.restore(kept / LEARNT)) | methods
    return methods


def _read_minutes(row: Row, table: Table, work: Path) -> float:
    """Return how long the row, or its members, took to learn."""
    if row.members:
        return sum(_read_minutes(member, table, work) for member in row.members)
    kept = (work / "rows" / key_of_fit(row, table)).glob(f"*/{FITTED}")
    return sum(float(json.loads(file.read_text())["seconds"]) for file in kept) / 60


def _serve(row: Row, task: SynthesisTask, method: Synthesizer[Any]) -> dict[str, Synthesizer[Any]]:
    """Return the row's tasks that a method answers for which has learnt `task`."""
    parsed = {name: parse_task(name) for name in row.tasks}
    return {
        name: method
        for name, (sources, target) in parsed.items()
        if target in task.targets and set(sources) <= set(task.sources)
    }


def _find_cache(table: Table, work: Path) -> Path:
    return cases_folder(work, table.spacing_mm, table.anchor, fits_ct=table.fits_ct)


def _fit(
    row: Row, task: SynthesisTask, cases: Mapping[str, list[Case]], folder: Path, device: str
) -> tuple[Synthesizer[Any], float]:
    """Return the method that learnt the task, and the seconds that it took; kept below `folder`."""
    method = build_method(row.settings.method, task, dict(row.recipe.parameters), device=device)
    if (folder / FITTED).exists():
        taken = json.loads((folder / FITTED).read_text())["seconds"]
        return method.restore(folder / LEARNT), float(taken)
    learnt = folder / LEARNT
    learnt.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    contrasts = {*task.sources, *task.targets}
    needed = {*task.required, *task.targets} if task.required else set()
    usable = {
        split: [
            case.known
            for case in cases[split]
            if len(contrasts & set(case.images)) > 1 and needed <= set(case.images)
        ]
        for split in ("train", "validation")
    }
    method.fit(
        usable["train"],
        validation=usable["validation"],
        seed=row.settings.seed,
        budget=timedelta(minutes=row.recipe.minutes),
        checkpoint=folder / "progress",
    )
    method.save(learnt)
    taken = time.monotonic() - started
    (folder / FITTED).write_text(json.dumps({"seconds": taken}))
    return method, taken


def render_heads(row: Row, table: Table) -> list[Case]:
    """Return the rendered heads that teach, cut as people are."""
    named = [parse_task(task) for task in row.tasks]
    contrasts = list(dict.fromkeys(c for sources, target in named for c in (*sources, target)))
    return [
        cut_middle(
            render_case(
                contrasts,
                seed=row.settings.seed + number,
                spacing_mm=table.spacing_mm,
                anchor=table.anchor,
                randomization=RANDOMIZATION,
            ),
            table.middle_slices,
        )
        for number in range(row.settings.rendered)
    ]


def implant_lesions(case: Case, seed: int) -> Case:
    """Return the case with lesions of each size and kind that it has room for, labeled as such."""
    labels = np.zeros(case.mask.shape, np.uint8) if case.labels is None else case.labels.copy()
    changed = replace(case, labels=labels)
    for number, kind in enumerate(SIGNATURES):
        changed, lesions = implant_many(changed, kind, seed + 100 * number)
        for _, lesion in lesions:
            labels[lesion] = LESION
    return changed


def _tasks_to_fit(row: Row) -> list[SynthesisTask]:
    if row.members:  # they have learnt
        return []
    if row.settings.fit == "each":
        return [make_task(task) for task in row.tasks]
    parsed = [parse_task(task) for task in row.tasks]
    return [
        SynthesisTask(
            sources=tuple(dict.fromkeys(s for sources, _ in parsed for s in sources)),
            targets=tuple(dict.fromkeys(target for _, target in parsed)),
        )
    ]


def cut_middle(case: Case, slices: int | None) -> Case:
    """Return the slices about the middle of the case's mask."""
    if slices is None or case.mask.shape[0] <= slices:
        return case
    weights = case.mask.sum(axis=(1, 2))
    middle = round(float((weights * np.arange(weights.size)).sum() / weights.sum()))
    start = min(max(middle - slices // 2, 0), weights.size - slices)
    kept = slice(start, start + slices)
    return replace(
        case,
        images={label: image[kept] for label, image in case.images.items()},
        mask=case.mask[kept],
        judged=None if case.judged is None else case.judged[kept],
        labels=None if case.labels is None else case.labels[kept],
    )


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Hold a lock file, or yield False where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _describe_machine(*, on_gpu: bool) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    from synthesis.devices import name_cpu, name_gpu  # noqa: PLC0415 - torch only where it is needed

    return f"{name_gpu() if on_gpu else name_cpu()}; {libraries}"


def _slug(task: str) -> str:
    sources, target = parse_task(task)
    return "-".join([*sources, "to", target]).replace(" ", "_")


def _rounded(figures: Any) -> Any:
    if isinstance(figures, dict):
        return {name: _rounded(value) for name, value in figures.items()}
    return float(f"{figures:.5g}")
