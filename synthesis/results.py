"""The table of results: rows that are computed once, each kept as JSON under the digest it has.

A row is a method, a set of tasks and a fold: the method learns from the fold's training people and
answers for its test people. Its key covers the method's code, the code that judges, all settings,
and the people with the digest of their images; a row whose key has changed is stale. Each row runs
in a process of its own, so that its memory is its own; a stopped fit goes on where it was.
"""

import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import platform
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
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from synthesis.datasets import PREPARATION, cached_cases, cases_folder, digest_fit, read_fit
from synthesis.errors import TrainingError
from synthesis.fingerprint import fingerprint
from synthesis.judging import find_judge
from synthesis.methods import build_method, find_method
from synthesis.methods.ensemble import Ensemble, EnsembleParameters
from synthesis.metrics.ours import mean_absolute_error
from synthesis.people import Manifest, Person, read_manifest
from synthesis.pictures import write_strip
from synthesis.rendered import render_case
from synthesis.synthesizer import Synthesizer
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    Anchor,
    Case,
    ContrastLabel,
    Prediction,
    SynthesisTask,
)

FIXED = "fixed"
"""The fold that is the manifest's own split."""
LEARNT, FITTED = "learnt", "fitted.json"
KIBIBYTE, MEGABYTE = 1024, 1_000_000
RANDOMIZATION = 0.2
"""Of rendered heads: relaxation times that differ by a fifth, as tissues and scanners do."""
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")

logger = logging.getLogger(__name__)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bar(_Strict):
    """By how much a row must beat another one, over the site folds pooled.

    Attributes:
        relative: the figure is an error, and the margin the share of the other's that must go.
    """

    over: str
    figure: str
    margin: float
    relative: bool = False


class Table(_Strict):
    """Whom and what the rows of a table compare; the file's name is the table's.

    Attributes:
        people: manifest, relative to the file.
        datasets: data sets whose people take part.
        middle_slices: slices about the middle of each mask that are learnt from and judged; all
            when None.
        brain_mask: folder of a brain mask's weights for whole heads, relative to the file.
        fits_ct: CTs are bent to lie on the MR (`fitting`), and people are taught and judged where
            both have body.
        task_sets: name to tasks, each `T1w + T2w -> FLAIR`.
        folds: name to the sites, or people of a large site, that are tested; they are not learnt
            from, and everybody is tested once.
        test_only: people who are not learnt from in any fold.
        validation: people who are watched in a site fold: the first who is not tested; in the
            fixed split, too, where it watches nobody.
        audited: tasks by which methods are audited, see `audits`.
        pictured: a person whose pictures may be published; those of the fixed split are.
        pictured_tasks: tasks that pictures are of.
        baselines: rows that every row is compared with.
        bars: what the rows are measured against.
    """

    title: str
    people: Path
    datasets: tuple[str, ...]
    spacing_mm: float
    anchor: Anchor = Anchor()
    middle_slices: int | None = None
    brain_mask: Path | None = None
    fits_ct: bool = False
    task_sets: Mapping[str, tuple[str, ...]]
    folds: Mapping[str, tuple[str, ...]]
    test_only: tuple[str, ...] = ()
    validation: tuple[str, ...]
    audited: tuple[str, ...] = ()
    pictured: str | None = None
    pictured_tasks: tuple[str, ...] = ()
    baselines: tuple[str, ...]
    bars: tuple[Bar, ...] = ()


class Recipe(_Strict):
    """What a row is given: minutes to learn each model, and the method's parameters."""

    minutes: float
    parameters: Mapping[str, Any] = {}


class RowSettings(_Strict):
    """One method in the table; the file's name is the row's.

    Attributes:
        label: what the page calls it.
        tasks: a task set of the table.
        fit: `once`: one model that takes any subset of the sources serves all tasks; `each`: one
            model per task.
        folds: `fixed`, and `site` for all folds by site.
        gpu: what it is given where there is a GPU; its rows stand beside the others.
        rendered: rendered heads of random contrasts that teach beside the people, see `rendered`.
        members: rows of the table whose mean it is; it takes what they have learnt and learns
            nothing itself, and its method, minutes and parameters are theirs.
        twin: a row that differs in one thing, with which this one is compared.
    """

    method: str
    label: str
    tasks: str
    fit: Literal["once", "each"]
    folds: tuple[Literal["fixed", "site"], ...]
    seed: int = 2026
    minutes: float = 0
    parameters: Mapping[str, Any] = {}
    gpu: Recipe | None = None
    rendered: int = 0
    members: tuple[str, ...] = ()
    twin: str | None = None

    @model_validator(mode="after")
    def _learns_or_has_members(self) -> "RowSettings":
        if bool(self.members) != (self.minutes == 0):
            raise ValueError("a row has minutes to learn or members that have learnt, not both")
        return self


class Fold(_Strict):
    """People by what a row may do with them; nobody is in two of the three."""

    name: str
    train: tuple[Person, ...]
    validation: tuple[Person, ...]
    test: tuple[Person, ...]


class Row(_Strict):
    """A row to compute.

    Attributes:
        name: of its files, without suffix.
        recipe: minutes and parameters on the device at hand.
        members: the rows whose mean it is.
    """

    table: str
    name: str
    settings: RowSettings
    recipe: Recipe
    on_gpu: bool
    tasks: tuple[str, ...]
    fold: Fold
    members: tuple["Row", ...] = ()


def read_table(path: Path) -> Table:
    """Read a table's file; paths within are made relative to it."""
    table = Table.model_validate(yaml.safe_load(path.read_text()))
    changes: dict[str, Any] = {"people": path.parent / table.people}
    if table.brain_mask is not None:
        changes["brain_mask"] = path.parent / table.brain_mask
    return table.model_copy(update=changes)


def parse_task(task: str) -> tuple[tuple[ContrastLabel, ...], ContrastLabel]:
    """Return sources and target of `T1w + T2w -> FLAIR`."""
    left, _, right = task.partition("->")
    return tuple(ContrastLabel(s.strip()) for s in left.split("+")), ContrastLabel(right.strip())


def _make_task(task: str) -> SynthesisTask:
    sources, target = parse_task(task)
    return SynthesisTask(sources=sources, targets=(target,), required=sources)


def make_folds(table: Table, manifest: Manifest) -> dict[str, Fold]:
    """Return the fixed split and the folds by site.

    Raises:
        TrainingError: somebody is tested twice or never, or nobody is left to watch.
    """
    people = [p for p in manifest.people if p.dataset in table.datasets]
    tested = {
        FIXED: [p for p in people if p.split == "test"],
        **{
            name: [p for p in people if p.site in members or p.subject in members]
            for name, members in table.folds.items()
        },
    }
    subjects = sorted(p.subject for name, fold in tested.items() if name != FIXED for p in fold)
    if subjects != sorted(p.subject for p in people):
        raise TrainingError(
            f"folds test {', '.join(subjects)}; the people are of the sites "
            f"{', '.join(sorted({p.site for p in people}))}, each to be tested once"
        )
    return {name: _make_fold(name, table, people, fold) for name, fold in tested.items()}


def _make_fold(name: str, table: Table, people: list[Person], tested: list[Person]) -> Fold:
    """Return the fold that tests some people, watches one or some, and learns from the others."""
    watched = [p for p in people if p.split == "validation"] if name == FIXED else []
    if not watched:
        usable = {p.subject: p for p in people if p not in tested}
        watched = [usable[subject] for subject in table.validation if subject in usable][:1]
    if not watched:
        raise TrainingError(f"fold {name}: everyone of {table.validation} is tested in it")
    left = [p for p in people if p not in tested and p not in watched]
    return Fold(
        name=name,
        train=tuple(p for p in left if p.subject not in table.test_only),
        validation=tuple(watched),
        test=tuple(tested),
    )


def list_rows(path: Path, *, on_gpu: bool = False) -> list[Row]:
    """Return every row of the table at `path`, whose settings lie in the folder of its name.

    Raises:
        TrainingError: a member is no row of the same fold and tasks, or has members itself.
    """
    table = read_table(path)
    folds = make_folds(table, read_manifest(table.people))
    settings = {
        file.stem: RowSettings.model_validate(yaml.safe_load(file.read_text()))
        for file in sorted((path.parent / path.stem).glob("*.yaml"))
    }
    rows = [
        _make_row(path.stem, table, name, each, fold, on_gpu=on_gpu)
        for name, each in settings.items()
        for fold in folds.values()
        if ("fixed" if fold.name == FIXED else "site") in each.folds
    ]
    rows = [_find_members(row, rows) if row.settings.members else row for row in rows]
    # the fixed split first, and what is quick before what is slow
    return sorted(rows, key=lambda r: (r.fold.name != FIXED, r.recipe.minutes))


def _make_row(
    table_name: str, table: Table, name: str, settings: RowSettings, fold: Fold, *, on_gpu: bool
) -> Row:
    recipe = Recipe(minutes=settings.minutes, parameters=settings.parameters)
    is_on_gpu = on_gpu and settings.gpu is not None
    if is_on_gpu and settings.gpu is not None:
        recipe = settings.gpu
    return Row(
        table=table_name,
        name=f"{name}{'-gpu' if is_on_gpu else ''}",
        settings=settings,
        recipe=recipe,
        on_gpu=is_on_gpu,
        tasks=table.task_sets[settings.tasks],
        fold=fold,
    )


def _find_members(row: Row, rows: Sequence[Row]) -> Row:
    """Return the row with its members, whose minutes are its own: they come before it."""
    there = {
        r.name.removesuffix("-gpu"): r
        for r in rows
        if r.fold.name == row.fold.name
        and not r.settings.members
        and set(row.tasks) <= set(r.tasks)
    }
    absent = sorted(set(row.settings.members) - set(there))
    if absent:
        raise TrainingError(
            f"row {row.name}, {row.fold.name}: no member can be {', '.join(absent)}; "
            f"there are {', '.join(sorted(there))}"
        )
    members = tuple(there[name] for name in row.settings.members)
    recipe = Recipe(
        minutes=sum(member.recipe.minutes for member in members),
        parameters={
            "members": [
                {"method": m.settings.method, "parameters": m.recipe.parameters} for m in members
            ]
        },
    )
    on_gpu = any(member.on_gpu for member in members)
    changes = {
        "name": f"{row.name}{'-gpu' if on_gpu else ''}",
        "recipe": recipe,
        "on_gpu": on_gpu,
        "members": members,
    }
    return row.model_copy(update=changes)


def row_path(row: Row, results: Path) -> Path:
    """Return where a row's JSON is kept."""
    return results / row.table / row.fold.name / f"{row.name}.json"


def key_of_fit(row: Row, table: Table) -> str:
    """Return the digest of all that decides what is learnt."""
    mask = None
    if table.brain_mask is not None:
        mask = [hashlib.sha256(f.read_bytes()).hexdigest() for f in _mask_files(table.brain_mask)]
    facts = {
        "code": fingerprint(find_method(row.settings.method)),
        "preparation": PREPARATION,
        "method": row.settings.method,
        "recipe": row.recipe.model_dump(mode="json"),
        "fit": row.settings.fit,
        "seed": row.settings.seed,
        "tasks": row.tasks,
        "spacing_mm": table.spacing_mm,
        "anchor": [table.anchor.percentile, table.anchor.value],
        "middle_slices": table.middle_slices,
        "brain_mask": mask,
        "train": [p.model_dump(mode="json") for p in row.fold.train],
        "validation": [p.model_dump(mode="json") for p in row.fold.validation],
    }
    if row.members:
        facts["members"] = [key_of_fit(member, table) for member in row.members]
    if row.settings.rendered:
        facts["rendered"] = [row.settings.rendered, fingerprint("synthesis.rendered:render_case")]
    if table.fits_ct:
        facts["fit_of_ct"] = digest_fit()
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def key_of(row: Row, table: Table) -> str:
    """Return the digest of all that decides a row's figures."""
    judges = dict.fromkeys(find_judge(parse_task(task)[1]) for task in row.tasks)
    facts = {
        "fit": key_of_fit(row, table),
        "judge": "".join(fingerprint(f"{each.__module__}:{each.__name__}") for each in judges),
        "test": [p.model_dump(mode="json") for p in row.fold.test],
    }
    if table.fits_ct:
        facts["judge_of_whole"] = fingerprint("synthesis.results:judge_fitted")
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def is_fresh(row: Row, table: Table, results: Path) -> bool:
    """Whether the row's JSON is there under the key that it would have now."""
    path = row_path(row, results)
    return path.exists() and bool(json.loads(path.read_text())["key"] == key_of(row, table))


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
    cases["train"] += render_heads(row, table)
    methods: dict[str, Synthesizer[Any]] = {}
    minutes = 0.0
    if row.members:
        methods, minutes = restore(row, table, work, device), _read_minutes(row, table, work)
    for number, task in enumerate(() if row.members else _tasks_to_fit(row)):
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
            given = {label: case.images[label] for label in sources}
            at = time.monotonic()
            answer = methods[name].predict(
                given, target=target, mask=case.mask, spacing=case.spacing, seed=row.settings.seed
            )
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
            name: Ensemble(_make_task(name), parameters, device=device).gather(
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


def _tasks_to_fit(row: Row) -> list[SynthesisTask]:
    if row.settings.fit == "each":
        return [_make_task(task) for task in row.tasks]
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


def _mask_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("brain_mask*"))


def _describe_machine(*, on_gpu: bool) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    if on_gpu:
        from synthesis.devices import name_gpu  # noqa: PLC0415 - torch only where it is needed

        return f"{name_gpu()}; {libraries}"
    return f"{platform.machine()} CPU; {libraries}"


def _slug(task: str) -> str:
    sources, target = parse_task(task)
    return "-".join([*sources, "to", target]).replace(" ", "_")


def _rounded(figures: Any) -> Any:
    if isinstance(figures, dict):
        return {name: _rounded(value) for name, value in figures.items()}
    return float(f"{figures:.5g}")
