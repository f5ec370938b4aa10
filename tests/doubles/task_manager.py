"""A manager of Unified Procedure Steps on pynetdicom: a double, as no PACS at hand is one.

It keeps to PS3.4 annex CC: a step that is in progress belongs to whoever knows its Transaction UID,
it ends with what table CC.2.5-3 wants of a final state, and what is over is not changed any more.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydicom import Dataset
from pynetdicom import evt

from doubles.scripted_pacs import ScriptedPacs

UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"
UPS_PULL = "1.2.840.10008.5.1.4.34.6.3"
WORKITEM = ("COMPLETE", "99SITE", "Complete a missing contrast")
SUCCESS, PENDING = 0x0000, 0xFF00
OVER = ("COMPLETED", "CANCELED")

Answer = tuple[int, Dataset | None]


def make_code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


class TaskManager(ScriptedPacs):
    """Holds steps, and does with them what a performer says.

    Attributes:
        steps: by SOP Instance UID, all that is known of each.
        holders: the Transaction UIDs of those that were claimed.
        told: descriptions of progress, in the order in which they came.
        on_request: called with the name of each request (`N-ACTION IN PROGRESS` …) before it is
            done; what it returns is the status instead.
        after: called after each request, before it is answered.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"ae_title": "MANAGER", "classes": (), **options})
        self._ae.add_supported_context(UPS_PULL)
        self.forget()

    def forget(self) -> None:
        """Begin anew: no steps, and every request is done and answered."""
        self.steps: dict[str, Dataset] = {}
        self.holders: dict[str, str] = {}
        self.told: list[str] = []
        self.on_request: Callable[[str], int | None] = lambda _: None
        self.after: Callable[[str, evt.Event], None] = lambda _, __: None

    def schedule(
        self,
        *studies: str,
        series: tuple[str, ...] = (),
        ae_title: str = "PACS",
        workitem: tuple[str, str, str] = WORKITEM,
        readiness: str = "READY",
        station: tuple[str, str, str] | None = None,
        patient_id: str = "P1",
    ) -> str:
        """Schedule a step on studies, or on some series of one, and return its UID."""
        step = Dataset()
        step.SOPClassUID, step.SOPInstanceUID = UPS_PUSH, f"2.25.{uuid.uuid4().int}"
        step.PatientID = patient_id
        step.ProcedureStepState, step.InputReadinessState = "SCHEDULED", readiness
        step.ScheduledWorkitemCodeSequence = [make_code(*workitem)]
        step.ScheduledStationNameCodeSequence = [make_code(*station)] if station else []
        step.InputInformationSequence = []
        for study in studies:
            for each in series or ("",):
                item, retrieval = Dataset(), Dataset()
                item.TypeOfInstances, item.StudyInstanceUID = "DICOM", study
                if each:
                    item.SeriesInstanceUID = each
                retrieval.RetrieveAETitle = ae_title
                item.DICOMRetrievalSequence = [retrieval]
                step.InputInformationSequence.append(item)
        self.steps[step.SOPInstanceUID] = step
        return str(step.SOPInstanceUID)

    def state(self, uid: str) -> str:
        return str(self.steps[uid].ProcedureStepState)

    def reason(self, uid: str) -> str:
        [progress] = self.steps[uid].ProcedureStepProgressInformationSequence
        return str(progress.ReasonForCancellation)

    def outputs(self, uid: str) -> dict[str, set[str]]:
        """Return the instances of each series that came of a step."""
        [performed] = self.steps[uid].UnifiedProcedureStepPerformedProcedureSequence
        return {
            str(item.SeriesInstanceUID): {
                str(each.ReferencedSOPInstanceUID) for each in item.ReferencedSOPSequence
            }
            for item in performed.OutputInformationSequence
        }

    def _handlers(self) -> list[tuple[evt.EventType, Callable[[evt.Event], object]]]:
        return [
            *super()._handlers(),
            (evt.EVT_C_FIND, self._on_find),
            (evt.EVT_N_GET, self._on_get),
            (evt.EVT_N_ACTION, self._on_action),
            (evt.EVT_N_SET, self._on_set),
        ]

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        if (status := self.on_request("C-FIND")) is not None:
            yield status, None
            return
        for step in list(self.steps.values()):
            if not _matches(wanted, step):
                continue
            answer = Dataset()
            for element in wanted:
                setattr(answer, element.keyword, step.get(element.keyword))
            yield PENDING, answer

    def _on_get(self, event: evt.Event) -> Answer:
        step = self.steps.get(str(event.request.RequestedSOPInstanceUID))
        return (SUCCESS, step) if step is not None else (0xC307, None)

    def _on_action(self, event: evt.Event) -> Answer:
        wanted = event.action_information
        return self._do(event, f"N-ACTION {wanted.ProcedureStepState}", self._change)

    def _on_set(self, event: evt.Event) -> Answer:
        return self._do(event, "N-SET", self._set)

    def _do(self, event: evt.Event, name: str, do: Callable[[evt.Event, Dataset], int]) -> Answer:
        step = self.steps.get(str(event.request.RequestedSOPInstanceUID))
        if event.request.RequestedSOPClassUID != UPS_PUSH:
            return 0x0118, None
        status = self.on_request(name)
        if status is None:
            status = 0xC307 if step is None else do(event, step)
        self.after(name, event)
        return status, None

    def _change(self, event: evt.Event, step: Dataset) -> int:  # noqa: PLR0911 - one each
        """Change the state (PS3.4 table CC.1.1-2)."""
        wanted = event.action_information
        state, uid = str(wanted.ProcedureStepState), str(step.SOPInstanceUID)
        if event.action_type != 1 or state not in {"IN PROGRESS", *OVER}:
            return 0xC303
        if step.ProcedureStepState in OVER:
            if step.ProcedureStepState == state:
                return 0xB306 if state == "COMPLETED" else 0xB304
            return 0xC300
        if state == "IN PROGRESS":
            if step.ProcedureStepState == state:
                return 0xC302
            self.holders[uid] = str(wanted.TransactionUID)
        elif step.ProcedureStepState != "IN PROGRESS":
            return 0xC310
        elif wanted.TransactionUID != self.holders[uid]:
            return 0xC301
        elif not _may_end(step, state):
            return 0xC304
        step.ProcedureStepState = state
        return SUCCESS

    def _set(self, event: evt.Event, step: Dataset) -> int:
        changes = event.modification_list
        if step.ProcedureStepState in OVER:
            return 0xC300
        if step.ProcedureStepState != "IN PROGRESS":
            return 0xC310
        if changes.get("TransactionUID") != self.holders[str(step.SOPInstanceUID)]:
            return 0xC301
        for element in changes:
            if element.keyword != "TransactionUID":
                step[element.tag] = element
        [progress] = step.ProcedureStepProgressInformationSequence
        is_end = "UnifiedProcedureStepPerformedProcedureSequence" in changes
        if not is_end:
            self.told.append(str(progress.ProcedureStepProgressDescription))
        return SUCCESS


def _matches(wanted: Dataset, step: Dataset) -> bool:
    for element in wanted:
        held = step.get(element.keyword)
        if element.VR == "SQ":
            codes = _list_codes(element.value)
            if codes and not codes & _list_codes(held or ()):
                return False
        elif element.value and element.value != held:
            return False
    return True


def _list_codes(items: Iterable[Dataset]) -> set[tuple[str, str]]:
    return {(each.CodeValue, each.CodingSchemeDesignator) for each in items}


def _may_end(step: Dataset, state: str) -> bool:
    """Say whether a step has what its final state needs (PS3.4 table CC.2.5-3)."""
    for item in step.get("UnifiedProcedureStepPerformedProcedureSequence") or ():
        has_times = "PerformedProcedureStepStartDateTime" in item
        has_times &= "PerformedProcedureStepEndDateTime" in item
        codes = ("PerformedStationNameCodeSequence", "PerformedWorkitemCodeSequence")
        is_coded = all(item.get(each) for each in codes)
        outputs = item.get("OutputInformationSequence")
        named = all(
            each.StudyInstanceUID and each.SeriesInstanceUID and each.ReferencedSOPSequence
            for each in outputs or ()
        )
        if has_times and is_coded and outputs is not None and named:
            [progress] = step.ProcedureStepProgressInformationSequence
            return state == "COMPLETED" or "ProcedureStepCancellationDateTime" in progress
    return False
