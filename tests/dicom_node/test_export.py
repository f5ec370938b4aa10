"""Export beside the PACS: what of the studies that are here becomes volumes, and what is told."""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dicom_node.assembly import build_judge
from dicom_node.export import Export
from doubles.bench import Bench
from doubles.exposures import make_exposure, write_settings
from synthesis.registry import load_cards


class Walk:
    """A peer whose complete studies are here already."""

    def __init__(self, studies: Iterable[str]) -> None:
        self._studies = studies

    def find(self, _: Mapping[str, str]) -> Iterator[tuple[str, list[Any], Any]]:
        for uid in self._studies:
            yield uid, [], SimpleNamespace(gaps=(), slots={"a rule": {}})

    def fetch(self, *_: object) -> None:
        """Do nothing."""


def test_pictures_are_left_out_by_name(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "data", tmp_path / "models", write_settings(tmp_path / "config"))
    came = make_exposure("DX", study="pair")
    bench.receive(
        [came, make_exposure("DX", study="pair", number=2, SeriesDescription="bone image")]
    )
    judge = build_judge(
        bench.configuration,
        load_cards(bench.configuration.node.models_folder),
        uuid.UUID(int=0),
    )
    walk: Any = Walk([came.StudyInstanceUID])
    export = Export(walk, judge, bench.ledger, bench.store, tmp_path / "out", by="a test")

    assert list(export.run({})) == [0]

    assert export.tally.describe() == (
        "0 people exported; left out: 1 of pictures, which have no place in a volume"
    )
    bench.ledger.close()
