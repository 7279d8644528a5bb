"""Every decision record has a status and a date, and is listed in the index."""

import re
from datetime import date
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))
HEAD = re.compile(r"# (\d{4}): (.+)\n\nStatus: (.+)\n\nDate: (\d{4}-\d\d-\d\d)\n\n")
STATUS = re.compile(r"proposed|rejected|accepted(; changed by \[.+)?|superseded by \[.+")
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def headings(page: Path) -> list[str]:
    return HEADING.findall(page.read_text())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem[:4])
def test_a_record_has_a_status_a_date_and_the_sections_of_the_template(record: Path) -> None:
    head = HEAD.match(record.read_text())
    assert head, "after the title: Status:, Date:"
    number, _, status, day = head.groups()
    assert record.name.startswith(f"{number}-")
    assert STATUS.fullmatch(status)
    assert date.fromisoformat(day)
    expected = headings(FOLDER / "template.md")
    assert [heading for heading in headings(record) if heading in expected] == expected


def test_the_index_lists_each_record_with_its_title_and_status() -> None:
    assert len(RECORDS) >= 21
    heads = [(record, HEAD.match(record.read_text())) for record in RECORDS]
    rows = [f"| [{head[1]}]({record.name}) | {head[2]} | {head[3]} |" for record, head in heads if head]
    index = (FOLDER / "README.md").read_text().splitlines()
    assert [line for line in index if line.startswith("| [")] == rows


def test_each_number_is_given_once_and_each_link_leads_to_a_page() -> None:
    numbers = [record.name[:4] for record in RECORDS]
    assert len(set(numbers)) == len(numbers)
    for page in FOLDER.glob("*.md"):
        for target in LINK.findall(page.read_text()):
            assert (FOLDER / target).exists(), f"{page.name}: {target}"
