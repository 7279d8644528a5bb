"""docs/security.md: each requirement is there once, and the tests that it names exist."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"

TOP_10 = tuple(f"API{number}" for number in range(1, 11))
SECTIONS = {
    # V4: API and web service
    "4.1": 5,
    "4.2": 5,
    "4.3": 2,
    "4.4": 4,
    # V6: authentication
    "6.1": 3,
    "6.2": 12,
    "6.3": 8,
    "6.4": 6,
    "6.5": 8,
    "6.6": 4,
    "6.7": 2,
    "6.8": 4,
    # V7: sessions
    "7.1": 3,
    "7.2": 4,
    "7.3": 2,
    "7.4": 5,
    "7.5": 3,
    "7.6": 2,
    # V8: authorization
    "8.1": 4,
    "8.2": 4,
    "8.3": 3,
    "8.4": 2,
    # V9: self-contained tokens
    "9.1": 3,
    "9.2": 4,
    # V12: secure communication
    "12.1": 5,
    "12.2": 2,
    "12.3": 5,
    # V13: configuration
    "13.2": 6,
    "13.3": 4,
    # V14: data protection
    "14.1": 2,
    "14.2": 8,
    "14.3": 3,
    # V16: logging and errors
    "16.1": 1,
    "16.2": 5,
    "16.3": 4,
    "16.4": 3,
    "16.5": 4,
}
"""The sections of those chapters of ASVS 5.0.0, and how many requirements each has, numbered from 1."""

MET = {"yes", "in part", "no", "n/a"}
NAME = re.compile(r"`(test_\w+)`")
ITEM = re.compile(r"(API\d+)\b.*|\d+\.\d+(?:\.\d+)?(?:, \d+\.\d+(?:\.\d+)?)*")


class Row(NamedTuple):
    item: str
    met: str
    what: str
    tests: str


def rows(page: str) -> list[Row]:
    """The rows of the page's tables, without their heads."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return [Row(*row) for row in cells if row[0] not in ("item", "---")]


def requirements() -> list[str]:
    return [*TOP_10, *(f"{section}.{n}" for section, most in SECTIONS.items() for n in range(1, most + 1))]


def items(row: Row) -> list[str]:
    """The requirements of a row; a section stands for all of it."""
    found = ITEM.fullmatch(row.item)
    if found is None:
        return [row.item]
    if found[1]:
        return [found[1]]
    of_section = {section: [one for one in requirements() if one.startswith(f"{section}.")] for section in SECTIONS}
    return [each for named in row.item.split(", ") for each in of_section.get(named, [named])]


@cache
def existing_tests() -> frozenset[str]:
    """The names of the functions that pytest collects."""
    return frozenset(
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def faults(page: str) -> Iterator[str]:
    """What is wrong with the page."""
    found = [item for row in rows(page) for item in items(row)]
    for item in sorted({*found, *requirements()}):
        if item not in requirements():
            yield f"{item} is not a requirement"
        elif found.count(item) != 1:
            yield f"{item} is there {found.count(item)} times"
    for row in rows(page):
        if row.met not in MET:
            yield f"{row.item}: {row.met!r} is none of {sorted(MET)}"
        if not row.what:
            yield f"{row.item} does not say what Waybill does"
        if not NAME.search(row.tests) and not re.fullmatch(r"none: \w+ .+", row.tests):
            yield f"{row.item} names no test and does not say why"
    for name in NAME.findall(page):
        if name not in existing_tests():
            yield f"there is no test {name}"


def test_each_requirement_is_there_once_with_tests_that_exist() -> None:
    page = PAGE.read_text()
    assert len(requirements()) > 100
    assert list(faults(page)) == []


@pytest.mark.parametrize(
    ("wrong", "right", "fault"),
    [
        ("`test_customers_need_any`", "`test_customers_need_none`", "there is no test test_customers_need_any"),
        ("| 6.2.6 |", "| 6.2.6, 6.2.7 |", "6.2.7 is there 0 times"),
        ("| 8.2.1, 8.2.2 |", "| 8.2.1 |", "8.2.2 is there 2 times"),
        ("| 7.1.3, 7.6.1 |", "| 7.1.3, 7.6 |", "7.6.2 is there 0 times"),
        ("| 9.2.1, 9.3 |", "| 9.2.1 |", "9.3 is not a requirement"),
        ("| API11 broken", "| API5 broken", "API11 is not a requirement"),
        ("| 16.5.1 | ok |", "| 16.5.1 | yes |", "16.5.1: 'ok' is none of ['in part', 'n/a', 'no', 'yes']"),
        ("| |\n", "| none: there is no reminder |\n", "6.4.5 names no test and does not say why"),
    ],
)
def test_a_mistake_in_the_page_is_found(wrong: str, right: str, fault: str) -> None:
    page = PAGE.read_text()
    assert right in page
    assert fault in list(faults(page.replace(right, wrong, 1)))
