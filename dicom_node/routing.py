"""What a study lacks by which rule, and what is made of what: pure, from values to values.

Steps 4 and 5 of the walk, between `contrast`, which labelled the series, and the ledger, where
`assembly` records the decision. Present, missing, incomplete and ambiguous are four different
things, and only what is missing is made unless a rule says otherwise. Refusal is an answer: every
gap that is not filled has a reason, and nothing is made from the closest thing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from dicom_node.conditions import matches
from dicom_node.domain import (
    ContrastLabel,
    Gap,
    Mode,
    Origin,
    Refusal,
    Series,
    SlotState,
    Study,
    SynthesisPlan,
)
from dicom_node.headers import FRAME_POSITIONS
from dicom_node.identifiers import derive_plan_id
from dicom_node.rules import Contrasts, Make, ModelPolicy, Routing, Rule, Slot

if TYPE_CHECKING:
    from synthesis.registry import ModelCard

COVERAGE = 0.7
"""A series whose extent is below this share of the longest candidate's shows a part of the anatomy
only, and comes after all that show it whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleMatch:
    """Whether a rule is for a study, and why."""

    rule: str
    matched: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the rules say of a study.

    Attributes:
        rules: every rule, in the order in which they were asked.
        slots: rule to slot to state, of the rules that apply.
    """

    rules: tuple[RuleMatch, ...] = ()
    slots: Mapping[str, Mapping[ContrastLabel, SlotState]] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    plans: tuple[SynthesisPlan, ...] = ()
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """All that a decision depends on, beside the study.

    Attributes:
        cards: of the models that are there.
        namespace: of this installation; plan ids come from it.
        config_digest: recorded with each plan.
    """

    routing: Routing
    contrasts: Contrasts
    policy: ModelPolicy
    cards: Sequence["ModelCard"]
    namespace: UUID
    config_digest: str

    def judge(self, study: Study, now: datetime) -> Decision:
        """Return what the rules say of `study`: `find_gaps`, then `plan`."""
        return self.plan(study, self.find_gaps(study), now)

    def find_gaps(self, study: Study) -> Decision:
        """Return which rules are for `study`, and which of their slots it does not fill.

        Args:
            study: its series described by `contrast`.
        """
        decisions: list[RuleMatch] = []
        slots: dict[str, Mapping[ContrastLabel, SlotState]] = {}
        gaps: list[Gap] = []
        for rule in self.routing.in_order():
            decisions.append(match_rule(rule, study))
            if not decisions[-1].matched:
                continue
            members = _find_members(study, rule)
            states = {slot.slot: self._find_state(slot, members) for slot in rule.expects}
            slots[rule.name] = states
            made = {make.target for make in rule.makes}
            gaps += [
                Gap(
                    study_instance_uid=study.study_instance_uid,
                    rule=rule.name,
                    target=slot.slot,
                    state=states[slot.slot],
                )
                for slot in rule.expects
                if states[slot.slot] is not SlotState.PRESENT
                and (slot.need == "required" or slot.slot in made)
            ]
        return Decision(rules=tuple(decisions), slots=slots, gaps=tuple(gaps))

    def plan(self, study: Study, decision: Decision, now: datetime) -> Decision:
        """Return `decision` with a plan or a refusal for each gap that a rule wants filled.

        Args:
            study: the one that `decision` is about.
            decision: of `find_gaps`.
            now: the job time of every plan, aware UTC.
        """
        plans: dict[ContrastLabel, SynthesisPlan] = {}
        refusals: list[Refusal] = []
        states = {(gap.rule, gap.target): gap.state for gap in decision.gaps}
        for rule in self.routing.in_order():
            for make in rule.makes:
                state = states.get((rule.name, make.target))
                if state is None:
                    continue
                if make.target in plans:
                    maker = plans[make.target].rule
                    if maker != rule.name:
                        refusals.append(_refuse(rule, make, "other_rule", f"{maker} makes it"))
                    continue
                answer = self._answer(study, rule, make, state, now)
                if isinstance(answer, SynthesisPlan):
                    plans[make.target] = answer
                else:
                    refusals.append(answer)
        return replace(decision, plans=tuple(plans.values()), refusals=tuple(refusals))

    def _find_state(self, slot: Slot, series: Sequence[Series]) -> SlotState:
        labels = {slot.slot, *slot.or_else}
        named = [each for each in series if _contrast(each) in labels]
        if any(self._is_usable(each) for each in named):
            return SlotState.PRESENT
        if any(_shows_acquisition(each) for each in named):
            return SlotState.INCOMPLETE
        if any(_could_be(each, labels) for each in series):
            return SlotState.AMBIGUOUS
        return SlotState.MISSING

    def _is_usable(self, series: Series) -> bool:
        """Say whether a series fills its slot."""
        label = _contrast(series)
        if label is None or series.problem is not None or series.origin is Origin.OWN:
            return False
        contrast = self.contrasts.contrasts.get(label)
        may_be_derived = contrast is not None and contrast.also_derived
        return series.origin is Origin.ACQUIRED or may_be_derived

    def _answer(
        self,
        study: Study,
        rule: Rule,
        make: Make,
        state: SlotState,
        now: datetime,
    ) -> SynthesisPlan | Refusal:
        """Return how a gap is filled, or why it is not."""
        series = _find_members(study, rule)
        if state not in make.when:
            return _refuse(rule, make, f"slot_{state}", _explain_state(make.target, state, series))
        if make.target in self.policy.never_make:
            return _refuse(rule, make, "never_made", "models.yaml says that it is never made")
        card = next((card for card in self.cards if card.id == make.model), None)
        if card is None:
            return _refuse(rule, make, "no_model", f"there is no model {make.model}")
        problem = self._check_model(card, make.target, rule.anatomy)
        if problem is not None:
            return _refuse(rule, make, *problem)
        sources, notes = self._choose_sources(card, make, series)
        lacking = [label for label in card.required if label not in sources]
        if lacking or not sources:
            wanted = ", ".join(lacking or make.sources)
            return _refuse(rule, make, *_explain_lack(wanted, make, series))
        return self._plan(study, rule, make, card, sources, notes, now)

    def _check_model(
        self, card: "ModelCard", target: ContrastLabel, anatomy: str
    ) -> tuple[str, str] | None:
        """Return why a model may not be used, as code and sentence, or None."""
        pinned = self.policy.digests.get(card.id, card.digest)
        facts = card.targets.get(target)
        if pinned != card.digest:
            return (
                "model_not_pinned",
                f"models.yaml pins {card.id} to {pinned[:16]}; the folder has {card.digest[:16]}",
            )
        if facts is None:
            return "model_target", f"{card.id} does not make {target}"
        if facts.state not in self.policy.states:
            wanted = ", ".join(self.policy.states)
            return (
                "model_not_approved",
                f"{card.id} is {facts.state} for {target}; models.yaml wants {wanted}",
            )
        if anatomy not in card.anatomy:
            return "model_anatomy", f"{card.id} is for {', '.join(card.anatomy)}, not for {anatomy}"
        return None

    def _choose_sources(
        self, card: "ModelCard", make: Make, series: Sequence[Series]
    ) -> tuple[dict[ContrastLabel, Series], list[str]]:
        """Return the best series of each source that is there, in the order of preference."""
        chosen: dict[ContrastLabel, Series] = {}
        notes: list[str] = []
        for label in make.sources:
            candidates = [
                each
                for each in series
                if _contrast(each) == label
                and each.origin is Origin.ACQUIRED
                and each.problem is None
            ]
            if label not in card.sources or not candidates:
                continue
            best, why = choose_series(candidates)
            taken = {each.series_instance_uid for each in chosen.values()}
            if best.series_instance_uid in taken:
                notes.append(f"{label} shares a series with another source and is left out")
                continue
            chosen[label] = best
            if why:
                notes.append(f"{label}: {why}")
        return chosen, notes

    def _plan(
        self,
        study: Study,
        rule: Rule,
        make: Make,
        card: "ModelCard",
        sources: Mapping[ContrastLabel, Series],
        notes: Sequence[str],
        now: datetime,
    ) -> SynthesisPlan:
        contents = sorted(
            (instance.sop_instance_uid, instance.sha256)
            for each in sources.values()
            for instance in each.instances
        )
        uids = {label: each.series_instance_uid for label, each in sources.items()}
        because = f"rule {rule.name} expects {make.target}, and no series of the study is one"
        return SynthesisPlan(
            plan_id=derive_plan_id(
                self.namespace,
                study.study_instance_uid,
                make.target,
                card.id,
                card.digest,
                str(self.policy.seed),
                *(f"{label}={uid}" for label, uid in uids.items()),
                *(f"{uid}:{sha256}" for uid, sha256 in contents),
            ),
            study_instance_uid=study.study_instance_uid,
            generation=study.generation,
            rule=rule.name,
            rule_reason="; ".join((because, *notes)),
            target=make.target,
            target_modality=self.contrasts.contrasts[make.target].modality,
            anatomy=rule.anatomy,
            sources=uids,
            source_instances=tuple(contents),
            model_id=card.id,
            model_digest=card.digest,
            seed=self.policy.seed,
            mode=rule.mode,
            priority=rule.priority,
            deliver_to=rule.send_to,
            config_digest=self.config_digest,
            created_at=now,
        )


def match_rule(rule: Rule, study: Study) -> RuleMatch:
    """Return whether `rule` is for `study`, and why."""
    if rule.mode is Mode.OFF:
        return RuleMatch(rule=rule.name, matched=False, reasons=("its mode is off",))
    acquired = [each for each in study.series if each.origin is Origin.ACQUIRED]
    like = [each for each in acquired if matches(rule.study.any_series, _header(each))]
    if not like:
        reasons = ("no acquired series looks like its study.any_series",)
        return RuleMatch(rule=rule.name, matched=False, reasons=reasons)
    against = rule.study.no_series
    unlike = [each for each in study.series if against and matches(against, _header(each))]
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


def choose_series(candidates: Sequence[Series]) -> tuple[Series, str]:
    """Return the best of several series of one contrast, and why (empty when there is only one).

    One that shows the whole anatomy before one that shows a part, 3D before 2D, thinner slices,
    more slices, the last repeat.
    """
    longest = max(_extent(each)[0] for each in candidates)

    def rank(series: Series) -> tuple[Any, ...]:
        extent, spacing, slices = _extent(series)
        header = _header(series)
        return (
            extent < COVERAGE * longest,
            header.get("MRAcquisitionType") != "3D",
            round(spacing, 1),
            -slices,
            -_number(header, "SeriesNumber"),
            -_number(header, "AcquisitionNumber"),
            series.series_instance_uid,
            series.instances[0].sop_instance_uid,
        )

    best = min(candidates, key=rank)
    if len(candidates) == 1:
        return best, ""
    extent, spacing, slices = _extent(best)
    return best, (
        f"series {best.series_instance_uid} is the best of {len(candidates)} "
        f"({slices} slices, {spacing:.1f} mm apart, over {extent:.0f} mm)"
    )


def _find_members(study: Study, rule: Rule) -> list[Series]:
    return [each for each in study.series if _counts(each, rule)]


def _counts(series: Series, rule: Rule) -> bool:
    left_out = rule.study.leaves_out
    return left_out is None or not matches(left_out, _header(series))


def _could_be(series: Series, labels: set[ContrastLabel]) -> bool:
    """Say whether a series that nobody could label may be one of `labels`."""
    if series.origin is not Origin.ACQUIRED or series.label is None:
        return False
    return series.label.contrast is None and not labels.isdisjoint(series.label.candidates)


def _shows_acquisition(series: Series) -> bool:
    """Say whether a series that fills no slot shows that its contrast was acquired."""
    is_synthetic = (
        series.label is not None and series.label.attributes.get("derivation") == "synthetic"
    )
    return series.origin is not Origin.OWN and not is_synthetic


def _explain_state(target: ContrastLabel, state: SlotState, series: Sequence[Series]) -> str:
    if state is SlotState.AMBIGUOUS:
        doubtful = next(_find_doubtful(target, series), "a series")
        return f"{doubtful} could not be labelled and may be {target}"
    for each in series:
        if _contrast(each) == target and each.problem:
            code, why = each.problem
            return f"series {each.series_instance_uid} is {target} but not usable ({code}: {why})"
    return f"a series computed from {target} is there, so that it was acquired; send the original"


def _find_doubtful(target: ContrastLabel, series: Sequence[Series]) -> Iterator[str]:
    for each in series:
        if _could_be(each, {target}):
            yield f"series {each.series_instance_uid}"


def _explain_lack(wanted: str, make: Make, series: Sequence[Series]) -> tuple[str, str]:
    """Return code and sentence for a gap whose sources are not there."""
    for each in series:
        if _contrast(each) in make.sources and each.problem and each.origin is Origin.ACQUIRED:
            code, why = each.problem
            return (
                "source_unusable",
                f"series {each.series_instance_uid} cannot be a source ({code}: {why})",
            )
    return "no_source", f"the study holds no usable series of {wanted}"


def _refuse(rule: Rule, make: Make, code: str, reason: str) -> Refusal:
    return Refusal(rule=rule.name, target=make.target, code=code, reason=reason)


def _extent(series: Series) -> tuple[float, float, int]:
    """Return the length of a stack in mm, the distance of its slices in mm, and their number."""
    positions = [
        position
        for instance in series.instances
        for position in (instance.header or {}).get(
            FRAME_POSITIONS, [(instance.header or {}).get("ImagePositionPatient")]
        )
        if position
    ]
    slices = len(positions)
    if slices <= 1:
        return 0.0, 0.0, slices
    extent = float(np.linalg.norm(np.ptp(positions, axis=0)))
    return extent, extent / (slices - 1), slices


def _number(header: Mapping[str, Any], keyword: str) -> float:
    value = header.get(keyword)
    return float(value) if isinstance(value, int | float) else 0.0


def _contrast(series: Series) -> ContrastLabel | None:
    return series.label.contrast if series.label is not None else None


def _header(series: Series) -> Mapping[str, Any]:
    return series.instances[0].header or {}
