"""Prepared cases on disk: made once from a person's images, then read anywhere.

A folder of cases is all that training needs of people: it can be carried to a machine that has a
GPU and neither the images nor an image library.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from synthesis.errors import TrainingError
from synthesis.fingerprint import fingerprint
from synthesis.people import Person
from synthesis.types import Anchor, Case, ContrastLabel

UNITS = 1000
"""Values are kept as int16 in thousandths of a normalized unit: the units that pictures are in."""

FIT = ".fit.json"
"""Of the file beside a case that says how its CT was bent."""
OPTIONAL = ("labels", "judged")
PREPARATION = 3
"""Raised when people are prepared otherwise than before: prepared cases and results are then stale.

Rounding and the speed of the preparation do not raise it, a new order of its steps does.
"""


def cases_folder(work: Path, spacing_mm: float, anchor: Anchor, *, fits_ct: bool = False) -> Path:
    """Return where cases of this grid and scale are kept below `work`."""
    name = f"cases-{spacing_mm:g}mm-p{anchor.percentile:g}-v{PREPARATION}"
    return work / (f"{name}-fit{digest_fit()[:8]}" if fits_ct else name)


def digest_fit() -> str:
    """Return the digest of the code that fits CTs to MR; `PREPARATION` covers the rest."""
    parts = ("synthesis.fitting:fit_body", "synthesis.preprocessing:mask_body")
    return hashlib.sha256("".join(fingerprint(part) for part in parts).encode()).hexdigest()


def read_fit(case: Path) -> Mapping[str, float] | None:
    """Return the figures of the fit of the case of this file, if there was one."""
    record = case.with_suffix(FIT)
    return json.loads(record.read_text())["figures"] if record.exists() else None


def cached_cases(
    people: list[Person],
    data_folder: Path,
    cache: Path,
    *,
    spacing_mm: float,
    anchor: Anchor,
    brain_mask: Path | None = None,
    fits_ct: bool = False,
) -> Iterator[Case]:
    """Yield each person's case, prepared once and kept below `cache`.

    Args:
        people: whose cases.
        data_folder: where images lie.
        cache: see `cases_folder`.
        spacing_mm: of the grid.
        anchor: of the scale.
        brain_mask: folder of a brain mask's weights, for whole heads.
        fits_ct: CTs are bent to lie on the MR; how is kept beside the case.

    Raises:
        TrainingError: a person is not prepared and there are no images, or other images than the
            manifest's.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for person in people:
        path = cache / f"{person.name}.npz"
        if not path.exists():
            if not data_folder.is_dir():
                raise TrainingError(
                    f"{person.subject} is not prepared and no images lie at {data_folder}; "
                    "set DICOM_NODE_DATA"
                )
            # the image library is loaded only when there is something to prepare
            from synthesis.preparation import prepare, prepare_fitted  # noqa: PLC0415

            if fits_ct:
                case, record = prepare_fitted(
                    person, data_folder, spacing_mm=spacing_mm, anchor=anchor
                )
                path.with_suffix(FIT).write_text(json.dumps(record))
            else:
                case = prepare(
                    person, data_folder, spacing_mm=spacing_mm, anchor=anchor, brain_mask=brain_mask
                )
            write_case(path, case)
        yield read_case(path)


def write_case(path: Path, case: Case) -> None:
    """Write a case, whole or not at all; `path` ends in .npz."""
    limits = np.iinfo(np.int16)
    arrays: dict[str, Any] = {
        f"image_{label}": np.clip(np.rint(image * UNITS), limits.min, limits.max).astype(np.int16)
        for label, image in case.images.items()
    }
    for name in OPTIONAL:
        if getattr(case, name) is not None:
            arrays[name] = getattr(case, name)
    temporary = path.with_suffix(".part.npz")
    np.savez_compressed(temporary, mask=case.mask, spacing=np.array(case.spacing), **arrays)
    temporary.rename(path)


def read_case(path: Path) -> Case:
    """Read a case that `write_case` wrote; the file's name is the subject."""
    with np.load(path, allow_pickle=False) as saved:
        slices, rows, columns = (float(s) for s in saved["spacing"])
        return Case(
            subject=path.stem,
            images={
                ContrastLabel(key.removeprefix("image_")): saved[key].astype(np.float32) / UNITS
                for key in saved.files
                if key.startswith("image_")
            },
            mask=saved["mask"],
            spacing=(slices, rows, columns),
            **{name: saved[name] for name in OPTIONAL if name in saved.files},
        )
