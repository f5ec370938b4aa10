"""What a series is: its origin and its contrast, with evidence, a confidence, or an abstention.

Step 3 of the walk, after `series` has told the volumes apart; `routing` decides from the labels.
The knowledge is in contrasts.yaml; this file weighs it. Header physics come first: what they rule
out no description brings back. A description names what physics leave open, and where the two
disagree nothing is said. Special series (diffusion, localizers …) are what their description says.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dicom_node.conditions import Reading, drop_words, find_word, fold, matches, read_values
from dicom_node.domain import ContrastLabel, Header, Label, Origin, Series
from dicom_node.headers import FLAT_MODALITIES, IMAGE_MODALITIES
from dicom_node.rules import Contrast, Contrasts, Exclusion, Signature

AGREEMENT = 0.5
"""Share of the remaining doubt that is left when the description says what the physics say."""
CONTRADICTION = 0.9
"""Factor on the confidence when the description names something that the physics rule out."""
MOST_TESLA = 100.0
"""A magnetic field strength above this was written in gauss, as old GE scanners do."""
GAUSS_IN_TESLA = 10_000.0
SKEWED = 0.01
"""Rows and columns whose cross product differs from unit length by more show no plane."""
OBLIQUE = 0.8
"""A plane whose normal has no component above this is oblique."""

REPEATED = frozenset({"time_series", "duplicate_position"})
"""Codes of problems of a series whose slices lie at the same places."""

Vocabulary = Mapping[ContrastLabel, Contrast]


@dataclass(slots=True)
class _Evidence:
    """What speaks for and against the contrasts of one modality."""

    typical: dict[ContrastLabel, Signature] = field(default_factory=dict)
    said: dict[ContrastLabel, tuple[str, str, float]] = field(default_factory=dict)
    ruled_out: dict[ContrastLabel, str] = field(default_factory=dict)
    said_wrongly: dict[ContrastLabel, str] = field(default_factory=dict)


def describe(
    series: Series, contrasts: Contrasts, *, is_own: bool = False, creator_uid: str = ""
) -> Series:
    """Return `series` with its origin and its label.

    Args:
        series: one volume, unlabelled.
        contrasts: the vocabulary.
        is_own: the ledger knows an instance of it as one that this node made.
        creator_uid: Instance Creator UID of this installation.
    """
    own = series.instances[0].header or {}
    # An image without diffusion is still of a diffusion series when the others have a b-value.
    shared = {} if series.largest_b_value is None else {"DiffusionBValue": series.largest_b_value}
    header = Reading({**own, **shared})
    origin, derivation, why = find_origin(header, contrasts, is_own=is_own, creator_uid=creator_uid)
    is_repeated = series.problem is not None and series.problem[0] in REPEATED
    label = label_header(series.modality, header, contrasts, is_repeated=is_repeated)
    if derivation == "capture":
        label = _abstain((), "a picture of a screen has no contrast of its own")
    attributes = {**label.attributes, **({"derivation": derivation} if derivation else {})}
    if isinstance(b_value := own.get("DiffusionBValue"), int | float):
        attributes["b_value"] = b_value
    notes: tuple[str, ...] = (why,) if why else ()
    if series.frames:
        notes += (f"{len(series.frames)} frames of an image that holds several volumes",)
    if series.problem is not None:
        notes += (f"no volume can be read from it ({': '.join(series.problem)})",)
    label = replace(label, evidence=(*label.evidence, *notes), attributes=attributes)
    return replace(series, origin=origin, label=label)


def find_origin(
    header: Header, contrasts: Contrasts, *, is_own: bool = False, creator_uid: str = ""
) -> tuple[Origin, str, str]:
    """Return who made a series, which kind of derivation (or ""), and the reason (or "")."""
    if why := _find_own(header, contrasts, is_own=is_own, creator_uid=creator_uid):
        return Origin.OWN, "synthetic", why
    for derivation in contrasts.derived:
        if matches(derivation.when, header):
            return Origin.DERIVED, derivation.kind, derivation.because
    if "DERIVED" in {str(value).strip() for value in header.get("ImageType", ())}:
        return (
            Origin.ACQUIRED,
            "",
            (
                "Image Type DERIVED, but neither reformatted nor computed from other images: "
                "taken as acquired"
            ),
        )
    return Origin.ACQUIRED, "", ""


def label_header(
    modality: str, header: Header, contrasts: Contrasts, *, is_repeated: bool = False
) -> Label:
    """Return what a volume with this header is, or an abstention with what it could be.

    Args:
        modality: of the series.
        header: of one image.
        contrasts: the vocabulary.
        is_repeated: its slices are imaged again and again, as one watches an agent arrive.
    """
    if modality not in IMAGE_MODALITIES:
        return _label_other(modality)
    vocabulary = contrasts.of_modality.get(modality, {})
    evidence = _weigh(header, contrasts, vocabulary)
    label = _decide(evidence, vocabulary)
    label = _see_agent(label, header, contrasts, vocabulary, is_repeated=is_repeated)
    if label.contrast is not None and label.confidence < contrasts.minimum_confidence:
        enhanced = vocabulary[label.contrast].with_agent
        could_be = [label.contrast]
        if enhanced is not None and "contrast_agent" not in label.attributes:
            could_be.append(enhanced)
        label = _abstain(tuple(could_be), "the evidence is too weak to say it", label.evidence)
    facts = _read_attributes(header, contrasts)
    if modality in FLAT_MODALITIES:
        facts.update(_read_view(header))
    return replace(label, attributes={**facts, **label.attributes})


def wants_a_look(series: Series, contrasts: Contrasts) -> bool:
    """Say whether the pixels of a labelled series should be looked at: `heed_fluid`.

    That is a readable volume of a head of which no physics tell what it is: words alone do, or
    nothing does.
    """
    label = series.label
    if (
        label is None
        or contrasts.heads is None
        or series.modality != "MR"
        or series.origin is not Origin.ACQUIRED
        or series.problem is not None
        or label.confidence > max(contrasts.text.values())
    ):
        return False
    open_to = label.candidates if label.contrast is None else (label.contrast,)
    tells = any(_find_fluid(each, contrasts) for each in open_to)
    return tells and matches(contrasts.heads, series.instances[0].header or {})


def heed_fluid(label: Label, fluid: str, contrasts: Contrasts) -> Label:
    """Return a label in the light of how the fluid looks: kept, withdrawn, or fewer candidates.

    Pixels never name a contrast: several have fluid that is dark.
    """
    seen = f"the pixels show {fluid} fluid"
    if label.contrast is None:
        left = tuple(
            each for each in label.candidates if _find_fluid(each, contrasts) in (None, fluid)
        )
        return replace(label, candidates=left, evidence=(*label.evidence, seen))
    expected = _find_fluid(label.contrast, contrasts)
    if expected in (None, fluid):
        return replace(label, evidence=(*label.evidence, seen))
    others = tuple(each for each, its in contrasts.contrasts.items() if its.fluid == fluid)
    why = f"{seen}, and that of {label.contrast} is {expected}"
    withdrawn = _abstain((label.contrast, *others), why, label.evidence)
    return replace(withdrawn, attributes=label.attributes)


def _find_fluid(label: ContrastLabel, contrasts: Contrasts) -> str | None:
    contrast = contrasts.contrasts.get(label)
    return None if contrast is None else contrast.fluid


def _label_other(modality: str) -> Label:
    """Label what nothing is made of as what its modality says."""
    if not modality:
        return _abstain((), "the header has no Modality")
    return Label(
        contrast=ContrastLabel(modality), confidence=1.0, evidence=(f"Modality is {modality}",)
    )


def _find_own(header: Header, contrasts: Contrasts, *, is_own: bool, creator_uid: str) -> str:
    if is_own:
        return "the ledger knows it as made by this node"
    if creator_uid and header.get("InstanceCreatorUID") == creator_uid:
        return "its Instance Creator UID is this installation's"
    if find_word(contrasts.own_words, str(header.get("SeriesDescription", ""))):
        return "its Series Description says that a node like this one made it"
    return ""


def _weigh(header: Header, contrasts: Contrasts, vocabulary: Vocabulary) -> _Evidence:
    evidence = _Evidence()
    not_plain = _first_match(contrasts.never_plain, header)
    for label, contrast in vocabulary.items():
        reason = (not_plain if contrast.plain else "") or _first_match(contrast.impossible, header)
        if reason:
            evidence.ruled_out[label] = reason
            continue
        fitting = [each for each in contrast.typical if matches(each.when, header)]
        if fitting:
            evidence.typical[label] = max(fitting, key=lambda each: each.confidence)
    _read_words(header, contrasts, vocabulary, evidence)
    return evidence


def _first_match(exclusions: tuple[Exclusion, ...], header: Header) -> str:
    for each in exclusions:
        if matches(each.when, header):
            return each.because
    return ""


def _read_words(
    header: Header, contrasts: Contrasts, vocabulary: Vocabulary, evidence: _Evidence
) -> None:
    """Note what the first description that names any contrast names."""
    for keyword, confidence in contrasts.text.items():
        text = str(header.get(keyword, ""))
        for label, contrast in vocabulary.items():
            word = find_word(contrast.words, text)
            if word is None or find_word(contrast.unless_words, text):
                continue
            if label in evidence.ruled_out:
                evidence.said_wrongly[label] = word
            else:
                evidence.said[label] = (word, keyword, confidence)
        if evidence.said or evidence.said_wrongly:
            return


def _decide(evidence: _Evidence, vocabulary: Vocabulary) -> Label:
    typical, said = evidence.typical, evidence.said
    label = _heed_description(evidence, vocabulary)
    if label is None and len(said) == 1:
        label = _say_words(next(iter(said)), evidence)
    if label is None and len(typical) == 1:
        label = _say_physics(next(iter(typical)), evidence)
    if label is not None:
        return label
    if typical or said:
        return _abstain(tuple(typical or said), "several contrasts fit", _quote(evidence))
    open_to = tuple(
        label
        for label, contrast in vocabulary.items()
        if contrast.plain and label not in evidence.ruled_out
    )
    ruled_out = list(dict.fromkeys(evidence.ruled_out.values()))[:3]
    reasons = tuple(f"ruled out: {reason}" for reason in ruled_out)
    return _abstain(open_to, "nothing in its header says what it is", reasons)


def _heed_description(evidence: _Evidence, vocabulary: Vocabulary) -> Label | None:
    """Return what the description settles, for a label or for an abstention, if anything."""
    said = evidence.said
    special = [label for label in said if not vocabulary[label].plain]
    agreed = [label for label in special or said if label in evidence.typical]
    if len(agreed) == 1:
        return _agree(agreed[0], evidence)
    if len(said) > len(special) > 0:
        return _abstain(tuple(said), "its description names several things", _quote(evidence))
    if len(special) == 1:
        return _say_words(special[0], evidence)
    doubtful = _find_conflict(evidence, vocabulary)
    if doubtful:
        return _abstain(doubtful, "its description and its physics do not agree", _quote(evidence))
    return None


def _find_conflict(evidence: _Evidence, vocabulary: Vocabulary) -> tuple[ContrastLabel, ...]:
    """Return what a series could be whose description and physics name different contrasts."""
    silent = {like for label in evidence.said for like in vocabulary[label].looks_like}
    typical = [
        label for label in evidence.typical if vocabulary[label].plain and label not in silent
    ]
    for_short = {like for label in typical for like in vocabulary[label].looks_like}
    named = [
        label
        for label in (*evidence.said, *evidence.said_wrongly)
        if vocabulary[label].plain and label not in for_short
    ]
    if named and (typical or (evidence.said_wrongly and not evidence.typical)):
        return tuple(dict.fromkeys((*typical, *named)))
    return ()


def _agree(label: ContrastLabel, evidence: _Evidence) -> Label:
    signature = evidence.typical[label]
    return Label(
        contrast=label,
        confidence=round(1 - (1 - signature.confidence) * AGREEMENT, 3),
        evidence=(signature.because, *_quote(evidence)),
    )


def _say_words(label: ContrastLabel, evidence: _Evidence) -> Label:
    _, _, confidence = evidence.said[label]
    others = [other for other in evidence.typical if other != label]
    note = () if others else ("its header says nothing against it",)
    return Label(contrast=label, confidence=confidence, evidence=(*_quote(evidence), *note))


def _say_physics(label: ContrastLabel, evidence: _Evidence) -> Label:
    signature = evidence.typical[label]
    if evidence.said_wrongly:
        return Label(
            contrast=label,
            confidence=round(signature.confidence * CONTRADICTION, 3),
            evidence=(signature.because, *_quote(evidence)),
        )
    return Label(contrast=label, confidence=signature.confidence, evidence=(signature.because,))


def _abstain(
    candidates: tuple[ContrastLabel, ...], why: str, evidence: tuple[str, ...] = ()
) -> Label:
    return Label(contrast=None, confidence=0.0, evidence=(why, *evidence), candidates=candidates)


def _quote(evidence: _Evidence) -> tuple[str, ...]:
    """Return the words that were read, and what physics say of them.

    Only words of contrasts.yaml are repeated: a description may hold anything.
    """
    said = (
        f"{keyword} says {word!r}, which means {label}"
        for label, (word, keyword, _) in evidence.said.items()
    )
    wrongly = (
        f"a description says {word!r}, but {label} is ruled out: {evidence.ruled_out[label]}"
        for label, word in evidence.said_wrongly.items()
    )
    seen = (
        f"physics look like {label}: {signature.because}"
        for label, signature in evidence.typical.items()
        if label not in evidence.said and evidence.said
    )
    return (*said, *wrongly, *seen)


def _see_agent(
    label: Label,
    header: Header,
    contrasts: Contrasts,
    vocabulary: Vocabulary,
    *,
    is_repeated: bool,
) -> Label:
    """Turn T1w into T1c (CT into CTc) where a contrast agent was given."""
    if label.contrast is None:
        changed = (vocabulary[each].with_agent for each in label.candidates)
        agents = tuple(each for each in changed if each is not None)
        return replace(label, candidates=(*label.candidates, *agents)) if agents else label
    if all(contrast.with_agent is None for contrast in vocabulary.values()):
        return label  # "post" in the description of a PET is of a filter
    given, why = _read_agent(header, contrasts)
    enhanced = vocabulary[label.contrast].with_agent
    if given is None and enhanced is not None:
        why = why or _first_match(contrasts.contrast_agent.doubtful, header)
        if not why and is_repeated:
            why = "one place was imaged again and again, as an agent is watched"
        if why:
            return _abstain((label.contrast, enhanced), why, label.evidence)
        sure = min(label.confidence, contrasts.contrast_agent.silent_confidence)
        note = "nothing tells whether a contrast agent was given"
        label = replace(label, confidence=sure, evidence=(*label.evidence, note))
    if given and enhanced is not None:
        label = replace(label, contrast=enhanced)
    if given is not None:
        attributes = {**label.attributes, "contrast_agent": given}
        label = replace(label, evidence=(*label.evidence, why), attributes=attributes)
    return label


def _read_agent(header: Header, contrasts: Contrasts) -> tuple[bool | None, str]:
    """Return whether a contrast agent was given, or None, and why."""
    agent = contrasts.contrast_agent
    text = " ".join(fold(str(header.get(keyword, ""))) for keyword in contrasts.text)
    text = drop_words(agent.unless_words, text)
    no = find_word(agent.not_words, text)
    yes = find_word(agent.words, drop_words(agent.not_words, text))
    by_header = matches(agent.given, header)
    denied = matches(agent.denied, header)
    if (by_header and no) or (denied and yes) or (yes and no):
        return None, "its header and its descriptions do not agree on a contrast agent"
    if by_header:
        return True, "the header names a contrast agent"
    if yes:
        return True, f"a description says {yes!r}: after contrast agent"
    if no:
        return False, f"a description says {no!r}: without contrast agent"
    return (False, "the header says that no contrast agent was given") if denied else (None, "")


def _read_attributes(header: Header, contrasts: Contrasts) -> dict[str, str | float | bool]:
    found: dict[str, str | float | bool] = {
        name: True for name, when in contrasts.attributes.items() if matches(when, header)
    }
    for name, keyword in (
        ("dimension", "MRAcquisitionType"),
        ("body_part", "BodyPartExamined"),
        ("field_strength", "MagneticFieldStrength"),
        ("tracer", "Radiopharmaceutical"),
    ):
        if values := read_values(header, keyword):
            found[name] = values[0]
    if isinstance(field := found.get("field_strength"), int | float) and field > MOST_TESLA:
        found["field_strength"] = field / GAUSS_IN_TESLA
    if plane := _find_plane(header):
        found["plane"] = plane
    return found


def _read_view(header: Header) -> dict[str, str]:
    """Return from where, and of which side, a picture was taken."""
    told = (("view", "ViewPosition"), ("laterality", "Laterality"))
    return {name: str(values[0]) for name, key in told if (values := read_values(header, key))}


def _find_plane(header: Header) -> str:
    orientation = header.get("ImageOrientationPatient")
    if not orientation:
        return ""
    row, column = orientation[:3], orientation[3:]
    normal = [
        abs(row[a] * column[b] - row[b] * column[a]) for a, b in ((1, 2), (2, 0), (0, 1))
    ]  # of unit length, because row and column are unit vectors at a right angle
    if abs(math.hypot(*normal) - 1) > SKEWED:
        return ""
    longest = max(normal)
    if longest < OBLIQUE:
        return "oblique"
    return ("sagittal", "coronal", "axial")[normal.index(longest)]
