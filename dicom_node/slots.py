"""Which rules are for a study, and whether it fills their slots: pure, from values to values.

Step 4 of the walk, below `routing`. Present, missing, incomplete and ambiguous are four different
things: what was acquired and cannot be used is not missing, nor is what a peer holds or what nobody
could label.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dicom_node.candidates import find_shortfall, read_facts
from dicom_node.conditions import matches
from dicom_node.domain import ContrastLabel, Elsewhere, Mode, Origin, Series, SlotState, Study
from dicom_node.rules import Contrasts, Rule, Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleMatch:
    """Whether a rule is for a study, and why."""

    rule: str
    matched: bool
    reasons: tuple[str, ...]


def match_rule(rule: Rule, study: Study) -> RuleMatch:
    """Return whether `rule` is for `study`, and why."""
    if rule.mode is Mode.OFF:
        return RuleMatch(rule=rule.name, matched=False, reasons=("its mode is off",))
    acquired = [each for each in study.series if each.origin is Origin.ACQUIRED]
    like = [each for each in acquired if matches(rule.study.any_series, read_facts(each))]
    if not like:
        reasons = ("no acquired series looks like its study.any_series",)
        return RuleMatch(rule=rule.name, matched=False, reasons=reasons)
    against = rule.study.no_series
    unlike = [each for each in study.series if against and matches(against, read_facts(each))]
    if unlike:
        reasons = (f"series {unlike[0].series_instance_uid} looks like its study.no_series",)
        return RuleMatch(rule=rule.name, matched=False, reasons=reasons)
    left_out = [each.series_instance_uid for each in study.series if not _counts(each, rule)]
    return RuleMatch(
        rule=rule.name,
        matched=True,
        reasons=(
            f"series {like[0].series_instance_uid} looks like its study.any_series",
            *(f"series {uid} is left out (study.leaves_out)" for uid in dict.fromkeys(left_out)),
        ),
    )


def find_members(study: Study, rule: Rule) -> list[Series]:
    """Return the series of a study that count for a rule."""
    return [each for each in study.series if _counts(each, rule)]


def find_state(
    slot: Slot, rule: Rule, study: Study, series: Sequence[Series], contrasts: Contrasts
) -> SlotState:
    """Return whether one of the series, or what peers hold, fills a slot."""
    elsewhere = find_elsewhere(slot, rule, study, contrasts)
    labels = {slot.slot, *slot.or_else}
    named = [each for each in series if find_contrast(each) in labels]
    if any(fills(each, slot, contrasts) for each in named):
        return SlotState.PRESENT
    if any(_shows_acquisition(each, slot) for each in named):
        return SlotState.INCOMPLETE
    if any(each.is_known and each.label.contrast in labels for each in elsewhere):
        return SlotState.PRESENT
    if elsewhere or any(_could_be(each, labels) for each in series):
        return SlotState.AMBIGUOUS
    return SlotState.MISSING


def find_elsewhere(slot: Slot, rule: Rule, study: Study, contrasts: Contrasts) -> list[Elsewhere]:
    """Return the series at peers that fill a slot, or may.

    One of the study itself may be anything of its modality, unless it says what it is; one of
    another study must say that it may be this.
    """
    labels = {slot.slot, *slot.or_else}
    contrast = contrasts.contrasts.get(slot.slot)
    modality = contrast.modality if contrast is not None else None
    found = []
    for each in study.elsewhere:
        header = each.remote.header
        left_out = rule.study.leaves_out is not None and matches(rule.study.leaves_out, header)
        if each.origin is not Origin.ACQUIRED or left_out:
            continue
        is_nameless = each.label.contrast is None and not each.label.candidates
        is_of_study = each.remote.study_instance_uid == study.study_instance_uid
        could_be = not labels.isdisjoint(each.label.candidates)
        if (
            each.label.contrast in labels
            or (could_be and (is_of_study or each.is_known))
            or (is_nameless and is_of_study and header.get("Modality") == modality)
        ):
            found.append(each)
    return found


def fills(series: Series, slot: Slot, contrasts: Contrasts) -> bool:
    """Say whether a series of the contrast of a slot fills it."""
    label = find_contrast(series)
    if label is None or series.problem is not None or series.origin is Origin.OWN:
        return False
    contrast = contrasts.contrasts.get(label)
    may_be_derived = (contrast is not None and contrast.also_derived) or (
        slot.scanner_synthetic == "fills" and _is_scanner_synthetic(series)
    )
    is_eligible = series.origin is Origin.ACQUIRED or may_be_derived
    return is_eligible and not find_shortfall(series, slot.quality)


def explain_state(
    slot: Slot, state: SlotState, series: Sequence[Series], elsewhere: Sequence[Elsewhere]
) -> str:
    """Return why a slot is not missing, in a sentence."""
    target = slot.slot
    if state is SlotState.AMBIGUOUS:
        if elsewhere:
            remote = elsewhere[0].remote
            return (
                f"{remote.peer} has series {remote.series_instance_uid} of study "
                f"{remote.study_instance_uid}, which is not here and may be {target}"
            )
        doubtful = next(_find_doubtful(target, series), "a series")
        return f"{doubtful} could not be labelled and may be {target}"
    named = [each for each in series if find_contrast(each) in {slot.slot, *slot.or_else}]
    for each in named:
        if each.problem:
            code, why = each.problem
            return f"series {each.series_instance_uid} is {target} but not usable ({code}: {why})"
    for each in named:
        if shortfall := find_shortfall(each, slot.quality):
            return f"series {each.series_instance_uid} is {target}, but {shortfall}"
    return f"a series computed from {target} is there, so that it was acquired; send the original"


def find_contrast(series: Series) -> ContrastLabel | None:
    """Return what a series was labelled, or None."""
    return series.label.contrast if series.label is not None else None


def _counts(series: Series, rule: Rule) -> bool:
    left_out = rule.study.leaves_out
    return left_out is None or not matches(left_out, read_facts(series))


def _could_be(series: Series, labels: set[ContrastLabel]) -> bool:
    """Say whether a series that nobody could label may be one of `labels`."""
    if series.origin is not Origin.ACQUIRED or series.label is None:
        return False
    return series.label.contrast is None and not labels.isdisjoint(series.label.candidates)


def _is_scanner_synthetic(series: Series) -> bool:
    return series.label is not None and series.label.attributes.get("derivation") == "synthetic"


def _shows_acquisition(series: Series, slot: Slot) -> bool:
    """Say whether a series that does not fill a slot shows that its contrast was acquired."""
    passed_over = slot.scanner_synthetic == "passed_over" and _is_scanner_synthetic(series)
    return series.origin is not Origin.OWN and not passed_over


def _find_doubtful(target: ContrastLabel, series: Sequence[Series]) -> Iterator[str]:
    for each in series:
        if _could_be(each, {target}):
            yield f"series {each.series_instance_uid}"
