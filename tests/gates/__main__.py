"""Send held-out people and every fault through the engine, and print what the gates say.

    make gates                          all test people of the brain model's card, thick slices
    make gates GATES_ARGS="--whole"     with all their slices

Each person is asked for one contrast from two others where there are three.
"""

import argparse
import sys

from doubles.tools import find_data
from gates.faults import BRAIN_MODEL, FAULTS, MODELS, ROOT, judge, read_subject
from synthesis.people import read_manifest
from synthesis.registry import load_card
from synthesis.types import Verdict

FEWEST_CONTRASTS = 2


def main() -> int:
    """Return 1 if a fault passed or more than one in twenty people were refused."""
    parser = argparse.ArgumentParser(prog="make gates", description=__doc__)
    parser.add_argument("--whole", action="store_true", help="all slices")
    parser.add_argument("--clean", action="store_true", help="no faults")
    parser.add_argument("--subject", action="append", help="only these people")
    settings = parser.parse_args()
    data = find_data()
    if data is None:
        sys.stderr.write("DICOM_NODE_DATA does not lead to images\n")
        return 2
    names = settings.subject or load_card(MODELS, BRAIN_MODEL).training.test
    people = read_manifest(ROOT / "config/experiments/people.yaml").people
    refused, asked, passed, spoilt = 0, 0, 0, 0
    for person in (p for p in people if p.subject in names):
        subject = read_subject(person, data, thick=not settings.whole)
        if len(subject.sources) < FEWEST_CONTRASTS:
            continue
        clean = judge(subject.sources, subject.target)
        asked += 1
        refused += clean.verdict is Verdict.REFUSE
        _say(subject.name, "clean", clean.verdict, clean.reasons)
        for name, fault in {} if settings.clean else FAULTS.items():
            outcome = judge(fault.spoil(subject.sources), subject.target)
            spoilt += 1
            passed += not fault.is_told(outcome)
            _say(subject.name, name, outcome.verdict, outcome.reasons)
    sys.stdout.write(f"{refused} of {asked} people refused, {passed} of {spoilt} faults passed\n")
    return int(passed > 0 or refused > asked / 20)


def _say(subject: str, what: str, verdict: Verdict, reasons: tuple[str, ...]) -> None:
    sys.stdout.write(f"{subject}, {what}: {verdict} {'; '.join(reasons)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
