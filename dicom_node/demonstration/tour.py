"""The whole way of one parcel: PACS and node start, it is sent, comes back, and is judged."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pydicom import dcmread

from dicom_node import conformance, settings
from dicom_node.archive import Archive
from dicom_node.demonstration.comparison import Comparison, compare
from dicom_node.demonstration.findings import Findings, Outcome, read_outcomes
from dicom_node.demonstration.pacs import Orthanc, Pacs, find_orthanc
from dicom_node.demonstration.processes import LOOPBACK, find_free_ports
from dicom_node.demonstration.studies import Parcel
from dicom_node.demonstration.validators import find_errors, find_validators
from dicom_node.demonstration.walk import Node, send, watch
from dicom_node.domain import Role
from dicom_node.ledger import Ledger
from synthesis.registry import load_card

PACS_AE_TITLE, SCANNER_AE_TITLE = "ORTHANC", "STORESCU"
"""As the shipped node.yaml knows them."""
QUIET_PERIOD = "3 s"
"""Of a site it is a minute; here the sender is known to have finished."""
PATIENCE_SECONDS = 900.0
"""More than five times what the slowest model needs on two cores."""

Tell = Callable[[str], None]
Fetched = Mapping[str, Path]
"""SOP Instance UID to the file that the PACS gave back."""


class Stopwatch:
    """Wall-clock seconds by stage, and a line for the person who waits."""

    def __init__(self, tell: Tell) -> None:
        self.seconds: dict[str, float] = {}
        self._tell = tell

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tell what begins, and keep how long it took."""
        self._tell(f"{name} ...")
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


@dataclass(frozen=True, slots=True, kw_only=True)
class Tour:
    """What the way of a parcel left behind.

    Attributes:
        findings: for the report.
        comparisons: one for each synthetic series, for the pictures.
    """

    findings: Findings
    comparisons: tuple[Comparison, ...] = field(default=())


def run(parcel: Parcel, configuration: Path, folder: Path, tell: Tell) -> Tour:
    """Send a parcel through a node and a PACS of our own, and judge what comes back.

    Args:
        parcel: what to send.
        configuration: folder of the node's YAML files; ports and folders are overridden.
        folder: gets logs, the data of node and PACS, and `derived/`.
        tell: is given a line for each thing that happens.

    Raises:
        RuntimeError: PACS or node did not start, or the study was not finished in time.
        DeliveryError: PACS or node did not take the study.
    """
    stopwatch = Stopwatch(tell)
    dicom_port, web_port = find_free_ports(2)
    overrides = [
        f"data_folder={(folder / 'node').resolve()}",
        f"receiver.port={dicom_port}",
        f"web.port={web_port}",
        f"assembly.quiet_period={QUIET_PERIOD}",
        *(f"{sweep}.sweep_every=1 s" for sweep in ("assembly", "dispatch", "delivery")),
    ]
    ae_title = settings.load(configuration, overrides).node.ae_title
    with ExitStack() as stack:
        pacs = _make_pacs(folder / "pacs", {ae_title: dicom_port, SCANNER_AE_TITLE: dicom_port})
        stack.callback(pacs.stop)
        with stopwatch.stage(f"start the PACS ({pacs.name})"):
            pacs.start()
        overrides.append(f"peers.pacs.port={pacs.port}")
        node = Node(configuration, overrides, folder / "node.log")
        stack.callback(node.stop)
        with stopwatch.stage("start the node"):
            node.start()
        with stopwatch.stage(f"send {len(parcel.files)} instances to PACS and node"):
            for port, called in ((pacs.port, pacs.ae_title), (node.port, ae_title)):
                send(parcel.files, port=port, called=called, calling=SCANNER_AE_TITLE)
        configured = settings.load(configuration, overrides).node
        ledger = Ledger(configured.ledger_url, lambda: datetime.now(UTC)).open(create=False)
        stack.callback(ledger.close)
        with stopwatch.stage("wait for the completed study"):
            watch(ledger, parcel.study_instance_uid, PATIENCE_SECONDS, tell, node)
        held = pacs.find_instances(parcel.study_instance_uid)
        outcomes = read_outcomes(ledger, parcel.study_instance_uid, held)
        with stopwatch.stage("fetch the derived instances from the PACS"):
            fetched = _fetch(pacs, outcomes, folder / "derived")
        findings = Findings(
            parcel=parcel,
            pacs=pacs.name,
            study=ledger.study_row(parcel.study_instance_uid),
            judgement=ledger.read_judgement(parcel.study_instance_uid),
            outcomes=outcomes,
        )
        tell("stop what was started ...")
    with stopwatch.stage("judge what came back"):
        comparisons = tuple(
            _compare(parcel, outcome, fetched, configured.models_folder)
            for outcome in outcomes
            if outcome.is_complete and outcome.image_series
        )
        validators, problems = _validate(parcel, outcomes, fetched)
    findings = replace(
        findings,
        validators=validators,
        problems=problems,
        comparisons={one.target: one.figures for one in comparisons if one.figures},
        seconds=stopwatch.seconds,
    )
    return Tour(findings=findings, comparisons=comparisons)


def _make_pacs(folder: Path, peers: Mapping[str, int]) -> Pacs:
    """Return Orthanc where it is installed, else the built-in archive."""
    if find_orthanc():
        return Orthanc(folder, peers, PACS_AE_TITLE)
    return Archive(
        folder,
        ae_title=PACS_AE_TITLE,
        peers={title: (LOOPBACK, port) for title, port in peers.items()},
    )


def _fetch(pacs: Pacs, outcomes: Sequence[Outcome], folder: Path) -> Fetched:
    """Write what the PACS holds of the derived instances, by target and role."""
    fetched: dict[str, Path] = {}
    for outcome in outcomes:
        for one in outcome.derived:
            if one.sop_instance_uid in outcome.in_pacs:
                name = f"{one.number:04d}.dcm"
                path = folder / outcome.job.plan.target / one.role.value / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(pacs.read_instance(one.sop_instance_uid))
                fetched[one.sop_instance_uid] = path
    return fetched


def _compare(parcel: Parcel, outcome: Outcome, fetched: Fetched, models: Path) -> Comparison:
    plan = outcome.job.plan
    by_uid = {_read_uids(path): path for path in parcel.files}
    used = {uid for uid, _ in plan.source_instances}
    inverse = next(step for step in outcome.job.record if step["step"] == "inverse")

    def files(role: Role) -> list[Path]:
        return [fetched[one.sop_instance_uid] for one in outcome.derived if one.role == role]

    return compare(
        target=plan.target,
        modality=plan.target_modality,
        sources={
            label: [
                path for (uid, owner), path in by_uid.items() if owner == series and uid in used
            ]
            for label, series in plan.sources.items()
        },
        frames=plan.source_frames,
        image=files(Role.IMAGE),
        uncertainty=files(Role.UNCERTAINTY),
        real=parcel.held_back.get(plan.target, ()),
        pad_value=inverse["pad_value"],
        anchor=load_card(models, plan.model_id).anchor,
    )


def _validate(
    parcel: Parcel, outcomes: Sequence[Outcome], fetched: Fetched
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which tools looked at the derived files, and what they say."""
    headers = [dcmread(path, stop_before_pixels=True) for path in parcel.files]
    problems: list[str] = []
    for outcome in outcomes:
        derived = [
            dcmread(fetched[one.sop_instance_uid])
            for one in outcome.derived
            if one.sop_instance_uid in fetched
        ]
        plan = outcome.job.plan
        used = {uid for uid, _ in plan.source_instances}
        sources = [header for header in headers if header.SOPInstanceUID in used]
        problems += [f"{plan.target}: {text}" for text in conformance.check(derived, sources)]
    tools = ["dicom_node.conformance"]
    validators = find_validators()
    if validators is not None:
        tools += ["dciodvfy", "dcentvfy"]
        problems += find_errors(validators, list(fetched.values()), parcel.files)
    return tuple(tools), tuple(problems)


def _read_uids(path: Path) -> tuple[str, str]:
    header = dcmread(path, specific_tags=["SOPInstanceUID", "SeriesInstanceUID"])
    return str(header.SOPInstanceUID), str(header.SeriesInstanceUID)
