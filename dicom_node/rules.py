"""The types of contrasts.yaml, routing.yaml and models.yaml: what is wanted, and what is allowed.

`settings.load` builds them; `contrast` labels by `Contrasts`, `routing` judges by `Routing` and
`ModelPolicy`. Types only: everything that decides is in those two modules.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    BeforeValidator,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from dicom_node.conditions import Condition
from dicom_node.domain import ContrastLabel, Mode, SlotState
from dicom_node.value_types import Strict

CONTRASTS_FILE = "contrasts.yaml"
ROUTING_FILE = "routing.yaml"
MODELS_FILE = "models.yaml"


Millimeters = Annotated[float, Field(gt=0, le=5000)]
Plane = Literal["axial", "sagittal", "coronal", "oblique"]


def _read_ids(value: object) -> tuple[object, ...]:
    """Return one id as a list of one: a union of both would tell one mistake twice."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("the id of a model, or a list of them in order of preference")
    return tuple(value)


ModelIds = Annotated[
    tuple[str, ...],
    BeforeValidator(_read_ids),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]


class Code(Strict):
    """A coded concept (PS3.3 section 8.1).

    Attributes:
        value: Code Value.
        scheme: Coding Scheme Designator.
        meaning: Code Meaning.
    """

    value: str
    scheme: str
    meaning: str


class Signature(Strict):
    """One piece of evidence: when a header looks like this, say so, this surely.

    Attributes:
        because: the words that `explain` prints.
        when: what the header must look like.
        confidence: how often a series that looks like this is what it seems, 0 to 1.
    """

    because: str
    when: Condition
    confidence: float = Field(default=0.9, ge=0, le=1)


class Exclusion(Strict):
    """One thing that a contrast cannot be.

    Attributes:
        because: the words that `explain` prints.
        when: what the header must look like.
    """

    because: str
    when: Condition


class Contrast(Strict):
    """One word of the vocabulary.

    Attributes:
        says: what it is, in a sentence.
        modality: DICOM Modality (0008,0060) of its series.
        meaning: the coded concept, where DICOM has one.
        plain: an ordinary weighting of the anatomy, which any header that says nothing could be.
            The others are special (diffusion, angiography, localizers …): what a description
            calls them wins over what their physics would weight like.
        typical: header facts, any of which is enough evidence.
        impossible: header facts, any of which rules it out whatever the text says.
        words: what people call it in a description; whole words, `*` for any letters.
        unless_words: words beside which `words` mean something else ("T2" beside "FLAIR").
        looks_like: contrasts whose signature a header has that leaves the preparation of this one
            out (FLAIR without a word of its inversion looks like T2w), and whose name a description
            may use for short ("T2" of a FLAIR): no contradiction, then.
        with_agent: the contrast that this one becomes when a contrast agent was given.
        also_derived: a scanner computes it (ADC), so that a derived series may fill its slot.
        function: it shows what tissue does (uptake, flow, activity) and not what it looks like,
            which no other contrast tells: it is made for research only.
        fluid: how the fluid of a head looks in it, where it is far from brain.
    """

    says: str
    modality: str
    meaning: Code | None = None
    plain: bool = False
    typical: tuple[Signature, ...] = ()
    impossible: tuple[Exclusion, ...] = ()
    words: tuple[str, ...] = ()
    unless_words: tuple[str, ...] = ()
    looks_like: tuple[ContrastLabel, ...] = ()
    with_agent: ContrastLabel | None = None
    also_derived: bool = False
    function: bool = False
    fluid: Literal["dark", "bright"] | None = None


class Agent(Strict):
    """How a series shows that a contrast agent was, or was not, given.

    Attributes:
        given: header facts that say yes.
        denied: header facts that say no.
        silent_confidence: highest confidence of a label that an agent would change, where neither
            header nor description tells whether one was given: many scanners leave it out.
        doubtful: header facts of what is done with an agent as often as without: no label, then,
            where neither header nor description tells.
        words: words of a description that say yes.
        unless_words: words beside which `words` mean something else ("post" beside "fossa").
        not_words: words of a description that say no.
    """

    given: Condition
    denied: Condition
    silent_confidence: float = Field(default=0.89, ge=0, le=1)
    doubtful: tuple[Exclusion, ...] = ()
    words: tuple[str, ...]
    unless_words: tuple[str, ...]
    not_words: tuple[str, ...]


class Derivation(Strict):
    """One way to see that a series was computed from others.

    Attributes:
        kind: `reformat` of acquired images, `motion corrected` afterwards, parametric `map`,
            otherwise `processed`, `synthetic` (made by a scanner from a relaxometry scan) or a
            screen `capture`, which has no contrast. Where a reformat is, the acquired series was,
            and nothing is made for it.
        because: the words that `explain` prints.
        when: what the header must look like.
    """

    kind: Literal["reformat", "motion corrected", "map", "processed", "synthetic", "capture"]
    because: str
    when: Condition


class Contrasts(Strict):
    """contrasts.yaml: the vocabulary, and how a series shows which word it is.

    Attributes:
        minimum_confidence: below it the labeller abstains.
        text: keywords whose words are read, most trusted first, with the confidence of a label
            that only they support.
        own_words: words of a description that only this kind of node writes.
        facts: named conditions; the rest of the file repeats them as YAML aliases.
        never_plain: header facts that rule out every plain contrast.
        derived: how a derived series shows; the first that holds decides.
        contrast_agent: how a contrast agent shows.
        attributes: what else is read off a header (fat suppression …), and when.
        heads: series whose pixels are looked at where physics are silent: is their fluid dark?
            None: never.
        contrasts: the vocabulary, by label.
    """

    minimum_confidence: float = Field(ge=0.5, le=1)
    text: Mapping[str, float]
    own_words: tuple[str, ...]
    facts: Mapping[str, Condition] = Field(default_factory=dict)
    contrast_agent: Agent
    never_plain: tuple[Exclusion, ...]
    derived: tuple[Derivation, ...]
    attributes: Mapping[str, Condition] = Field(default_factory=dict)
    heads: Condition | None = None
    contrasts: Mapping[ContrastLabel, Contrast]

    @property
    def enhanced(self) -> frozenset[ContrastLabel]:
        """Contrasts that show an agent that was given."""
        agents = (contrast.with_agent for contrast in self.contrasts.values())
        return frozenset(each for each in agents if each is not None)

    def explain_ill_posed(self, target: ContrastLabel) -> str | None:
        """Return what a contrast shows that no other one tells, or None where there is no such."""
        if target in self.enhanced:
            return "a contrast agent, which is never invented"
        if target in self.contrasts and self.contrasts[target].function:
            return "what tissue does, which no image of its structure tells"
        return None

    @cached_property
    def of_modality(self) -> Mapping[str, Mapping[ContrastLabel, Contrast]]:
        """The vocabulary, by modality."""
        found: dict[str, dict[ContrastLabel, Contrast]] = defaultdict(dict)
        for label, contrast in self.contrasts.items():
            found[contrast.modality][label] = contrast
        return found

    @model_validator(mode="after")
    def _agrees(self) -> "Contrasts":
        for label, contrast in self.contrasts.items():
            agent = () if contrast.with_agent is None else (contrast.with_agent,)
            for other in (*contrast.looks_like, *agent):
                if other not in self.contrasts:
                    raise ValueError(f"{label}: {other} is no contrast here")
        return self


class StudyMatch(Strict):
    """Which studies a rule is for.

    Attributes:
        any_series: at least one series that counts as acquired looks like this.
        no_series: and no series of the study at all looks like this.
        leaves_out: series of such a study that are of something else (the spine beside the brain):
            they fill no slot and are no source.
    """

    any_series: Condition
    no_series: Condition | None = None
    leaves_out: Condition | None = None


class Quality(Strict):
    """What a series must be like to be of use; what is not said does not matter.

    Attributes:
        spacing_at_most_mm: between the centers of its slices.
        coverage_at_least_mm: from its first slice to its last.
        field_of_view_at_least_mm: the shorter side of its slices.
        planes: how its slices may lie.
        dimension: whether it was acquired as a volume (3D) or slice by slice (2D).
    """

    spacing_at_most_mm: Millimeters | None = None
    coverage_at_least_mm: Millimeters | None = None
    field_of_view_at_least_mm: Millimeters | None = None
    planes: tuple[Plane, ...] | None = Field(default=None, min_length=1)
    dimension: Literal["2D", "3D"] | None = None


class Slot(Strict):
    """One contrast that a protocol expects.

    Attributes:
        slot: the contrast.
        need: required, or optional (its absence is noted and nothing is wrong).
        or_else: other contrasts that fill the slot as well.
        quality: what a series must be like to fill it; one that is not makes the slot incomplete.
        scanner_synthetic: whether an image that a scanner computed from a relaxometry scan
            (SyMRI, MAGiC) fills it, or is passed over.
    """

    slot: ContrastLabel
    need: Literal["required", "optional"] = "required"
    or_else: tuple[ContrastLabel, ...] = ()
    quality: Quality | None = None
    scanner_synthetic: Literal["fills", "passed_over"] = "passed_over"


class Age(Strict):
    """For patients of which age something is made.

    Attributes:
        at_least: years.
        at_most: years.
        unknown: whether it is made for a patient whose age no header tells.
    """

    at_least: float = Field(default=0, ge=0, le=150)
    at_most: float = Field(default=150, ge=0, le=150)
    unknown: Literal["refuse", "accept"] = "refuse"

    @model_validator(mode="after")
    def _is_a_range(self) -> "Age":
        if self.at_least > self.at_most:
            raise ValueError(
                f"at_least not above at_most (seen {self.at_least:g}, {self.at_most:g})"
            )
        return self


class Make(Strict):
    """What to make when a slot is not filled.

    Attributes:
        target: the contrast to make; one of the rule's slots.
        sources: contrasts to make it from, best first: the first one that the study holds is the
            reference, on whose grid the result lies; the model is given all that are held.
        model: id of a model folder; or several, of which the first that may be used and whose
            sources are there is taken.
        when: slot states that count as a gap. The shipped rules name `missing` only: something
            incomplete or ambiguous may be the real thing, and a person should look.
        where: what other slots of the rule must be like, slot to the states that will do.
        age: of the patients for whom it is made.
        needs: what every source must be like; one that is not is left out.
        unless: what rules it out when any acquired series of the study looks like it (implants …).
    """

    target: ContrastLabel
    sources: tuple[ContrastLabel, ...] = Field(min_length=1)
    model: ModelIds
    when: tuple[Literal["missing", "incomplete", "ambiguous"], ...] = ("missing",)
    where: Mapping[ContrastLabel, Annotated[tuple[SlotState, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    age: Age | None = None
    needs: Quality | None = None
    unless: tuple[Exclusion, ...] = ()

    @model_validator(mode="after")
    def _is_no_circle(self) -> "Make":
        if self.target in self.sources:
            raise ValueError(f"sources without {self.target}, which would be made from itself")
        if self.target in self.where:
            raise ValueError(f"the states of {self.target} itself stand in `when`, not in `where`")
        return self


class Ask(Strict):
    """How the PACS is asked whether something is really missing, before it is made.

    Attributes:
        peer: alias of a peer in node.yaml with the role query.
        when_silent: what follows when it does not answer for `query.patience` of node.yaml: `wait`
            goes on asking, and nothing is made; `go_on` decides by what is here, and says so;
            `hold` leaves the study to a person.
        siblings_within_days: other studies of the same patient, at most so many days before or
            after, whose series count as well; 0: of the same day; nothing: none.
        fetch: whether series that are there and not here, or not whole here, are moved here.
    """

    peer: str
    when_silent: Literal["wait", "go_on", "hold"] = "wait"
    siblings_within_days: Annotated[int, Field(ge=0, le=366)] | None = None
    fetch: bool = True


class Rule(Strict):
    """One protocol: which studies, what they should hold, what to make of what, and where it goes.

    Attributes:
        name: what plans, logs and `explain` call it.
        says: the rule in a sentence, for people.
        owner: who answers for it at the site.
        mode: off, shadow, hold or send.
        priority: higher first, among rules and among jobs.
        anatomy: what is imaged, as a Body Part Examined term (PS3.16 annex L).
        study: which studies it is for.
        expects: the slots of the protocol.
        ask: whom to ask first whether what is not here is really missing; nobody, when left out.
        makes: what to make for slots that are not filled.
        send_to: aliases of peers in node.yaml.
        when_late: what follows for a result that was sent and is not wanted any more, because the
            real series came or its sources changed: `keep` both; `withdraw` it, by a Key Object
            Selection "Rejected for Quality Reasons" to the peers that took it; `ask` a person.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    says: str
    owner: str
    mode: Mode
    priority: int = Field(ge=0, le=100)
    anatomy: str = Field(pattern=r"^[A-Z0-9 _]{1,16}$")
    study: StudyMatch
    expects: tuple[Slot, ...] = Field(min_length=1)
    ask: Ask | None = None
    makes: tuple[Make, ...] = ()
    send_to: tuple[str, ...] = ()
    when_late: Literal["keep", "withdraw", "ask"] = "keep"

    @model_validator(mode="after")
    def _agrees(self) -> "Rule":
        slots = Counter(slot.slot for slot in self.expects)
        for name, count in slots.items():
            if count > 1:
                raise ValueError(f"{name} only once under expects")
        for make in self.makes:
            if make.target not in slots:
                raise ValueError(
                    f"{make.target}, which it makes, among the slots that it expects: "
                    f"{', '.join(slots)}"
                )
        for target, count in Counter(make.target for make in self.makes).items():
            if count > 1:
                raise ValueError(
                    f"{target} only once under makes; list its models in order instead"
                )
        if self.mode in (Mode.SEND, Mode.HOLD) and self.makes and not self.send_to:
            raise ValueError(f"send_to with at least one peer, because its mode is {self.mode}")
        return self


class Routing(Strict):
    """routing.yaml: the protocols.

    Attributes:
        degraded: how a series shows that it is of less use than a repeat of it (motion): it is
            taken only where there is no other.
        rules: all that match a study apply, by falling priority, then in the order of the file;
            when two want the same target, the first makes it.
    """

    degraded: Condition | None = None
    rules: tuple[Rule, ...]

    @field_validator("rules")
    @classmethod
    def _are_named_once(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        for name, count in Counter(rule.name for rule in rules).items():
            if count > 1:
                raise ValueError(f"another name for each rule; two are named {name!r}")
        return rules

    def in_order(self) -> tuple[Rule, ...]:
        """Return the rules by falling priority, then as they stand in the file."""
        return tuple(sorted(self.rules, key=lambda rule: -rule.priority))


class ModelPolicy(Strict):
    """models.yaml: which models may be used at this site.

    Attributes:
        states: states of a model card's target that may be used.
        never_make: contrasts that no rule may make, whatever a card says.
        research: contrasts for which the site has set research mode: models in the state research
            may make them, and what no structure tells may be made, which never is otherwise:
            enhancement (T1c, CTc) and function (PET, perfusion).
        digests: model id to the only digest that may be used, where a site pins one.
        seed: of every random draw; recorded with each plan.
    """

    states: tuple[Literal["approved", "research", "candidate"], ...]
    never_make: tuple[ContrastLabel, ...] = ()
    research: tuple[ContrastLabel, ...] = ()
    digests: Mapping[str, str] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _agrees(self) -> "ModelPolicy":
        for target in self.research:
            if target in self.never_make:
                raise ValueError(f"{target} in one of never_make and research, not in both")
        return self


class Disagreement(NamedTuple):
    """A name that another file does not know.

    Attributes:
        file: where it stands.
        location: keys, and places in lists, down to it.
        says: what was seen and what is wanted.
    """

    file: str
    location: tuple[int | str, ...]
    says: str


def find_disagreements(
    contrasts: Contrasts,
    routing: Routing,
    policy: ModelPolicy,
    send_peers: Collection[str],
    query_peers: Collection[str],
) -> Iterator[Disagreement]:
    """Yield each name that another file does not know."""
    known = contrasts.contrasts
    for key, targets in (("never_make", policy.never_make), ("research", policy.research)):
        for k, target in enumerate(targets):
            if target not in known:
                yield Disagreement(MODELS_FILE, (key, k), _no_contrast(target))
    for k, rule in enumerate(routing.rules):
        found = (
            *_find_unknown_labels(rule, known),
            *_find_unknown_slots(rule),
            *_find_unknown_peers(rule, send_peers, query_peers),
            *_find_forbidden_targets(rule, contrasts, policy),
        )
        for location, says in found:
            yield Disagreement(ROUTING_FILE, ("rules", k, *location), says)


_Finding = tuple[tuple[int | str, ...], str]


def _find_unknown_labels(rule: Rule, known: Collection[ContrastLabel]) -> Iterator[_Finding]:
    for location, label in _find_labels(rule):
        if label not in known:
            yield location, _no_contrast(label)


def _find_unknown_slots(rule: Rule) -> Iterator[_Finding]:
    slots = [slot.slot for slot in rule.expects]
    for k, make in enumerate(rule.makes):
        for label in make.where:
            if label not in slots:
                location: tuple[int | str, ...] = ("makes", k, "where", label)
                says = f"{label!r} is no slot of the rule; wanted one of: {', '.join(slots)}"
                yield location, says


def _find_unknown_peers(
    rule: Rule, send_peers: Collection[str], query_peers: Collection[str]
) -> Iterator[_Finding]:
    named: list[tuple[tuple[int | str, ...], str, str, Collection[str]]] = [
        (("send_to", n), peer, "send", send_peers) for n, peer in enumerate(rule.send_to)
    ]
    if rule.ask is not None:
        named.append((("ask", "peer"), rule.ask.peer, "query", query_peers))
    for location, peer, role, peers in named:
        if peer not in peers:
            wanted = ", ".join(sorted(peers)) or "none yet"
            says = f"{peer!r} is no peer of node.yaml with the role {role}; wanted one of: {wanted}"
            yield location, says


def _find_forbidden_targets(
    rule: Rule, contrasts: Contrasts, policy: ModelPolicy
) -> Iterator[_Finding]:
    if rule.mode is Mode.OFF:
        return
    for n, make in enumerate(rule.makes):
        location = ("makes", n, "target")
        if make.target in policy.never_make:
            yield (
                location,
                f"{make.target} may never be made (models.yaml: never_make); drop one of the two",
            )
        elif make.target not in policy.research:
            reason = contrasts.explain_ill_posed(make.target)
            if reason is not None:
                yield (
                    location,
                    f"{make.target} shows {reason}; to try it for research, list it in "
                    "models.yaml under research",
                )


def _find_labels(rule: Rule) -> Iterator[tuple[tuple[int | str, ...], ContrastLabel]]:
    for k, slot in enumerate(rule.expects):
        yield ("expects", k, "slot"), slot.slot
        for n, label in enumerate(slot.or_else):
            yield ("expects", k, "or_else", n), label
    for k, make in enumerate(rule.makes):
        for n, label in enumerate(make.sources):
            yield ("makes", k, "sources", n), label


def _no_contrast(label: ContrastLabel) -> str:
    return f"seen {label!r}, wanted a contrast of contrasts.yaml"
