"""Measure the labeller on the real series whose truth is known, and write docs/labels.md.

    make labels                               both parts
    make labels LABELS_ARGS="--part tuning"   what rules may be improved on; nothing is written

The held-out part is for one look at the end; see tests/truth/series_truth.yaml.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from doubles.studies import ACQUISITIONS, label_study, load_contrasts, make_series
from doubles.tools import find_data
from labelling.document import Table, print_tables, write_tables
from labelling.measure import judge, list_tables
from labelling.truth import read_truth

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
    truths, contrasts = read_truth(data), load_contrasts()
    parts = {"Tuning part": False, "Held-out part": True}
    if options.part == "tuning":
        del parts["Held-out part"]
    tables: list[Table] = []
    for part, held_out in parts.items():
        those = [truth for truth in truths if truth.held_out == held_out]
        for name, text_hidden in ((part, False), (f"{part}, text hidden", True)):
            tables += list_tables(name, judge(those, contrasts, text_hidden=text_hidden))
    tables.append(("Time", ("Study", "CPU time", "Bar"), list(measure_time())))
    print_tables(tables, Console())
    if options.part == "both":
        write_tables(tables, options.document)
    return 0


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
