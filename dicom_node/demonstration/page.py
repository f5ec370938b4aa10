"""The findings for people: tables at the terminal, and one HTML page beside its pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table

SHORT_UID = 12
"""Characters of the end of a UID, which tell the series of one study apart."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
       color: #1d2126; background: #fbfbfa; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.6rem;
         border-bottom: 1px solid #d9d9d6; }
th { font-weight: 600; color: #555; }
img { max-width: 100%; border-radius: 4px; }
.note { border-left: 4px solid #b58900; padding: 0.4rem 0.8rem; background: #fdf6e3; }
.good { color: #2b7a3d; } .bad { color: #b3261e; font-weight: 600; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """One table of the report."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def lay_out(document: Mapping[str, Any]) -> tuple[Sheet, ...]:
    """Return the tables of a report, in the order of the walk.

    Args:
        document: what `findings.to_document` returns.
    """
    sheets = (
        Sheet(
            title="Series received",
            columns=("series", "instances", "label", "confidence", "evidence"),
            rows=tuple(_lay_out_series(document["series"])),
        ),
        Sheet(
            title="What the rules say",
            columns=("rule", "slots", "missing", "refused"),
            rows=tuple(_lay_out_rules(document)),
        ),
        Sheet(
            title="What was made",
            columns=("target", "from", "model", "because", "verdict", "job"),
            rows=tuple(_lay_out_job(job, document["series"]) for job in document["jobs"]),
        ),
        Sheet(
            title="Against the series that was held back",
            columns=("target", "mean absolute error", "of one constant", "PSNR", "SSIM"),
            rows=tuple(_lay_out_comparisons(document["comparisons"])),
        ),
        Sheet(
            title="Deliveries",
            columns=("target", "to", "what", "instances", "state", "status", "attempts"),
            rows=tuple(_lay_out_deliveries(document)),
        ),
        Sheet(title="Seconds", columns=("step", "s"), rows=tuple(_lay_out_seconds(document))),
    )
    return tuple(sheet for sheet in sheets if sheet.rows)


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print the report's tables."""
    for sheet in lay_out(document):
        table = Table(title=sheet.title, title_justify="left", title_style="bold")
        for column in sheet.columns:
            table.add_column(column, overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
    console.print(document["note"], markup=False)
    for failure in document["failures"]:
        console.print(f"FAILED: {failure}", style="red", markup=False)
    if document["completed"]:
        console.print(_praise(document), style="green", markup=False)


def write_page(document: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return the report as HTML.

    Args:
        document: what `findings.to_document` returns.
        pictures: file names beside the page.
    """
    kind = "A phantom study" if document["phantom"] else "A study"
    verdict = (
        f'<p class="good">{escape(_praise(document))}</p>'
        if document["completed"]
        else "".join(f'<p class="bad">{escape(text)}</p>' for text in document["failures"])
    )
    body = [
        f"<h1>{kind}, completed by synthesis</h1>",
        f'<p class="note">{escape(document["note"])} Synthetic images are not acquired ones: '
        "research use only, not for diagnosis.</p>",
        verdict,
        *(f'<p><img src="{escape(name)}" alt="{escape(name)}"></p>' for name in pictures),
        *(_write_sheet(sheet) for sheet in lay_out(document)),
        f"<p>Study {escape(document['study_instance_uid'])}; PACS: {escape(document['pacs'])}; "
        f"checked by {escape(', '.join(document['validation']['tools']))}.</p>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>dicom_node: report</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _write_sheet(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in sheet.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in sheet.rows
    )
    return f"<h2>{escape(sheet.title)}</h2><table><tr>{head}</tr>{rows}</table>"


def _praise(document: Mapping[str, Any]) -> str:
    derived = [one for job in document["jobs"] for one in job["derived"]]
    if not derived:
        return "The study lacks nothing that a rule would make."
    return (
        f"All {len(derived)} derived instances are in the PACS ({document['pacs']}) and validate."
    )


def _lay_out_series(series: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for one in series:
        problem = one["problem"]
        yield (
            f"{one['modality']} …{one['series_instance_uid'][-SHORT_UID:]}",
            str(one["instances"]),
            one["label"] or "no label",
            f"{one['confidence']:.2f}" if one["label"] else "",
            "; ".join(one["evidence"]) + (f" [{problem[0]}: {problem[1]}]" if problem else ""),
        )


def _lay_out_rules(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for rule, slots in document["slots"].items():
        gaps = [gap["target"] for gap in document["gaps"] if gap["rule"] == rule]
        refusals = [
            f"{r['target']}: {r['reason']}" for r in document["refusals"] if r["rule"] == rule
        ]
        yield (
            rule,
            ", ".join(f"{slot} {state}" for slot, state in slots.items()),
            ", ".join(gaps),
            "; ".join(refusals),
        )


def _lay_out_job(job: Mapping[str, Any], series: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    numbers = {one["series_instance_uid"]: one["modality"] for one in series}
    sources = (
        f"{label} ({numbers.get(uid, '')} …{uid[-SHORT_UID:]})"
        for label, uid in job["sources"].items()
    )
    return (
        f"{job['target']} ({job['modality']})",
        ", ".join(sources),
        f"{job['model']} {job['model_digest'][:16]}",
        job["rule_reason"],
        _read_verdict(job["quality"]),
        job["state"] + (f": {job['reason']}" if job["reason"] else ""),
    )


def _read_verdict(quality: Mapping[str, Any]) -> str:
    reasons = quality.get("reasons", ())
    return f"{quality.get('verdict', 'none')}" + (f": {'; '.join(reasons)}" if reasons else "")


def _lay_out_comparisons(
    comparisons: Mapping[str, Mapping[str, float]],
) -> Iterator[tuple[str, ...]]:
    for target, figures in comparisons.items():
        yield (
            target,
            f"{figures['mean_absolute_error']:.1f}",
            f"{figures['mean_absolute_error_of_a_constant']:.1f}",
            f"{figures['psnr_db']:.1f} dB",
            f"{figures['ssim']:.3f}",
        )


def _lay_out_deliveries(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for job in document["jobs"]:
        for line in job["deliveries"]:
            yield (
                job["target"],
                line["peer"],
                line["role"],
                str(line["instances"]),
                line["state"],
                ", ".join([*line["statuses"], *line["reasons"]]),
                str(line["attempts"]),
            )


def _lay_out_seconds(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for stage, seconds in document["seconds"].items():
        yield stage, f"{seconds:.1f}"
    for job in document["jobs"]:
        for step, seconds in job["seconds"].items():
            yield f"{job['target']}: {step}", f"{seconds:.1f}"
