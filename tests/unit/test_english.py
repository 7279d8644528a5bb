"""Messages, help texts and docstrings are plain English: known bad turns of phrase do not come back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

AREAS = ("services", "worker", "migrations", "benchmarks", ".ci")

BAD_TURNS = {
    r"(?<!there )\b(is|was) no (?!longer\b|more\b)[a-z]": "is not a ...",
    r"\banew\b": "again",
    r"\bwhoever\b": "anyone who, or name them",
    r"\b(some|no|every)body\b": "someone, no one, everyone, or name them",
    r"\b(take|takes|took|taken)\b.*\bin hand\b": "control",
    r"\b(is|are) like that\b": "matches",
    r"\bbroken off\b": "interrupted",
    r"\bdo(es)? not take us\b": "cannot connect to",
    r"\bfor good\b": "permanently",
    r"\b(go|goes|went|going) on\b": "continue",
    r"\b(lie|lies|lay)\b": "is",
    r"\b(come|comes|came) to a stand\b": "stall",
    r"\bunless given\b": "by default",
    r"\b(None|True|False|empty) where\b": "if",
    r"\braises `?\w+`? where\b": "if",
    r"\b(so|as) many [a-z]+ in all\b": "in total",
    r"\bthe data (stay|are)\b": "the data is",
    r"\bbesides\b[.,;:]": "also, as well",
    r"\b(is|are) told of\b": "is notified of",
    r"\bset apart\b": "isolate",
    r"\bhow many it were\b": "the number of",
}
"""Each turn, and what to write instead."""

SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|SET|VACUUM|LOCK|WITH)\b [\w{*(]")


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Every string of more than one word in a module, docstrings included, SQL excluded, with its line."""
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr():
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            case ast.Constant(value=str() as text) if id(node) not in parts:
                pass
            case _:
                continue
        # Lines of a docstring are joined, so that a line break does not hide anything. Code in backticks is not prose.
        joined = re.sub(r"`[^`]*`", "``", " ".join(text.split()))
        if " " in joined and not SQL.search(joined):
            yield node.lineno, joined


def bad_turns(source: str) -> list[str]:
    return [
        f"line {line}: {found[0]!r} (write: {better})"
        for line, text in texts(source)
        for turn, better in BAD_TURNS.items()
        if (found := re.search(turn, text, re.IGNORECASE))
    ]


def files() -> list[Path]:
    return [file for area in AREAS for file in sorted((ROOT / area).rglob("*.py"))]


def test_every_text_is_plain_english() -> None:
    found = {str(file.relative_to(ROOT)): bad_turns(file.read_text()) for file in files()}
    assert {name: turns for name, turns in found.items() if turns} == {}


@pytest.mark.parametrize(
    "planted",
    [
        '"""What somebody else has changed."""',
        'raise ValueError(f"{text!r} is no URL")',
        'help = "Look at the outbox and take it in hand."',
        'def get():\n    """The row, or None where there\n    is none."""',
        'say("no dead letter " "is like that")',
    ],
)
def test_a_bad_turn_is_found(planted: str) -> None:
    assert len(bad_turns(planted)) == 1


@pytest.mark.parametrize(
    "fine",
    [
        'raise ValueError(f"{text!r} is not a URL")',
        'say("there is no worker")',
        '"""The order is no longer pending."""',
        'Statement("SELECT anew FROM whoever")',
        'EVERYBODY = "everybody"',
        "# Comments are for reviewers to judge: is no text.",
    ],
)
def test_what_is_fine_is_left_alone(fine: str) -> None:
    assert bad_turns(fine) == []
