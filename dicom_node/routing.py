"""What a study lacks by which rule, and what is made of what: pure, from values to values.

Steps 4 and 5 of the walk, between `contrast`, which labelled the series, and the ledger, where
`assembly` records the decision. Present, missing, incomplete and ambiguous are four different
things, and only what is missing is made unless a rule says otherwise. Refusal is an answer: every
gap that is not filled has a reason, and nothing is made from the closest thing.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from dicom_node.candidates import choose_series, find_shortfall, read_facts
from dicom_node.conditions import matches
from dicom_node.domain import (
    ContrastLabel,
    Elsewhere,
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
from dicom_node.identifiers import derive_plan_id
from dicom_node.rules import Contrasts, Make, ModelPolicy, Routing, Rule, Slot

if TYPE_CHECKING:
    from synthesis.registry import ModelCard

CONFLICTS = frozenset({"laterality_conflict"})
"""Codes of refusals that put the whole study into doubt: a person must look before anything of it
is made."""
_SIDES = frozenset({"L", "R"})


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
            states = {
                slot.slot: self._find_state(slot, rule, study, members) for slot in rule.expects
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
                        refusals.append(_refuse(rule, make, "other_rule", f"{maker} makes it"))
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

    def _find_state(
        self, slot: Slot, rule: Rule, study: Study, series: Sequence[Series]
    ) -> SlotState:
        elsewhere = self._find_elsewhere(slot, rule, study)
        labels = {slot.slot, *slot.or_else}
        named = [each for each in series if _contrast(each) in labels]
        if any(self._fills(each, slot) for each in named):
            return SlotState.PRESENT
        if any(_shows_acquisition(each, slot) for each in named):
            return SlotState.INCOMPLETE
        if any(each.is_known and each.label.contrast in labels for each in elsewhere):
            return SlotState.PRESENT
        if elsewhere or any(_could_be(each, labels) for each in series):
            return SlotState.AMBIGUOUS
        return SlotState.MISSING

    def _find_elsewhere(self, slot: Slot, rule: Rule, study: Study) -> list[Elsewhere]:
        """Return the series at peers that fill a slot, or may.

        One of the study itself may be anything of its modality, unless it says what it is; one of
        another study must say that it may be this.
        """
        labels = {slot.slot, *slot.or_else}
        contrast = self.contrasts.contrasts.get(slot.slot)
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

    def _fills(self, series: Series, slot: Slot) -> bool:
        """Say whether a series of the contrast of a slot fills it."""
        label = _contrast(series)
        if label is None or series.problem is not None or series.origin is Origin.OWN:
            return False
        contrast = self.contrasts.contrasts.get(label)
        may_be_derived = (contrast is not None and contrast.also_derived) or (
            slot.scanner_synthetic == "fills" and _is_scanner_synthetic(series)
        )
        is_eligible = series.origin is Origin.ACQUIRED or may_be_derived
        return is_eligible and not find_shortfall(series, slot.quality)

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
        series = _find_members(study, rule)
        if state not in make.when:
            slot = next(slot for slot in rule.expects if slot.slot == make.target)
            reason = _explain_state(slot, state, series, self._find_elsewhere(slot, rule, study))
            return _refuse(rule, make, f"slot_{state}", reason)
        problem = self._explain_policy(make.target) or _explain_ineligible(make, study, states)
        if problem is not None:
            return _refuse(rule, make, *problem)
        refusals = []
        for model_id in make.model:
            answer = self._try_model(study, rule, make, model_id, series, now)
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
                    or self._explain_policy(make.target)
                    or _explain_ineligible(make, study, states)
                ):
                    continue
                # Volumes of one series share its files: none of them may be a source.
                others = [
                    each
                    for each in _find_members(study, rule)
                    if each.series_instance_uid != truth.series_instance_uid
                ]
                answers = (
                    self._try_model(study, rule, make, model_id, others, now, truth)
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
            for each in _find_members(study, rule)
            if _contrast(each) == target
            and each.origin is Origin.ACQUIRED
            and self._fills(each, slot)
        ]
        if not real:
            return None
        degraded, quality = self.routing.degraded, slot.quality
        return choose_series(real, degraded=degraded, quality=quality).series

    def _try_model(
        self,
        study: Study,
        rule: Rule,
        make: Make,
        model_id: str,
        series: Sequence[Series],
        now: datetime,
        truth: Series | None = None,
    ) -> SynthesisPlan | Refusal:
        """Return how one model fills a gap, or why it does not."""
        card = next((card for card in self.cards if card.id == model_id), None)
        if card is None:
            return _refuse(rule, make, "no_model", f"there is no model {model_id}")
        problem = self._check_model(card, make.target, rule.anatomy)
        if problem is not None:
            return _refuse(rule, make, *problem)
        sources, notes = self._choose_sources(card, rule, make, series)
        lacking = [label for label in card.required if label not in sources]
        if lacking or not sources:
            wanted = ", ".join(lacking or make.sources)
            return _refuse(rule, make, *_explain_lack(wanted, make, series))
        beside = {} if truth is None else {make.target: truth}
        if conflict := _find_side_conflict({**sources, **beside}):
            return _refuse(rule, make, "laterality_conflict", conflict)
        return self._plan(study, rule, make, card, sources, notes, now, truth)

    def _explain_policy(self, target: ContrastLabel) -> tuple[str, str] | None:
        """Return why the site never lets a target be made, as code and sentence, or None."""
        if target in self.policy.never_make:
            return "never_made", "models.yaml says that it is never made"
        if target in self.contrasts.enhanced and target not in self.policy.research:
            return (
                "research_only",
                f"{target} shows a contrast agent, which is not invented; "
                "models.yaml sets no research mode for it",
            )
        return None

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
        is_research = facts.state == "research" and target in self.policy.research
        if facts.state not in self.policy.states and not is_research:
            wanted = ", ".join(self.policy.states)
            return (
                "model_not_approved",
                f"{card.id} is {facts.state} for {target}; models.yaml wants {wanted}",
            )
        if anatomy not in card.anatomy:
            return "model_anatomy", f"{card.id} is for {', '.join(card.anatomy)}, not for {anatomy}"
        return None

    def _choose_sources(
        self, card: "ModelCard", rule: Rule, make: Make, series: Sequence[Series]
    ) -> tuple[dict[ContrastLabel, Series], list[str]]:
        """Return the best series of each source that is there, in the order of preference."""
        chosen: dict[ContrastLabel, Series] = {}
        notes: list[str] = []
        qualities = {slot.slot: slot.quality for slot in rule.expects}
        for label in make.sources:
            candidates = [
                each
                for each in series
                if _contrast(each) == label
                and each.origin is Origin.ACQUIRED
                and each.problem is None
                and not find_shortfall(each, make.needs)
            ]
            if label not in card.sources or not candidates:
                continue
            choice = choose_series(
                candidates, degraded=self.routing.degraded, quality=qualities.get(label)
            )
            taken = {each.series_instance_uid for each in chosen.values()}
            if choice.series.series_instance_uid in taken:
                notes.append(f"{label} shares a series with another source and is left out")
                continue
            chosen[label] = choice.series
            if choice.why:
                notes.append(f"{label}: {choice.why}")
        notes += _find_registrations(chosen)
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
        truth: Series | None,
    ) -> SynthesisPlan:
        contents = _list_contents(*sources.values())
        compared = _list_contents(*filter(None, [truth]))
        uids = {label: each.series_instance_uid for label, each in sources.items()}
        because = (
            f"rule {rule.name} expects {make.target}, and no series of the study is one"
            if truth is None
            else f"rule {rule.name} is in shadow mode: {make.target} is there, and is compared with"
            " what is made of the others"
        )
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
                *(f"truth={uid}:{sha256}" for uid, sha256 in compared),
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
            truth=None if truth is None else truth.series_instance_uid,
            truth_instances=tuple(compared),
            model_id=card.id,
            model_digest=card.digest,
            seed=self.policy.seed,
            mode=rule.mode,
            priority=rule.priority,
            deliver_to=() if rule.mode is Mode.SHADOW else rule.send_to,
            config_digest=self.config_digest,
            created_at=now,
        )


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


def _find_members(study: Study, rule: Rule) -> list[Series]:
    return [each for each in study.series if _counts(each, rule)]


def _counts(series: Series, rule: Rule) -> bool:
    left_out = rule.study.leaves_out
    return left_out is None or not matches(left_out, read_facts(series))


def _list_contents(*series: Series) -> list[tuple[str, str]]:
    """Return UID and digest of every instance, sorted."""
    return sorted((one.sop_instance_uid, one.sha256) for each in series for one in each.instances)


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


def _explain_state(
    slot: Slot, state: SlotState, series: Sequence[Series], elsewhere: Sequence[Elsewhere]
) -> str:
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
    named = [each for each in series if _contrast(each) in {slot.slot, *slot.or_else}]
    for each in named:
        if each.problem:
            code, why = each.problem
            return f"series {each.series_instance_uid} is {target} but not usable ({code}: {why})"
    for each in named:
        if shortfall := find_shortfall(each, slot.quality):
            return f"series {each.series_instance_uid} is {target}, but {shortfall}"
    return f"a series computed from {target} is there, so that it was acquired; send the original"


def _find_doubtful(target: ContrastLabel, series: Sequence[Series]) -> Iterator[str]:
    for each in series:
        if _could_be(each, {target}):
            yield f"series {each.series_instance_uid}"


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


def _find_side_conflict(sources: Mapping[ContrastLabel, Series]) -> str:
    """Return in which way sources are of different sides of the body; empty when they are not."""
    sides = {
        label: side
        for label, each in sources.items()
        if (side := str(read_facts(each).get("Laterality", "")).upper()) in _SIDES
    }
    if len(set(sides.values())) < len(_SIDES):
        return ""
    return "the sources are of both sides: " + ", ".join(f"{k} {v}" for k, v in sides.items())


def _find_registrations(sources: Mapping[ContrastLabel, Series]) -> list[str]:
    """Return a sentence for each source whose frame of reference is not that of the first."""
    frames = [(label, each.frame_of_reference_uid) for label, each in sources.items()]
    return [
        f"{label} has another frame of reference than {frames[0][0]}: it is registered to it"
        for label, frame in frames[1:]
        if frame != frames[0][1]
    ]


def _explain_lack(wanted: str, make: Make, series: Sequence[Series]) -> tuple[str, str]:
    """Return code and sentence for a gap whose sources are not there."""
    for each in series:
        if _contrast(each) in make.sources and each.problem and each.origin is Origin.ACQUIRED:
            code, why = each.problem
            return (
                "source_unusable",
                f"series {each.series_instance_uid} cannot be a source ({code}: {why})",
            )
        is_source = _contrast(each) in make.sources and each.origin is Origin.ACQUIRED
        if is_source and (shortfall := find_shortfall(each, make.needs)):
            return (
                "source_quality",
                f"series {each.series_instance_uid} cannot be a source: {shortfall}",
            )
    return "no_source", f"the study holds no usable series of {wanted}"


def _refuse(rule: Rule, make: Make, code: str, reason: str) -> Refusal:
    return Refusal(rule=rule.name, target=make.target, code=code, reason=reason)


def _contrast(series: Series) -> ContrastLabel | None:
    return series.label.contrast if series.label is not None else None
