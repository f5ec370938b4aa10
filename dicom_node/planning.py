"""How one model fills one gap, of which sources, or why it does not: pure, from values to values.

Step 5 of the walk, below `routing`. Refusal is an answer: it has a code and a sentence, and nothing
is made from the closest thing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from dicom_node.candidates import choose_series, find_shortfall, read_facts
from dicom_node.domain import (
    ContrastLabel,
    Mode,
    Origin,
    Refusal,
    Series,
    Study,
    SynthesisPlan,
)
from dicom_node.identifiers import derive_plan_id
from dicom_node.rules import Contrasts, Make, ModelPolicy, Routing, Rule
from dicom_node.slots import find_contrast

if TYPE_CHECKING:
    from synthesis.registry import ModelCard

_SIDES = frozenset({"L", "R"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """All that a plan depends on, beside the study.

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

    def try_model(
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
            return refuse(rule, make, "no_model", f"there is no model {model_id}")
        problem = self._check_model(card, make.target, rule.anatomy)
        if problem is not None:
            return refuse(rule, make, *problem)
        sources, notes = self._choose_sources(card, rule, make, series)
        lacking = [label for label in card.required if label not in sources]
        if lacking or not sources:
            wanted = ", ".join(lacking or make.sources)
            return refuse(rule, make, *_explain_lack(wanted, make, series))
        beside = {} if truth is None else {make.target: truth}
        if conflict := _find_side_conflict({**sources, **beside}):
            return refuse(rule, make, "laterality_conflict", conflict)
        if conflict := _find_view_conflict(sources):
            return refuse(rule, make, "view_conflict", conflict)
        return self._plan(study, rule, make, card, sources, notes, now, truth)

    def explain_policy(self, target: ContrastLabel) -> tuple[str, str] | None:
        """Return why the site never lets a target be made, as code and sentence, or None."""
        if target in self.policy.never_make:
            return "never_made", "models.yaml says that it is never made"
        reason = self.contrasts.explain_ill_posed(target)
        if reason is not None and target not in self.policy.research:
            return (
                "research_only",
                f"{target} shows {reason}; models.yaml sets no research mode for it",
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
            lock = f" ({facts.lock})" if facts.lock else ""
            return (
                "model_not_approved",
                f"{card.id} is {facts.state} for {target}{lock}; models.yaml wants {wanted}",
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
                if find_contrast(each) == label
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
        frames = {label: each.frames for label, each in sources.items() if each.frames}
        truth_frames = () if truth is None else truth.frames
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
                *(f"{label}:frames={numbers}" for label, numbers in frames.items()),
                *([f"truth:frames={truth_frames}"] if truth_frames else []),
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
            source_frames=frames,
            truth_frames=truth_frames,
            model_id=card.id,
            model_digest=card.digest,
            seed=self.policy.seed,
            mode=rule.mode,
            priority=rule.priority,
            deliver_to=() if rule.mode is Mode.SHADOW else rule.send_to,
            config_digest=self.config_digest,
            created_at=now,
        )


def refuse(rule: Rule, make: Make, code: str, reason: str) -> Refusal:
    """Return why a rule makes nothing of a study."""
    return Refusal(rule=rule.name, target=make.target, code=code, reason=reason)


def _list_contents(*series: Series) -> list[tuple[str, str]]:
    """Return UID and digest of every instance, sorted."""
    return sorted((one.sop_instance_uid, one.sha256) for each in series for one in each.instances)


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


def _find_view_conflict(sources: Mapping[ContrastLabel, Series]) -> str:
    """Return which views of pictures do not fit together; empty when they do, or nothing tells."""
    views = {
        label: view
        for label, each in sources.items()
        if (view := read_facts(each).get("ViewPosition"))
    }
    if len(set(views.values())) <= 1:
        return ""
    return "the sources are different views: " + ", ".join(f"{k} {v}" for k, v in views.items())


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
        if find_contrast(each) in make.sources and each.problem and each.origin is Origin.ACQUIRED:
            code, why = each.problem
            return (
                "source_unusable",
                f"series {each.series_instance_uid} cannot be a source ({code}: {why})",
            )
        is_source = find_contrast(each) in make.sources and each.origin is Origin.ACQUIRED
        if is_source and (shortfall := find_shortfall(each, make.needs)):
            return (
                "source_quality",
                f"series {each.series_instance_uid} cannot be a source: {shortfall}",
            )
    return "no_source", f"the study holds no usable series of {wanted}"
