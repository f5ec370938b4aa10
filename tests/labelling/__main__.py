"""Measure the labeller on the real series whose truth is known, and write docs/labels.md.

    make labels                               both parts
    make labels LABELS_ARGS="--part tuning"   what rules may be improved on; nothing is written

The held-out part is for one look at the end; see tests/truth/series_truth.yaml.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
from rich.console import Console

from dicom_node.appearance import Fluid, find_fluid
from doubles.studies import ACQUISITIONS, label_study, load_contrasts, make_series
from doubles.tools import find_data
from labelling.document import Table, print_tables, write_tables
from labelling.measure import judge, kind_of, list_tables
from labelling.truth import read_truth

HEADS = {
    "T1w": (
        Fluid.DARK,
        [
            *("brain_mr_brats18/*/*_t1.nii.gz", "brain_mr_nichart/t1/*_T1.nii.gz"),
            *("brain_mr_openms_*/**/study1_T1W.nii.gz", "brain_mr_openms_cs/*/T1_*.nii.gz"),
            "brain_mr_stroke/T1.nii.gz",
        ],
    ),
    "T1c": (
        Fluid.DARK,
        ["brain_mr_brats18/*/*_t1ce.nii.gz", "brain_mr_openms_cs/*/T1POST_*.nii.gz"],
    ),
    "FLAIR": (
        Fluid.DARK,
        [
            *("brain_mr_brats18/*/*_flair.nii.gz", "brain_mr_nichart/fl/*_FL.nii.gz"),
            *("brain_mr_openms_*/**/study1_FLAIR.nii.gz", "brain_mr_openms_cs/*/FLAIR_*.nii.gz"),
            "brain_mr_stroke/FLAIR.nii.gz",
        ],
    ),
    "T2w": (
        Fluid.BRIGHT,
        [
            *("brain_mr_brats18/*/*_t2.nii.gz", "brain_mr_openms_*/**/study1_T2W.nii.gz"),
            *("brain_mr_openms_cs/*/T2_*.nii.gz", "brain_mr_stroke/T2.nii.gz"),
        ],
    ),
}
"""How fluid looks in a contrast, and the real heads of it."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "labels.md"


def main() -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(prog="make labels", description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("tuning", "both"), default="both")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    options = parser.parse_args()
    data = find_data()
    if data is None:
        sys.exit("the real test images are missing: let DICOM_NODE_DATA name their folder")
    times = list(measure_time())  # first: what is read below would burden the garbage collector
    truths, contrasts = read_truth(data), load_contrasts()
    tuning = [truth for truth in truths if not truth.held_out]
    held_out = [truth for truth in truths if truth.held_out]
    known = {kind_of(truth) for truth in tuning}
    parts = {"Tuning part": tuning}
    if options.part == "both":
        parts["Held-out part"] = held_out
        parts["Held-out part, unlike any of the tuning part"] = [
            truth for truth in held_out if kind_of(truth) not in known
        ]
    tables: list[Table] = []
    for part, those in parts.items():
        for name, text_hidden in ((part, False), (f"{part}, text hidden", True)):
            tables += list_tables(name, judge(those, contrasts, text_hidden=text_hidden))
    tables.append(
        ("Fluid in real heads", ("Contrast", "Heads", "Told", "Wrong"), list(measure_fluid(data)))
    )
    tables.append(("Time", ("Study", "CPU time", "Bar"), times))
    print_tables(tables, Console())
    if options.part == "both":
        write_tables(tables, options.document)
    return 0


def measure_fluid(data: Path) -> Iterator[Sequence[str]]:
    """Yield how often pixels tell whether the fluid of a head is dark, by contrast."""
    for contrast, (fluid, patterns) in HEADS.items():
        paths = [path for pattern in patterns for path in sorted(data.glob(pattern))]
        images = [nibabel.load(path) for path in paths]
        seen = [find_fluid(np.asarray(image.dataobj, np.float32), image.affine) for image in images]
        told = [each for each in seen if each is not None]
        wrong = sum(each != fluid for each in told)
        yield contrast, str(len(seen)), str(len(told)), str(wrong)


def measure_time() -> list[Sequence[str]]:
    """Return how long it takes to tell apart and label the series of large studies."""
    rows = []
    for series, slices, bar in ((50, 1, "50 ms"), (50, 30, "50 ms"), (5000, 1, "2 s")):
        instances = [
            instance
            for k in range(series)
            for instance in make_series(
                f"1.{k}",
                slices=slices,
                SeriesDescription=f"series {k} t1 tra",
                **list(ACQUISITIONS.values())[k % len(ACQUISITIONS)],
            )
        ]
        label_study(instances[:slices])  # compiles the vocabulary, once in the life of a process
        start = time.process_time()
        label_study(instances)
        spent = time.process_time() - start
        rows.append((f"{series} series of {slices} images", f"{spent * 1000:.0f} ms", bar))
    return rows


if __name__ == "__main__":
    sys.exit(main())
