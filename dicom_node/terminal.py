"""The documents of the command line as tables for people; `--json` prints them as they are."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 240
"""Columns where no terminal says how many there are, so that no UID is broken in a pipe."""

_COLORS = {
    **dict.fromkeys(("done", "sent", "pass", "ok", "present", "committed"), "green"),
    **dict.fromkeys(("held", "warned", "warn", "warning", "incomplete", "ambiguous"), "yellow"),
    **dict.fromkeys(("failed", "parked", "silent", "refuse", "rejected", "missing"), "red"),
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def open_console() -> Console:
    """Return a console on standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def print_status(status: Mapping[str, Any]) -> None:
    """Print where studies, jobs and deliveries stand."""
    console = open_console()
    console.print(
        _table(
            "studies",
            ("study", "state", "instances", "last instance", "reason"),
            (
                (
                    each["study_instance_uid"],
                    each["state"],
                    each["instances"],
                    _ago(each["age_seconds"]),
                    each["reason"],
                )
                for each in status["studies"]
            ),
        )
    )
    console.print(
        _table(
            "jobs",
            (
                "job",
                "target",
                "sources",
                "model",
                "state",
                "since",
                "attempts",
                "verdict",
                "reason",
            ),
            (
                (
                    each["job"],
                    each["target"],
                    " ".join(each["sources"]),
                    each["model"],
                    each["state"],
                    _ago(each["age_seconds"]),
                    each["attempts"],
                    each["verdict"],
                    each["reason"],
                )
                for each in status["jobs"]
            ),
        )
    )
    console.print(_tabulate_deliveries(status["deliveries"]))
    console.print(
        _table(
            "destinations",
            ("peer", "state", "pending", "parked", "failures", "reason"),
            (
                (
                    each["peer"],
                    each["state"],
                    each["pending"],
                    each["parked"],
                    each["failures"],
                    each["reason"],
                )
                for each in status["destinations"]
            ),
        )
    )

    if status["shadow"]:
        console.print(_tabulate_comparisons(status["shadow"]))
    if status["conflicts"]:
        console.print(
            _table(
                "conflicts: files below the store to compare before a study is released",
                ("study", "kept", "quarantined", "peer", "since"),
                (
                    (
                        each["study_instance_uid"],
                        each["kept"],
                        each["quarantined"],
                        each["peer"],
                        _ago(each["age_seconds"]),
                    )
                    for each in status["conflicts"]
                ),
            )
        )


def print_explanation(explanation: Mapping[str, Any]) -> None:
    """Print what a study holds, what it lacks, and what follows."""
    console = open_console()
    console.print(
        _table(
            f"study {explanation['study_instance_uid']}",
            ("series", "modality", "label", "confidence", "origin", "evidence"),
            (
                (
                    each["series_instance_uid"],
                    each["modality"],
                    each["label"] or "unknown",
                    f"{each['confidence']:.2f}",
                    each["origin"],
                    "; ".join(each["evidence"]),
                )
                for each in explanation["series"]
            ),
        )
    )
    console.print(
        _table(
            "rules",
            ("rule", "matched", "reasons"),
            (
                (each["rule"], "yes" if each["matched"] else "no", "; ".join(each["reasons"]))
                for each in explanation["rules"]
            ),
        )
    )
    console.print(_table("slots", ("contrast", "state"), explanation["slots"].items()))
    console.print(
        _table(
            "plans",
            ("target", "sources", "model", "because"),
            (
                (
                    each["target"],
                    "; ".join(f"{label} {uid}" for label, uid in each["sources"].items()),
                    each["model"],
                    each["because"],
                )
                for each in explanation["plans"]
            ),
        )
    )
    console.print(
        _table(
            "refusals",
            ("target", "reason"),
            ((each["target"], each["reason"]) for each in explanation["refusals"]),
        )
    )
    for title, key in (
        ("held for a person", "held"),
        ("asked", "inquiries"),
        ("told", "notices"),
        ("wanted by a worklist", "steps"),
        ("at peers, and not here", "elsewhere"),
    ):
        if rows := explanation.get(key):
            values = (
                ["" if value is None else str(value) for value in each.values()] for each in rows
            )
            console.print(_table(title, rows[0], values))
    if "closing" in explanation:
        console.print(f"judged, and not waited for any longer: {explanation['closing']}")
    if "deliveries" in explanation:
        console.print(_tabulate_deliveries(explanation["deliveries"]))


def print_rules(rules: Iterable[Mapping[str, Any]]) -> None:
    """Print which rules there are and how far each may go."""
    open_console().print(
        _table(
            "rules",
            ("rule", "mode", "says", "owner"),
            ((each["rule"], each["mode"], each["says"], each["owner"]) for each in rules),
        )
    )


def print_examination(document: Mapping[str, Any]) -> None:
    """Print what the doctor found, and what to enter at the PACS."""
    console = open_console()
    console.print(
        _table(
            "findings",
            ("check", "state", "detail"),
            ((each["check"], each["state"], each["detail"]) for each in document["findings"]),
        )
    )
    console.print("Enter at the PACS:")
    for line in document["enter_at_pacs"]:
        console.print(Text(f"  {line}"))


def _tabulate_comparisons(comparisons: Iterable[Mapping[str, Any]]) -> Table:
    return _table(
        "shadow: what was made beside the real series; median (lowest to highest)",
        (
            *("manufacturer", "model name", "field strength", "target", "model", "compared"),
            *("PSNR (dB)", "SSIM", "MAE", "not compared"),
        ),
        (
            (
                each["manufacturer"],
                each["model_name"],
                each["field_strength"],
                each["target"],
                each["model"],
                each["compared"],
                *(
                    figures and "{median:.4g} ({lowest:.4g} to {highest:.4g})".format(**figures)
                    for figures in (each["psnr_db"], each["ssim"], each["mae"])
                ),
                ", ".join(f"{code} {count}" for code, count in each["not_compared"].items()),
            )
            for each in comparisons
        ),
    )


def _tabulate_deliveries(deliveries: Iterable[Mapping[str, Any]]) -> Table:
    return _table(
        "deliveries",
        ("job", "peer", "state", "instances", "attempts", "status", "reason"),
        (
            (
                each["job"],
                each["peer"],
                each["state"],
                each["instances"],
                each["attempts"],
                each["status"],
                each["reason"],
            )
            for each in deliveries
        ),
    )


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table; a word that says how something went has its color."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        cells = ("" if cell is None else str(cell) for cell in row)
        table.add_row(*(Text(cell, style=_COLORS.get(cell, "")) for cell in cells))
    return table


def _ago(seconds: float) -> str:
    for unit, length in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
