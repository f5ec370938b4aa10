"""What a study lacks by which rule, and what is to be done about it: pure, from values to values.

Steps 4 and 5 of the walk, between `contrast`, which labelled the series, and the ledger, where
`assembly` records the decision. `slots` says whether a series fills a slot, `planning` how a model
fills a gap; here the rules are asked in their order. Only what is missing is made unless a rule
says otherwise, and every gap that is not filled has a reason.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from dicom_node.candidates import choose_series, read_facts
from dicom_node.conditions import matches
from dicom_node.domain import (
    ContrastLabel,
    Gap,
    Mode,
    Origin,
    Question,
    Refusal,
    Series,
    SlotState,
    Study,
    SynthesisPlan,
)
from dicom_node.headers import AGE
from dicom_node.planning import Planner, refuse
from dicom_node.rules import Make, Rule
from dicom_node.slots import (
    RuleMatch,
    explain_state,
    fills,
    find_contrast,
    find_elsewhere,
    find_members,
    find_state,
    match_rule,
)

CONFLICTS = frozenset({"laterality_conflict"})
"""Codes of refusals that put the whole study into doubt: a person must look before anything of it
is made."""


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


class Judge(Planner):
    """Decides about studies, by all that `Planner` holds."""

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
            members = find_members(study, rule)
            states = {
                slot.slot: find_state(slot, rule, study, members, self.contrasts)
                for slot in rule.expects
            }
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

        A rule in shadow mode also makes what is there, where nothing stands in the way, so that it
        can be compared: that is no gap, and why one is not made is no refusal.

        Args:
            study: the one that `decision` is about.
            decision: of `find_gaps`.
            now: the job time of every plan, aware UTC.
        """
        plans: dict[ContrastLabel, SynthesisPlan] = {}
        refusals: list[Refusal] = []
        gaps = {(gap.rule, gap.target) for gap in decision.gaps}
        for rule in self.routing.in_order():
            for make in rule.makes:
                if (rule.name, make.target) not in gaps:
                    continue
                if make.target in plans:
                    maker = plans[make.target].rule
                    if maker != rule.name:
                        refusals.append(refuse(rule, make, "other_rule", f"{maker} makes it"))
                    continue
                answer = self._answer(study, rule, make, decision.slots[rule.name], now)
                if isinstance(answer, SynthesisPlan):
                    plans[make.target] = answer
                else:
                    refusals.append(answer)
        for target, comparison in self._plan_comparisons(study, decision, now):
            plans.setdefault(target, comparison)
        return replace(decision, plans=tuple(plans.values()), refusals=tuple(refusals))

    def find_questions(self, decision: Decision) -> list[Question]:
        """Return what peers are to be asked about a study before anything of it is made.

        Rules that want to know of one peer ask it once, as the most curious of them would.
        """
        gaps = {gap.rule for gap in decision.gaps}
        asks = [rule.ask for rule in self.routing.rules if rule.name in gaps and rule.ask]
        questions = []
        for peer in sorted({ask.peer for ask in asks}):
            mine = [ask for ask in asks if ask.peer == peer]
            days = [
                ask.siblings_within_days for ask in mine if ask.siblings_within_days is not None
            ]
            questions.append(
                Question(
                    peer=peer,
                    siblings_within_days=max(days, default=None),
                    fetch=any(ask.fetch for ask in mine),
                )
            )
        return questions

    def has_all_sources(self, study: Study, decision: Decision) -> bool:
        """Say whether a study lacks one contrast only, and holds every source of it, usable."""
        gaps = {gap.target for gap in decision.gaps}
        if len(gaps) != 1 or any(gap.state is not SlotState.MISSING for gap in decision.gaps):
            return False
        makes = [
            (rule, make)
            for rule in self.routing.rules
            for make in rule.makes
            if rule.name in decision.slots and make.target in gaps
        ]
        return bool(makes) and all(
            decision.slots[rule.name].get(source, SlotState.PRESENT) is SlotState.PRESENT
            for rule, make in makes
            for source in make.sources
            if source in {slot.slot for slot in rule.expects if slot.need == "required"}
        )

    def find_silence(self, decision: Decision, silent: Collection[str]) -> str | None:
        """Return what follows for a study when peers did not answer: wait, hold, or None to go on.

        Args:
            decision: about the study.
            silent: aliases of the peers.
        """
        gaps = {gap.rule for gap in decision.gaps}
        follows = {
            rule.ask.when_silent
            for rule in self.routing.rules
            if rule.name in gaps and rule.ask and rule.ask.peer in silent
        }
        return next((each for each in ("hold", "wait") if each in follows), None)

    def _answer(
        self,
        study: Study,
        rule: Rule,
        make: Make,
        states: Mapping[ContrastLabel, SlotState],
        now: datetime,
    ) -> SynthesisPlan | Refusal:
        """Return how a gap is filled, or why it is not."""
        state = states[make.target]
        series = find_members(study, rule)
        if state not in make.when:
            slot = next(slot for slot in rule.expects if slot.slot == make.target)
            reason = explain_state(
                slot, state, series, find_elsewhere(slot, rule, study, self.contrasts)
            )
            return refuse(rule, make, f"slot_{state}", reason)
        problem = self.explain_policy(make.target) or _explain_ineligible(make, study, states)
        if problem is not None:
            return refuse(rule, make, *problem)
        refusals = []
        for model_id in make.model:
            answer = self.try_model(study, rule, make, model_id, series, now)
            if isinstance(answer, SynthesisPlan):
                return answer
            refusals.append(answer)
        if len(refusals) == 1:
            return refusals[0]
        told = "; ".join(dict.fromkeys(each.reason for each in refusals))
        return replace(refusals[0], reason=told)

    def _plan_comparisons(
        self, study: Study, decision: Decision, now: datetime
    ) -> Iterator[tuple[ContrastLabel, SynthesisPlan]]:
        """Yield how rules in shadow mode make the contrasts that a study holds already."""
        for rule in self.routing.in_order():
            if rule.mode is not Mode.SHADOW or rule.name not in decision.slots:
                continue
            states = decision.slots[rule.name]
            for make in rule.makes:
                truth = self._choose_truth(study, rule, make.target)
                if (
                    states[make.target] is not SlotState.PRESENT
                    or truth is None
                    or self.explain_policy(make.target)
                    or _explain_ineligible(make, study, states)
                ):
                    continue
                # Volumes of one series share its files: none of them may be a source.
                others = [
                    each
                    for each in find_members(study, rule)
                    if each.series_instance_uid != truth.series_instance_uid
                ]
                answers = (
                    self.try_model(study, rule, make, model_id, others, now, truth)
                    for model_id in make.model
                )
                for answer in answers:
                    if isinstance(answer, SynthesisPlan):
                        yield make.target, answer
                        break

    def _choose_truth(self, study: Study, rule: Rule, target: ContrastLabel) -> Series | None:
        """Return the acquired series that shows what a target really looks like, or None."""
        slot = next(slot for slot in rule.expects if slot.slot == target)
        real = [
            each
            for each in find_members(study, rule)
            if find_contrast(each) == target
            and each.origin is Origin.ACQUIRED
            and fills(each, slot, self.contrasts)
        ]
        if not real:
            return None
        degraded, quality = self.routing.degraded, slot.quality
        return choose_series(real, degraded=degraded, quality=quality).series


def _explain_ineligible(
    make: Make, study: Study, states: Mapping[ContrastLabel, SlotState]
) -> tuple[str, str] | None:
    """Return why nothing is made of this study, whatever the model, as code and sentence."""
    for label, wanted in make.where.items():
        if states[label] not in wanted:
            return "slots_differ", f"{label} is {states[label]}, wanted {' or '.join(wanted)}"
    acquired = [each for each in study.series if each.origin is Origin.ACQUIRED]
    if make.age is not None:
        ages = {age for each in acquired if (age := read_facts(each).get(AGE)) is not None}
        if not ages and make.age.unknown == "refuse":
            return "age_unknown", "no header tells the age of the patient"
        if any(not make.age.at_least <= age <= make.age.at_most for age in ages):
            return (
                "age",
                f"it is made for ages of {make.age.at_least:g} to {make.age.at_most:g} years",
            )
    for exclusion in make.unless:
        for each in acquired:
            if matches(exclusion.when, read_facts(each)):
                return "ruled_out", f"series {each.series_instance_uid}: {exclusion.because}"
    return None
