"""Send held-out people and every fault through the engine, and print what the gates say.

    make gates                          all test people of the shipped models, thick slices
    make gates GATES_ARGS="--whole"     with all their slices

Of a brain one contrast is asked for from two others where there are three, of a limb its CT. The
faults are those of heads. `make masks` compares the brain mask.
"""

import argparse
import sys

from doubles.tools import find_data
from gates.faults import (
    BRAIN_MODEL,
    FAULTS,
    LIMB_MODEL,
    MODELS,
    ROOT,
    T1W,
    Outcome,
    judge,
    read_subject,
)
from synthesis.evaluation import volume_of
from synthesis.judging import CT
from synthesis.people import Person, read_manifest
from synthesis.preparation import read_image
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
    verdicts, passed, spoilt = [], 0, 0
    for person in _find_people(BRAIN_MODEL, settings.subject):
        subject = read_subject(person, data, thick=not settings.whole)
        if len(subject.sources) < FEWEST_CONTRASTS:
            continue
        verdicts.append(_say(subject.name, "clean", judge(subject.sources, subject.target)))
        for name, fault in {} if settings.clean else FAULTS.items():
            outcome = judge(fault.spoil(subject.sources), subject.target)
            spoilt += 1
            passed += not fault.is_told(outcome)
            _say(subject.name, name, outcome)
    for person in _find_people(LIMB_MODEL, settings.subject):
        limb = {T1W: volume_of(read_image(data, person.images[T1W]))}
        verdicts.append(_say(person.subject, "clean", judge(limb, CT, LIMB_MODEL)))
    refused, asked = verdicts.count(Verdict.REFUSE), len(verdicts)
    sys.stdout.write(f"{refused} of {asked} people refused, {passed} of {spoilt} faults passed\n")
    return int(passed > 0 or refused > asked / 20)


def _find_people(model: str, names: list[str] | None) -> list[Person]:
    """Return the people whom a model's card keeps for tests, or those of them with these names."""
    test = set(load_card(MODELS, model).training.test)
    wanted = test if names is None else test & set(names)
    people = read_manifest(ROOT / "config/experiments/people.yaml").people
    return [person for person in people if person.subject in wanted]


def _say(subject: str, what: str, outcome: Outcome) -> Verdict:
    reasons = "; ".join(outcome.reasons)
    sys.stdout.write(f"{subject}, {what}: {outcome.verdict} {reasons}\n")
    sys.stdout.flush()
    return outcome.verdict


if __name__ == "__main__":
    sys.exit(main())
