"""Run the demonstration: `python -m dicom_node.demonstration [STUDY]`."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from dicom_node.demonstration.findings import to_document
from dicom_node.demonstration.pacs import find_orthanc
from dicom_node.demonstration.page import show, write_page
from dicom_node.demonstration.pictures import draw
from dicom_node.demonstration.studies import (
    Parcel,
    find_real_study,
    prepare_folder,
    prepare_phantom,
    prepare_real_study,
)
from dicom_node.demonstration.tour import run
from dicom_node.domain import ContrastLabel
from dicom_node.errors import ConfigurationError, DicomNodeError

DONE, FAILED, WRONG_ARGUMENTS = 0, 1, 2
LOG_WIDTH = 140
"""Columns of what goes into a file: nobody there folds cells by hand."""
PROGRAM = "python -m dicom_node.demonstration"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration and return the exit code."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Send a study that lacks a contrast through a node and a PACS on this machine.",
        epilog=f"example: {PROGRAM} /data/one-study",
    )
    parser.add_argument(
        "study",
        nargs="?",
        type=Path,
        help="folder with the DICOM files of one study; without it a real study from the data "
        "folder (DICOM_NODE_DATA, ../shared/data), else a built-in phantom",
    )
    parser.add_argument(
        "--held-back",
        action="append",
        default=[],
        type=_read_held_back,
        metavar="LABEL=FOLDER",
        help="the real series of a contrast, which only the report sees (with a study folder)",
    )
    parser.add_argument("--config", type=Path, default=Path("config"), help="of the node")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="is emptied first")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    with tempfile.TemporaryDirectory(prefix="dicom-node-demo-") as scratch:
        try:
            parcel = _prepare(options.study, dict(options.held_back), Path(scratch))
            _empty(options.out)
        except ValueError as error:
            console.print(f"{error}", style="red", markup=False)
            return WRONG_ARGUMENTS
        return _show(parcel, options.config, options.out, console)


def _read_held_back(text: str) -> tuple[ContrastLabel, Path]:
    label, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted LABEL=FOLDER")
    return ContrastLabel(label), Path(folder)


def _prepare(study: Path | None, held_back: dict[ContrastLabel, Path], scratch: Path) -> Parcel:
    if study is not None:
        return prepare_folder(study, held_back)
    archive = find_real_study()
    return prepare_phantom(scratch) if archive is None else prepare_real_study(archive, scratch)


def _empty(folder: Path) -> None:
    """Make the folder anew.

    Raises:
        ValueError: it holds something that no demonstration wrote.
    """
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "node.log").exists():
            raise ValueError(f"{folder} is not of a demonstration; name another one with --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _show(parcel: Parcel, configuration: Path, folder: Path, console: Console) -> int:
    console.print(parcel.note, markup=False)
    if find_orthanc() is None:
        console.print("Orthanc is not installed; the small built-in archive stands in as PACS.")
    (folder / "node.log").touch()
    try:
        tour = run(parcel, configuration, folder, lambda line: console.print(line, markup=False))
    except ConfigurationError as error:
        console.print(str(error), style="red", markup=False)
        return WRONG_ARGUMENTS
    except (RuntimeError, DicomNodeError) as error:
        console.print(f"FAILED: {error}", style="red", markup=False)
        return FAILED
    pictures = []
    for comparison in tour.comparisons:
        name = f"{comparison.target}.png"
        kind = "phantom" if parcel.is_phantom else "study"
        title = f"{comparison.target} synthesized from {', '.join(comparison.sources)} ({kind})"
        draw(comparison, folder / name, title)
        pictures.append(name)
    document = to_document(tour.findings)
    (folder / "report.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "report.html").write_text(write_page(document, pictures))
    show(document, console)
    console.print(f"Report: {folder / 'report.html'}", markup=False)
    return FAILED if tour.findings.failures else DONE


def _interrupt(*_: object) -> NoReturn:
    """Let a SIGTERM run every clean-up, as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
