"""Write NIfTI images as one DICOM study that looks acquired, for trying the node.

    python tests/nifti_to_dicom.py OUT --patient P04 \\
        --series T1w=t1.nii.gz --series T2w=t2.nii.gz \\
        --set T2w:EchoTime=100 --set T2w:RepetitionTime=4000 --set T2w:ScanningSequence=SE

Geometry is that of each affine; physics are only what `--set` says, for a NIfTI image knows none.
The person is fictitious and the node is told nothing that was not given here.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from highdicom import Volume

from dicom_node.acquired import AcquiredStudy, write_series
from dicom_node.elements import encode
from doubles.nifti import NAMESPACE, STARTED, read_nifti

UPRIGHT = frozenset("LPF")
"""Rows and columns of an image as it is hung run to the left, to the back, to the feet."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the study; return 0, or 2 when an argument is wrong."""
    options = _parse(arguments)
    study = AcquiredStudy(
        namespace=NAMESPACE,
        key=options.patient,
        patient_name=options.name or f"TEST^{options.patient.upper()}",
        patient_id=options.patient,
        started=STARTED,
        description=options.description,
        body_part=options.body_part,
    )
    acquisitions: dict[str, dict[str, str | list[str]]] = defaultdict(dict)
    for label, keyword, value in options.set:
        acquisitions[label][keyword] = value.split("\\") if "\\" in value else value
    for number, (label, path) in enumerate(options.series, start=1):
        volume = turn_upright(read_nifti(path, study.uid("frame of reference")))
        instances = write_series(
            study,
            volume,
            modality=options.modality,
            number=number,
            description=label,
            acquisition=acquisitions[label],
        )
        folder = options.out / label
        folder.mkdir(parents=True, exist_ok=True)
        for instance in instances:
            (folder / f"{instance.InstanceNumber:04d}.dcm").write_bytes(encode(instance))
        sys.stdout.write(f"{label}: {len(instances)} instances in {folder}\n")
    return 0


def turn_upright(volume: Volume) -> Volume:
    """Return the volume with rows and columns as they are hung; every voxel keeps its place."""
    directions = volume.get_closest_patient_orientation()
    upside_down = [axis for axis in (1, 2) if directions[axis].value not in UPRIGHT]
    return volume.flip_spatial(upside_down) if upside_down else volume


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write, one folder per series in it")
    parser.add_argument("--patient", required=True, help="Patient ID, and key of the UIDs")
    parser.add_argument("--name", help="Patient's Name; TEST^<patient> when left out")
    parser.add_argument("--description", default="BRAIN", help="Study Description")
    parser.add_argument("--body-part", default="BRAIN", help="Body Part Examined")
    parser.add_argument("--modality", default="MR", choices=("MR", "CT", "PT"))
    parser.add_argument(
        "--series", type=_series, action="append", required=True, metavar="LABEL=PATH"
    )
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="LABEL:KEYWORD=VALUE"
    )
    return parser.parse_args(arguments)


def _series(text: str) -> tuple[str, Path]:
    label, _, path = text.partition("=")
    if not label or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=PATH of a NIfTI file")
    return label, Path(path)


def _setting(text: str) -> tuple[str, str, str]:
    place, _, value = text.partition("=")
    label, _, keyword = place.partition(":")
    if not (label and keyword and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL:KEYWORD=VALUE")
    return label, keyword, value


if __name__ == "__main__":
    sys.exit(main())
