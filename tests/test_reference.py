"""The written references are those of the program, and no link of a document is dead."""

from pathlib import Path

import pytest

import reference

ROOT = Path(__file__).resolve().parents[1]


def test_committed_references_are_those_of_the_program():
    stale = [
        name
        for name, text in reference.build_pages().items()
        if (ROOT / "docs" / name).read_text() != text
    ]

    assert stale == [], "run `make docs` and commit what it wrote"


def test_every_link_of_the_documents_leads_somewhere():
    assert list(reference.find_dead_links()) == []


def test_every_page_can_be_reached_from_the_readme():
    pages = [ROOT / "README.md"]
    for page in pages:
        linked = reference.LINK.findall(page.read_text())
        found = [page.parent / link.partition("#")[0] for link in linked if ".md" in link]
        pages += [each.resolve() for each in found if each.resolve() not in pages]

    assert set((ROOT / "docs").glob("*.md")) <= set(pages)


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("[there](other.md)", []),
        ("[nowhere](gone.md)", ["page.md: gone.md"]),
        ("[its heading](other.md#two--words-1)", []),
        ("[no heading](other.md#three)", ["page.md: other.md#three"]),
        ("[here](#title)", []),
        ("![no picture](gone.png)", ["page.md: gone.png"]),
        ("[elsewhere](https://example.org/gone)", []),
        ("```\n[code](gone.md)\n```", []),
    ],
)
def test_dead_link_is_told_with_its_page(text, dead, tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(f"# Title\n\n{text}\n")
    (tmp_path / "other.md").write_text("# Two, & words\n\n## Two, & words\n")
    for name in ("README.md", "CONTRIBUTING.md"):
        (tmp_path / name).touch()
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    monkeypatch.setattr(reference, "DOCS", tmp_path)

    assert [each for each in reference.find_dead_links() if each.startswith("page")] == dead
