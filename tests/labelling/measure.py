"""What the labeller says of series whose truth is known, as figures and tables."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dicom_node.contrast import describe
from dicom_node.domain import Instance, Label, Origin, Series
from dicom_node.rules import Contrasts
from labelling.truth import UNDECIDABLE, Truth, hide_text

SURE = 0.9
"""Confidence from which no mistake is borne."""
FEWEST = 5
"""Series of a vendor below which the vendor counts as untested."""
BINS = (0.7, 0.8, SURE, 1.01)

_KIND = (
    *("Modality", "Manufacturer", "ManufacturerModelName", "ImageType", "ScanningSequence"),
    *("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "ContrastBolusAgent"),
)
"""Series in which all of these agree are one kind, however often a set repeats it."""

Row = Sequence[str]


def kind_of(truth: Truth) -> tuple[str, ...]:
    """Return what series of one scanner and one sequence have in common."""
    return tuple(str(truth.header.get(keyword)) for keyword in _KIND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One series: what it is, and what the labeller says."""

    truth: Truth
    label: Label
    origin: Origin
    text_hidden: bool

    @property
    def given(self) -> str:
        """The label, or a dash for an abstention."""
        return "–" if self.label.contrast is None else str(self.label.contrast)

    @property
    def is_decidable(self) -> bool:
        """Whether a reader who sees what the labeller sees can tell."""
        return self.truth.label != UNDECIDABLE and not (self.text_hidden and self.truth.needs_text)

    @property
    def is_given(self) -> bool:
        """Whether the labeller did not abstain."""
        return self.label.contrast is not None

    @property
    def is_wrong(self) -> bool:
        """Whether a label was given that is not the truth; none is that of an undecidable one."""
        return self.is_given and self.label.contrast != self.truth.label


def judge(
    truths: Iterable[Truth], contrasts: Contrasts, *, text_hidden: bool = False
) -> list[Outcome]:
    """Label each series, with its text hidden or not."""
    outcomes = []
    for truth in truths:
        header = hide_text(truth.header) if text_hidden else truth.header
        instance = Instance(
            sop_instance_uid="1.1.1",
            sop_class_uid=str(header.get("SOPClassUID", "")),
            series_instance_uid="1.1",
            study_instance_uid="1",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            sha256="",
            path="",
            header=header,
        )
        series = describe(
            Series(
                series_instance_uid="1.1",
                modality=str(header.get("Modality", "")),
                origin=Origin.ACQUIRED,
                instances=(instance,),
                problem=truth.problem,
            ),
            contrasts,
        )
        assert series.label is not None
        outcomes.append(
            Outcome(truth=truth, label=series.label, origin=series.origin, text_hidden=text_hidden)
        )
    return outcomes


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures that the bars are about."""

    outcomes: Sequence[Outcome]

    @property
    def decidable(self) -> int:
        """Series that can be told."""
        return sum(each.is_decidable for each in self.outcomes)

    @property
    def given(self) -> int:
        """Labels given."""
        return sum(each.is_given for each in self.outcomes)

    @property
    def wrong(self) -> int:
        """Labels given that are not the truth."""
        return sum(each.is_wrong for each in self.outcomes)

    @property
    def surely_wrong(self) -> int:
        """Those of them with a confidence of `SURE` or more."""
        return sum(each.is_wrong and each.label.confidence >= SURE for each in self.outcomes)

    @property
    def sure(self) -> int:
        """Labels given with a confidence of `SURE` or more."""
        return sum(each.is_given and each.label.confidence >= SURE for each in self.outcomes)

    @property
    def missed(self) -> int:
        """Decidable series without a label."""
        return sum(each.is_decidable and not each.is_given for each in self.outcomes)

    @property
    def undecidable_labelled(self) -> int:
        """Series of which nobody can tell what they are, with a label."""
        return sum(each.truth.label == UNDECIDABLE and each.is_given for each in self.outcomes)

    @property
    def right_share(self) -> float:
        """Share of the given labels that are right."""
        return 1 - self.wrong / self.given if self.given else 1.0

    @property
    def missed_share(self) -> float:
        """Share of the decidable series without a label."""
        return self.missed / self.decidable if self.decidable else 0.0


def list_tables(title: str, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Row, list[Row]]]:
    """Yield title, head and rows of each table about some series."""
    yield f"{title}: overall", ("What", "Measured", "Bar", "Reached"), list(_overall(outcomes))
    yield (
        f"{title}: by label",
        ("Truth", "Series", "Right", "Wrong", "Abstained"),
        list(_by_label(outcomes)),
    )
    yield (
        f"{title}: by confidence",
        ("Confidence", "Labels", "Right", "Wrong"),
        list(_by_confidence(outcomes)),
    )
    yield (
        f"{title}: confusion by vendor (truth → label given, – an abstention)",
        ("Vendor", "Series", "As the truth", "Otherwise"),
        list(_by_vendor(outcomes)),
    )
    yield (
        f"{title}: every mistake",
        ("Series", "Truth", "Label given", "Confidence"),
        [
            (each.truth.name, each.truth.label, each.given, f"{each.label.confidence:.2f}")
            for each in outcomes
            if each.is_wrong
        ],
    )


def _overall(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    found = Figures(outcomes)
    yield "series", str(len(outcomes)), "", ""
    kinds = {kind_of(each.truth) for each in outcomes}
    yield "of these with different scanners or sequences", str(len(kinds)), "", ""
    yield "decidable", str(found.decidable), "", ""
    yield (
        "labels given that are right",
        f"{found.given - found.wrong} of {found.given} ({found.right_share:.1%})",
        "99 %",
        _yes(found.right_share >= 0.99),
    )
    yield (
        f"mistakes with a confidence from {SURE}",
        f"{found.surely_wrong} of {found.sure}",
        "0",
        _yes(found.surely_wrong == 0),
    )
    yield (
        "decidable series without a label",
        f"{found.missed} of {found.decidable} ({found.missed_share:.1%})",
        "10 %",
        _yes(found.missed_share <= 0.1),
    )
    yield (
        "undecidable series with a label",
        str(found.undecidable_labelled),
        "0",
        _yes(found.undecidable_labelled == 0),
    )
    told = [each for each in outcomes if each.truth.agent is not None and each.is_given]
    seen = [each for each in told if "contrast_agent" in each.label.attributes]
    right = sum(each.label.attributes["contrast_agent"] is each.truth.agent for each in seen)
    yield "contrast agent seen where one is told of", f"{len(seen)} of {len(told)}", "", ""
    yield "of these right", f"{right} of {len(seen)}", "", ""
    origins = [each for each in outcomes if each.truth.origin is not None]
    right = sum(each.origin.value == each.truth.origin for each in origins)
    yield "acquired or derived, right", f"{right} of {len(origins)}", "", ""


def _yes(reached: bool) -> str:
    return "yes" if reached else "no"


def _by_label(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    for label in sorted({each.truth.label for each in outcomes}, key=str.casefold):
        those = [each for each in outcomes if each.truth.label == label]
        wrong = sum(each.is_wrong for each in those)
        abstained = sum(not each.is_given for each in those)
        right = len(those) - wrong - abstained
        yield label, str(len(those)), str(right), str(wrong), str(abstained)


def _by_confidence(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    for low, high in pairwise(BINS):
        those = [each for each in outcomes if each.is_given and low <= each.label.confidence < high]
        wrong = sum(each.is_wrong for each in those)
        name = f"{low:.1f} to {min(high, 1.0):.1f}"
        yield name, str(len(those)), str(len(those) - wrong), str(wrong)


def _by_vendor(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    for vendor, count in Counter(each.truth.vendor for each in outcomes).most_common():
        if count < FEWEST:
            yield vendor, str(count), "untested", f"fewer than {FEWEST} series"
            continue
        pairs = Counter(
            (each.truth.label, each.given) for each in outcomes if each.truth.vendor == vendor
        )
        same = Counter({t: n for (t, g), n in pairs.items() if g == t})
        other = [
            f"{truth} → {given} {n}" for (truth, given), n in pairs.most_common() if given != truth
        ]
        yield (
            vendor,
            str(count),
            ", ".join(f"{label} {n}" for label, n in same.most_common()),
            ", ".join(other),
        )
