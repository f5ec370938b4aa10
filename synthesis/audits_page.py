"""The page that shows the audits of rows and models, and what they show.

Nothing is computed here but sums, means, intervals and ratios of the figures that audits keep.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthesis.audits import SEED, Subject, audit_path, key_of
from synthesis.comparison import bootstrap, compare, compare_shares, decide, write_interval
from synthesis.faithfulness import DIAMETERS_MM
from synthesis.memorization import COPIED_FROM, SIDE
from synthesis.methods import GENERATIVE
from synthesis.registry import FALSE_LESIONS, LEAST_RECALL, LESION_RECALL, MOST_FALSE, Metric
from synthesis.robustness import CLEAN
from synthesis.table import parse_task, read_table
from synthesis.trade_off import DRAWS, FEW_STEPS, SLICES, STEPS, name_of
from synthesis.usefulness import ANGLE_DEGREES, FALSE_ALARMS, SHIFT_MM

MOST_LOST = 0.1
"""Share of its error on clean sources by which a method may fall under a disturbance."""

MOST_DECIBELS_LOST, MOST_PERCEPTION_LOST = 0.2, 0.1
"""By which an answer of few steps may be behind that of the most."""

People = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What was kept of a subject's audit."""

    name: str
    method: str
    twin: str | None
    fresh: bool
    figures: Mapping[str, People]


def write_page(subjects: Sequence[Subject], results: Path, page: Path) -> None:
    """Write the page of all audits that are kept of the subjects."""
    lines = [
        "# Audits",
        "",
        "Written by `synthesis audit`, which measures what is absent or stale; every figure is",
        f"kept per person in `{results.name}/audits/`. Methods answer for the test people of the",
        "fixed split, whom they never learnt from, on the same slices as in",
        "[results](results.md). Intervals are 95 % bootstrap intervals over people.",
        "",
    ]
    for audit, write in _WRITERS.items():
        found = _read(audit, subjects, results)
        if found:
            lines += [*write(found), ""]
    page.write_text("\n".join(lines).rstrip() + "\n")


def summarize_lesions(subject: Subject, results: Path) -> list[Metric]:
    """Return the figures on lesions that a card states, one pair for each task's target."""
    (kept,) = _read("lesions", [subject], results)
    tested = read_table(subject.table)
    summary = []
    for task in (task for task in tested.audited if task in kept.figures):
        sources, target = parse_task(task)
        people = kept.figures[task]
        shown, recall = _pool(people, "kept", "shown")
        if not shown:
            continue
        false = sum(each["false"] for each in people.values()) / len(people)
        for name, value in ((LESION_RECALL, recall), (FALSE_LESIONS, false)):
            summary.append(
                Metric(
                    target=target,
                    sources=sources,
                    name=name,
                    value=round(value, 4),
                    n=len(people),
                    subjects=tuple(sorted(people)),
                )
            )
    return summary


def _read(audit: str, subjects: Sequence[Subject], results: Path) -> list[_Kept]:
    found = []
    for subject in subjects:
        path = audit_path(audit, subject, results)
        if path.exists():
            facts: dict[str, Any] = json.loads(path.read_text())
            found.append(
                _Kept(
                    name=subject.name,
                    method=facts["method"],
                    twin=subject.twin,
                    fresh=facts["key"] == key_of(audit, subject),
                    figures=facts["figures"],
                )
            )
    return found


def _head(title: str, found: Sequence[_Kept], audit: str) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    stale = ", ".join(each.name for each in found if not each.fresh)
    if stale:
        yield f"Stale, of an earlier method or setting: {stale}."
        yield ""
    yield f"`synthesis audit {audit}`, seed {SEED}."
    yield ""


def _tasks(found: Sequence[_Kept]) -> list[str]:
    return list(dict.fromkeys(task for each in found for task in each.figures))


def _arrow(task: str) -> str:
    return task.replace("->", "→")


def _write_robustness(found: Sequence[_Kept]) -> Iterator[str]:
    yield from _head("Robustness", found, "robustness")
    yield "The mean absolute error when every source is disturbed by a stated amount and then"
    yield "goes through the engine's own steps (registration, N4, the scale of its anchor); *no"
    yield "N4* and *not registered* leave out the step that would undo the disturbance. The"
    yield "error under thick slices is of the truth averaged over the same slices. *×* is the"
    yield f"error over that on clean sources, person by person; the bar is {1 + MOST_LOST:g}."
    yield "Networks learn half of their samples with random bias, response curves, blur and noise"
    yield "on the sources; `unet25d-plain` is the twin of `unet25d-short` that learns none so."
    yield ""
    for task in _tasks(found):
        rows = [each for each in found if each.figures.get(task)]
        yield f"### {_arrow(task)}"
        yield ""
        yield "| condition | " + " | ".join(f"{each.name} MAE | ×" for each in rows) + " |"
        yield "|---|" + "---|---|" * len(rows)
        everyone = [people for each in rows for people in each.figures[task].values()]
        for condition in dict.fromkeys(name for figures in everyone for name in figures):
            cells = []
            for each in rows:
                people = each.figures[task]
                here = {p: f[condition] for p, f in people.items() if condition in f}
                less = compare_shares(here, {p: people[p][CLEAN] for p in here})
                if less is None:
                    cells += ["", ""]
                    continue
                ratio = bootstrap([here[p] / people[p][CLEAN] for p in here])
                verdict = decide(less.interval, -MOST_LOST)
                cells += [
                    f"{bootstrap(list(here.values())).mean:.1f}, n {ratio.n}",
                    "" if condition == CLEAN else f"{write_interval(ratio, 2)} **{verdict}**",
                ]
            yield f"| {condition} | " + " | ".join(cells) + " |"
        yield ""


def _write_lesions(found: Sequence[_Kept]) -> Iterator[str]:
    sizes = [f"{d:g}" for d in reversed(DIAMETERS_MM)]
    yield from _head("Lesions", found, "lesions")
    yield "Lesions of known effect on every contrast are put into ordinary tissue"
    yield "(`synthesis/lesions.py`), one of each size and kind in each person; *real* ones are"
    yield "the connected parts of the labels. One is *shown* where it stands out of its"
    yield "surroundings in the truth and in a source by half their standard deviation, *kept*"
    yield "with half its contrast or more, *erased* with less than a quarter. *False* are compact"
    yield "spots that the answer for the person without implants shows as lesions are shown, and"
    yield f"the truth does not. Bars: {LEAST_RECALL:.0%} kept, {MOST_FALSE:g} false in a volume. A"
    yield "generative method that misses one is for research only, by its card."
    yield ""
    for task in _tasks(found):
        yield f"### {_arrow(task)}"
        yield ""
        yield (
            "| row | shown | kept | of "
            + " | of ".join(f"{s} mm" for s in sizes)
            + (" | erased | real shown | real kept | real erased | false in a volume | |")
        )
        yield "|---|---|---|" + "---|" * len(sizes) + "---|---|---|---|---|---|"
        for each in (each for each in found if each.figures.get(task)):
            people = each.figures[task]
            shown, recall = _pool(people, "kept", "shown")
            false = bootstrap([f["false"] for f in people.values()])
            cells = [f"{shown:g}", f"{recall:.0%}"]
            for size in sizes:
                part, kept = _pool(people, f"kept_{size}mm", f"shown_{size}mm")
                cells.append(f"{kept:.0%}" if part else "")
            cells.append(f"{_sum(people, 'erased'):g}")
            real, kept = _pool(people, "real_kept", "real_shown")
            cells += [
                f"{real:g}",
                f"{kept:.0%}" if real else "",
                f"{_sum(people, 'real_erased'):g}",
            ]
            cells.append(write_interval(false, 1))
            passes = recall >= LEAST_RECALL and false.mean <= MOST_FALSE
            locked = each.method in GENERATIVE and not passes
            cells.append("reached" if passes else "missed, research only" if locked else "missed")
            yield f"| {each.name} | " + " | ".join(cells) + " |"
        yield ""


def _sum(people: People, figure: str) -> float:
    return sum(figures.get(figure, 0.0) for figures in people.values())


def _pool(people: People, part: str, whole: str) -> tuple[float, float]:
    """Return how many there are over all people, and the share of them that is `part`."""
    total = _sum(people, whole)
    return total, _sum(people, part) / total if total else 0.0


def _write_use(found: Sequence[_Kept]) -> Iterator[str]:
    yield from _head("Use of completed studies", found, "use")
    yield "What a study is good for with the real contrast, with the one that was made, and"
    yield "without either. *Dice* is of all lesions, implanted and real, by a segmenter"
    yield "(`synthesis/segmenter.py`) that knows any subset of contrasts and that nothing else"
    yield "was learnt with; *found* is the share of them that its probability shows at"
    yield f"{FALSE_ALARMS} false alarms in a volume, of people with labels; of others Dice is of"
    yield "implants and what is about them. *Offset* is the mean distance in mm by which a"
    yield f"CT that was moved by {SHIFT_MM:g} mm and turned by up to {ANGLE_DEGREES:g} degrees"
    yield "about each axis misses its place after it was laid on the real CT, on the one made of"
    yield "the MR, and on the MR itself. *Over twin* is what a row gains over the plain one that"
    yield "it is compared with. Diagnosis, acquisition and reconstruction are not judged: there"
    yield "are no labels of the one and no raw data of the others."
    yield ""
    yield "| row | task | use | n | real | made | missing | made over missing | over twin |"
    yield "|---|---|---|---|---|---|---|---|---|"
    made_by = {each.name: each.figures for each in found}
    for each in found:
        for task, people in each.figures.items():
            for use, title in {"dice": "Dice", "found": "found", "tre": "offset mm"}.items():
                by = {how: _pick(people, f"{use}_{how}") for how in ("real", "made", "missing")}
                gain = compare(by["made"], by["missing"])
                if gain is None:
                    continue
                cells = [write_interval(bootstrap(list(v.values())), 2) for v in by.values()]
                cells.append(write_interval(gain.interval, 2))
                twin = made_by.get(each.twin or "", {}).get(task, {})
                over = compare(by["made"], _pick(twin, f"{use}_made"))
                cells.append("" if over is None else write_interval(over.interval, 3))
                yield f"| {each.name} | {_arrow(task)} | {title} | {gain.interval.n} | " + (
                    " | ".join(cells) + " |"
                )


def _pick(people: People, figure: str) -> dict[str, float]:
    return {person: figures[figure] for person, figures in people.items() if figure in figures}


def _write_steps(found: Sequence[_Kept]) -> Iterator[str]:
    yield from _head("Steps and draws", found, "steps")
    yield f"What more steps and more draws of a generative method buy, on {SLICES} slices of each"
    yield "person. *Features* is the distance of what the segmenter above sees in the answer from"
    yield "what it sees in the truth, *detail* the energy of high frequencies over the truth's:"
    yield "one draw looks real, the mean of many errs less and is smooth. The time is of a slice."
    yield f"An answer of at most {FEW_STEPS} steps should be within {MOST_DECIBELS_LOST:g} dB of"
    yield f"that of the most, with features at most {MOST_PERCEPTION_LOST:.0%} farther."
    yield ""
    for task in _tasks(found):
        yield f"### {_arrow(task)}"
        yield ""
        yield (
            "| row | draws | steps | n | PSNR dB | features | detail | seconds | "
            f"{MOST_DECIBELS_LOST:g} dB | {MOST_PERCEPTION_LOST:.0%} |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for each in (each for each in found if each.figures.get(task)):
            for draws in DRAWS:
                yield from _write_curve(each.name, each.figures[task], draws)
        yield ""


def _write_curve(row: str, people: People, draws: int) -> Iterator[str]:
    digits = {"psnr_db": 2, "features": 3, "detail": 2, "seconds": 2}
    taken = [n for n in STEPS if _pick(people, name_of("psnr_db", n, draws))]
    for steps in taken:
        here = {name: _pick(people, name_of(name, steps, draws)) for name in digits}
        most = {name: _pick(people, name_of(name, taken[-1], draws)) for name in digits}
        cells = [
            write_interval(bootstrap(list(here[name].values())), count)
            for name, count in digits.items()
        ]
        nearer = compare(here["psnr_db"], most["psnr_db"])
        alike = compare_shares(here["features"], most["features"])
        for gain, lost in ((nearer, MOST_DECIBELS_LOST), (alike, MOST_PERCEPTION_LOST)):
            verdict = f"**{decide(gain.interval, -lost)}**" if gain is not None else ""
            cells.append(verdict if steps <= FEW_STEPS else "")
        yield f"| {row} | {draws} | {steps} | {len(people)} | " + " | ".join(cells) + " |"


def _write_memory(found: Sequence[_Kept]) -> Iterator[str]:
    yield from _head("Memory", found, "memory")
    yield f"Pieces of {SIDE} mm of an answer (of a draw, where a method draws) and their nearest"
    yield "neighbors among the training people, by correlation. *Copied* is the share of pieces"
    yield f"that correlate by {COPIED_FROM:g} or more with a training person's and more than"
    yield "with the truth."
    yield ""
    yield "| row | task | n | answer to nearest | truth to nearest | answer to truth | copied |"
    yield "|---|---|---|---|---|---|---|"
    for each in found:
        for task, people in each.figures.items():
            names = ("nearest_made", "nearest_real", "own", "copied")
            cells = [
                write_interval(bootstrap([f[n] for f in people.values() if n in f]), 3)
                for n in names
            ]
            yield f"| {each.name} | {_arrow(task)} | {len(people)} | " + " | ".join(cells) + " |"


_WRITERS: Mapping[str, Callable[[Sequence[_Kept]], Iterator[str]]] = {
    "robustness": _write_robustness,
    "lesions": _write_lesions,
    "use": _write_use,
    "memory": _write_memory,
    "steps": _write_steps,
}
