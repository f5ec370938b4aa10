"""The page that shows the rows of a table: figures with intervals, what may be said, and its cost.

Nothing is computed here but means, intervals and differences of the figures that the rows hold.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from synthesis.comparison import (
    Difference,
    bootstrap,
    compare,
    compare_shares,
    decide,
    write_interval,
)
from synthesis.table import FIXED, Row, Table, is_fresh, list_rows, parse_task, read_table, row_path

POOLED = "site folds pooled"
MOST_LOST_DB = 0.1
"""A further real source may cost no more."""
TWIN_BAR_DB = -0.5
"""What an any-subset model may lose to a model of one pattern."""
SHARE_DIGITS = 2
SHOWN = {
    "psnr_db": ("PSNR dB", 2),
    "ssim": ("SSIM", 3),
    "mae": ("MAE", 1),
    "suv_mae": ("MAE SUV", 2),
    "whole_mae": ("whole MAE", 1),
    "gradient_ratio": ("gradients", 2),
    "through_plane_ratio": ("∂z", 2),
    "tissue_dice": ("tissue Dice", 3),
    "air_mae": ("air MAE", 0),
    "soft_mae": ("soft tissue MAE", 0),
    "bone_mae": ("bone MAE", 0),
    "bone_dice": ("bone Dice", 2),
    "lesion_mae": ("lesion MAE", 0),
    "lesion_suv_mae": ("tumor MAE SUV", 2),
    "lesion_suv_bias": ("tumor bias SUV", 2),
    "lesion_suv_max": ("highest uptake", 2),
    "lesion_contrast": ("lesion contrast", 2),
    "band_coverage": ("band", 2),
    "band_width": ("band width", 0),
}
FIT_SHOWN = {
    "dice": ("Dice of the bodies", 3),
    "bone_darker": ("bone darker", 2),
    "shared": ("shared", 2),
}
FEWEST_RANKED = 5
"""People; of fewer an order says nothing."""

Values = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A row and the JSON that was kept of it."""

    row: Row
    facts: Mapping[str, Any]
    fresh: bool


def write_page(tables: Sequence[Path], results: Path, page: Path) -> None:
    """Write the page of all tables from the rows that are kept."""
    lines = [
        "# Results",
        "",
        "Written by `synthesis results`, which computes only the rows that are absent or stale;",
        f"every figure is kept per person in `{results.name}/`. A row learns from the training",
        "people of its fold and answers for its test people; nobody is in both. Intervals are 95 %",
        "bootstrap intervals over people, p is Wilcoxon's signed-rank test and stands only where",
        "six people or more are compared. Where an interval includes the bar the table says",
        "*not shown*.",
        "",
        "Figures are in the mask, on the model grid, as `synthesis/metrics/ours.py` defines them:",
        "the range is the truth's own and no answer is rescaled. MR errors are in units of the",
        "standard scale, where median tissue is 500, of CT in HU, of PET in SUV by body weight;",
        "air is up to -400 HU and bone from 200 HU. *Gradients* and *∂z* are ratios to the truth,",
        "below one is blur; *tissue Dice* is of a plain classifier that cuts the answer where it",
        "cuts the truth; *lesion contrast* is one where a lesion stands out as it should and zero",
        "where it is gone; *highest uptake* is a tumor's as a share of the true one; *band* is the",
        "share of voxels within the 90 % band. What a row does on disturbed sources and with",
        "implanted lesions stands in [audits](audits.md).",
        "",
    ]
    for path in tables:
        lines += _write_table(path, results, page)
    page.write_text("\n".join(lines).rstrip() + "\n")


def _write_table(path: Path, results: Path, page: Path) -> Iterator[str]:
    table = read_table(path)
    kept, absent = [], []
    for row in _every_row(path):
        file = row_path(row, results)
        if file.exists():
            facts = json.loads(file.read_text())
            kept.append(_Kept(row=row, facts=facts, fresh=is_fresh(row, table, results)))
        elif not row.on_gpu:
            absent.append(row)
    yield f"## {table.title}"
    yield ""
    yield from _describe(table, kept)
    missing = ", ".join(f"{r.name} ({r.fold.name})" for r in absent)
    if missing:
        yield f"Not computed yet: {missing}."
        yield ""
    stale = ", ".join(f"{k.row.name} ({k.row.fold.name})" for k in kept if not k.fresh)
    if stale:
        yield f"Stale, of an earlier method or setting: {stale}."
        yield ""
    if not kept:
        return
    for group in (POOLED, FIXED):
        yield from _write_group(table, group, _gather(kept, group))
    yield from _write_fits(kept)
    yield from _write_warnings(kept)
    yield from _write_subsets(kept)
    yield from _write_twins(kept)
    yield from _write_cost(kept)
    yield from _write_pictures(table, kept, results, page)


def _every_row(path: Path) -> list[Row]:
    """Return the rows of both recipes."""
    rows = {(r.name, r.fold.name): r for gpu in (False, True) for r in list_rows(path, on_gpu=gpu)}
    return list(rows.values())


def _describe(table: Table, kept: Sequence[_Kept]) -> Iterator[str]:
    if table.middle_slices is not None:
        yield (
            f"Learnt from and judged on the middle {table.middle_slices} slices of "
            f"{table.spacing_mm:g} mm of each person."
        )
    if table.fits_ct:
        yield (
            "Each CT was laid on its MR (`synthesis/fitting.py`). Taught and judged is where the "
            "bodies of both lie, the same voxels for every row; *whole MAE* counts all of the MR's "
            "body, also where the CT has none."
        )
    folds = {k.row.fold.name: k.row.fold for k in kept}
    for name, fold in folds.items():
        if name == FIXED:
            known = {p.site for p in (*fold.train, *fold.validation)}
            unseen = [p.subject for p in fold.test if p.site not in known]
            yield (
                f"The fixed split learns from {len(fold.train)} people, watches "
                f"{len(fold.validation)} and tests {len(fold.test)}, of whom "
                f"{', '.join(unseen) or 'none'} are of sites that nobody was learnt from."
            )
        else:
            sites = ", ".join(dict.fromkeys(p.site for p in fold.test))
            shared = {p.site for p in fold.train} & {p.site for p in fold.test}
            others = ", others of which it learns from" if shared else ""
            yield f"Fold {name} tests {len(fold.test)} people of {sites}{others}."
    yield ""


def _gather(kept: Sequence[_Kept], group: str) -> dict[str, dict[str, dict[str, Values]]]:
    """Return row name to task to person to figures, over the folds of a group."""
    found: dict[str, dict[str, dict[str, Values]]] = {}
    for each in kept:
        if (each.row.fold.name == FIXED) != (group == FIXED):
            continue
        for task, people in each.facts["figures"].items():
            found.setdefault(each.row.name, {}).setdefault(task, {}).update(people)
    return found


def _pick(people: Mapping[str, Values], figure: str) -> dict[str, float]:
    return {name: values[figure] for name, values in people.items() if figure in values}


def _write_group(
    table: Table, group: str, found: Mapping[str, Mapping[str, Mapping[str, Values]]]
) -> Iterator[str]:
    if not found:
        return
    yield f"### {group[0].upper()}{group[1:]}"
    yield ""
    tasks = list(dict.fromkeys(t for tasks in table.task_sets.values() for t in tasks))
    for task in tasks:
        rows = {name: by_task[task] for name, by_task in found.items() if by_task.get(task)}
        if not rows:
            continue
        yield f"#### {task.replace('->', '→')}"
        yield ""
        shown = {
            figure: text
            for figure, text in SHOWN.items()
            if any(_pick(people, figure) for people in rows.values())
        }
        yield "| row | n | " + " | ".join(title for title, _ in shown.values()) + " |"
        yield "|---|---|" + "---|" * len(shown)
        order = sorted(rows, key=lambda name: -_mean(rows[name], "psnr_db"))
        for name in order:
            cells = []
            for figure, (_, digits) in shown.items():
                values = _pick(rows[name], figure)
                cells.append(
                    write_interval(bootstrap(list(values.values())), digits) if values else ""
                )
            yield f"| {name} | {len(rows[name])} | " + " | ".join(cells) + " |"
        yield ""
        yield from _write_bars(table, rows, order)
        yield from _write_people(rows, order)


def _mean(people: Mapping[str, Values], figure: str) -> float:
    values = _pick(people, figure)
    return sum(values.values()) / len(values) if values else 0.0


def _write_bars(
    table: Table, rows: Mapping[str, Mapping[str, Values]], order: Sequence[str]
) -> Iterator[str]:
    """Write every row's gain over the baselines, and over the rows that have a bar."""
    bars = {(bar.over, bar.figure): bar for bar in table.bars}
    wanted = dict.fromkeys([*((b, "psnr_db") for b in table.baselines), *bars])
    usable = [(over, figure) for over, figure in wanted if over in rows]
    if not usable or len(rows) == 1:
        return
    heads = []
    for over, figure in usable:
        bar = bars.get((over, figure))
        wanted_gain = "" if bar is None else f", bar {bar.margin:g}"
        kind = "share less of" if bar and bar.relative else "over"
        heads.append(f"{SHOWN[figure][0]} {kind} {over}{wanted_gain}")
    yield "| gain of | " + " | ".join(heads) + " |"
    yield "|---|" + "---|" * len(heads)
    for name in order:
        cells = []
        for over, figure in usable:
            bar = bars.get((over, figure))
            is_relative = bar is not None and bar.relative
            gain = (compare_shares if is_relative else compare)(
                _pick(rows[name], figure), _pick(rows[over], figure)
            )
            digits = SHARE_DIGITS if is_relative else SHOWN[figure][1]
            if name == over or gain is None:
                cells.append("")
                continue
            cells.append(_write_gain(gain, None if bar is None else bar.margin, digits))
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def _write_gain(gain: Difference, bar: float | None, digits: int) -> str:
    text = write_interval(gain.interval, digits)
    if gain.p_value is not None:
        text += f", p {gain.p_value:.2g}"
    text += f", n {gain.interval.n}"
    return text if bar is None else f"{text}: **{decide(gain.interval, bar)}**"


def _write_people(rows: Mapping[str, Mapping[str, Values]], order: Sequence[str]) -> Iterator[str]:
    people = sorted({person for values in rows.values() for person in values})
    yield "<details><summary>PSNR dB of each person</summary>"
    yield ""
    yield "| person | " + " | ".join(order) + " |"
    yield "|---|" + "---|" * len(order)
    for person in people:
        cells = [
            f"{rows[name][person]['psnr_db']:.2f}" if person in rows[name] else "" for name in order
        ]
        yield f"| {person} | " + " | ".join(cells) + " |"
    yield ""
    yield "</details>"
    yield ""


def _write_fits(kept: Sequence[_Kept]) -> Iterator[str]:
    """Write how well CT and MR agree, before and after the one was laid on the other."""
    fits: dict[str, Values] = {}
    for each in kept:
        fits |= {person: fit for person, fit in each.facts.get("fits", {}).items() if fit}
    if not fits:
        return
    yield "### How the CTs were laid on the MR"
    yield ""
    yield (
        "*Bone darker*: how often a voxel of cortical bone in the CT is darker in the MR than the "
        "soft tissue about it, 0.5 by chance. *Shared*: the part of the MR's body where the CT has "
        "body. *Volume*: from how much a voxel was drawn; below zero the map folds."
    )
    yield ""
    heads = [f"{title}, before to after" for title, _ in FIT_SHOWN.values()]
    yield "| person | " + " | ".join([*heads, "moved mm, mean and most", "volume"]) + " |"
    yield "|---|" + "---|" * (len(FIT_SHOWN) + 2)
    for person, fit in sorted(fits.items()):
        cells = [
            f"{fit[f'{name}_before']:.{digits}f} to {fit[f'{name}_after']:.{digits}f}"
            if f"{name}_before" in fit and f"{name}_after" in fit
            else ""
            for name, (_, digits) in FIT_SHOWN.items()
        ]
        cells.append(f"{fit['moved_mm']:.1f}, {fit['most_moved_mm']:.1f}")
        cells.append(f"{fit['least_volume']:.2f} to {fit['most_volume']:.2f}")
        yield f"| {person} | " + " | ".join(cells) + " |"
    yield ""


def _write_warnings(kept: Sequence[_Kept]) -> Iterator[str]:
    """Write whether the band is wider in people who are answered worse."""
    lines = []
    for group in (POOLED, FIXED):
        for name, by_task in _gather(kept, group).items():
            for task, people in by_task.items():
                widths, errors = _pick(people, "band_width"), _pick(people, "mae")
                if len(widths) < FEWEST_RANKED:
                    continue
                rank = stats.spearmanr(
                    list(widths.values()), [errors[person] for person in widths]
                ).statistic
                lines.append(
                    f"| {name} | {group} | {task.replace('->', '→')} | {rank:.2f} | {len(widths)} |"
                )
    if lines:
        yield "### Whether the band tells who is answered badly"
        yield ""
        yield "Spearman's correlation of the mean width of the 90 % band and the MAE, over people."
        yield ""
        yield "| row | folds | task | correlation | n |"
        yield "|---|---|---|---|---|"
        yield from lines
        yield ""


def _write_subsets(kept: Sequence[_Kept]) -> Iterator[str]:
    """Write what a further real source costs a model that takes any subset."""
    lines = []
    for group in (POOLED, FIXED):
        found = _gather([k for k in kept if k.row.settings.fit == "once"], group)
        for name, by_task in found.items():
            worst: tuple[Difference, str, str] | None = None
            for small, large in _nested(list(by_task)):
                gain = compare(_pick(by_task[large], "psnr_db"), _pick(by_task[small], "psnr_db"))
                if gain and (worst is None or gain.interval.mean < worst[0].interval.mean):
                    worst = gain, small, large
            if worst is not None:
                gain, small, large = worst
                verdict = decide(gain.interval, -MOST_LOST_DB)
                text = write_interval(gain.interval, 2)
                step = f"{small} to {large} | {text}, n {gain.interval.n}"
                lines.append(f"| {name} | {group} | {step} | {verdict} |")
    if lines:
        yield "### Any subset of the sources"
        yield ""
        yield f"A further real source should never cost over {MOST_LOST_DB} dB; the worst step:"
        yield ""
        yield "| row | folds | worst step | gain dB | |"
        yield "|---|---|---|---|---|"
        yield from (line.replace("->", "→") for line in lines)
        yield ""


def _nested(tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
    for small in tasks:
        for large in tasks:
            (few, target), (many, other) = parse_task(small), parse_task(large)
            if target == other and set(few) < set(many):
                yield small, large


def _write_twins(kept: Sequence[_Kept]) -> Iterator[str]:
    twins = {k.row.name: k.row.settings.twin for k in kept if k.row.settings.twin}
    lines = []
    for group in (POOLED, FIXED):
        found = _gather(kept, group)
        for name, twin in twins.items():
            for task, people in found.get(name, {}).items():
                other = found.get(twin or "", {}).get(task)
                gain = compare(_pick(other, "psnr_db"), _pick(people, "psnr_db")) if other else None
                if gain is not None:
                    verdict = decide(gain.interval, TWIN_BAR_DB)
                    lines.append(
                        f"| {twin} over {name} | {group} | {task.replace('->', '→')} | "
                        f"{_write_gain(gain, None, 2)} | {verdict} |"
                    )
    if lines:
        yield "### Rows beside their twins"
        yield ""
        yield f"PSNR dB of a row over its twin; the bar of an any-subset model is {TWIN_BAR_DB} dB."
        yield ""
        yield "| rows | folds | task | gain | |"
        yield "|---|---|---|---|---|"
        yield from lines
        yield ""


def _write_cost(kept: Sequence[_Kept]) -> Iterator[str]:
    yield "### Cost"
    yield ""
    yield "Minutes and memory of the row's own process, which shared its machine with other work."
    yield ""
    yield "| row | method | fold | learning, minutes | answer, seconds | peak MB | machine |"
    yield "|---|---|---|---|---|---|---|"
    for each in sorted(kept, key=lambda k: (k.row.name, k.row.fold.name)):
        facts = each.facts
        yield (
            f"| {each.row.name} | {each.row.settings.label} | {each.row.fold.name} | "
            f"{facts['fit_minutes']} | {facts['predict_seconds']} | {facts['peak_mb']} | "
            f"{facts['machine']} |"
        )
    yield ""


def _write_pictures(
    table: Table, kept: Sequence[_Kept], results: Path, page: Path
) -> Iterator[str]:
    pictures: dict[str, list[tuple[str, str]]] = {}
    for each in kept:
        if each.row.fold.name != FIXED:
            continue
        for file in sorted(row_path(each.row, results).parent.glob(f"{each.row.name}-*-to-*.png")):
            task = file.stem.removeprefix(f"{each.row.name}-")
            if task.count("-to-") == 1:
                link = os.path.relpath(file, page.parent)
                pictures.setdefault(task, []).append((each.row.name, link))
    if not pictures:
        return
    yield "### Pictures"
    yield ""
    yield (
        f"{table.pictured}, never learnt from: the truth, the answer, and twice their difference."
    )
    yield ""
    for task, rows in pictures.items():
        yield f"#### {task.replace('-to-', ' → ').replace('-', ' + ').replace('_', ' ')}"
        yield ""
        for name, link in rows:
            yield f"![{name}]({link})"
            yield f"*{name}*"
            yield ""
