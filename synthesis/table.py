"""The table of results as its files state it: people, folds, rows, and the key that each row has.

A row is a method, a set of tasks and a fold: the method learns from the fold's training people and
answers for its test people. Its key covers the method's code, the code that judges, all settings,
and the people with the digest of their images; a row whose key has changed is stale.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from synthesis.datasets import PREPARATION, digest_fit
from synthesis.errors import TrainingError
from synthesis.fingerprint import fingerprint
from synthesis.judging import find_judge
from synthesis.methods import find_method
from synthesis.people import Manifest, Person, read_manifest
from synthesis.types import (
    Anchor,
    ContrastLabel,
    SynthesisTask,
)

FIXED = "fixed"
"""The fold that is the manifest's own split."""


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
        implanted: copies of each person that teach beside him, with lesions of known effect on
            every contrast, see `lesions`.
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
    implanted: int = 0
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


def make_task(task: str) -> SynthesisTask:
    """Return a task of one target that needs all of its sources."""
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
    if row.settings.implanted:
        implants = fingerprint("synthesis.results:implant_lesions")
        facts["implanted"] = [row.settings.implanted, implants]
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


def _mask_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("brain_mask*"))
