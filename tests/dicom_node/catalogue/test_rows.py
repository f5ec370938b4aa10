"""Every row of the catalogue is proven by some test."""

import ast
from collections.abc import Iterator
from pathlib import Path

from doubles.catalogue import ELSEWHERE, ROWS


def claims(path: Path) -> Iterator[str]:
    """Yield the rows that the tests in a file say that they prove."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in {"row", "catalogue"}:
                yield str(node.args[0].value)


def test_every_row_of_the_catalogue_is_proven_by_a_test():
    folder = Path(__file__).parents[1]
    claimed = {each for path in folder.rglob("test_*.py") for each in claims(path)}

    missing = [
        f"{file}: {test}"
        for file, test in ELSEWHERE.values()
        if f"def {test}(" not in (folder / file).read_text(encoding="utf-8")
    ]
    assert missing == []
    assert claimed | set(ELSEWHERE) == set(ROWS)
    assert list(ROWS) == [f"U{n}" for n in range(1, 44)] + [f"D{n}" for n in range(1, 43)]
