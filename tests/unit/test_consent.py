"""`waybill up` says what it would do to which database, and does it only if the user agrees."""

import sys
from io import StringIO
from typing import Any

import pytest
import typer

from services.cli.console import CommandError
from services.local.consent import agree_to_change, changes_of

URL = "postgresql://me:hunter2@db.example:5433/shop"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_embedded_databases_need_no_consent() -> None:
    for given in ({}, {"database_url": "", "analytics_url": ""}, {"redis_url": "redis://elsewhere"}):
        agree_to_change(given, agreed=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"database_url": URL},
            "upgrade the database shop on db.example port 5433 (WAYBILL_DATABASE_URL) to the newest schema, and create "
            "demo users, among them two operators and an admin, with products and credits",
        ),
        (
            {"database_url": URL, "environment": "production"},
            "upgrade the database shop on db.example port 5433 (WAYBILL_DATABASE_URL) to the newest schema",
        ),
        (
            {"analytics_url": "postgresql://me@/reports?host=/run/postgresql"},
            "upgrade the database reports on /run/postgresql (WAYBILL_ANALYTICS_URL) to the newest schema",
        ),
        (
            {"database_url": "postgresql://me@db.example", "environment": "production"},
            "upgrade the database me on db.example (WAYBILL_DATABASE_URL) to the newest schema",
        ),
        (
            {"database_url": "nonsense hunter2", "environment": "production"},
            "upgrade a database (WAYBILL_DATABASE_URL) to the newest schema",
        ),
    ],
)
def test_it_says_what_would_be_done_to_which_database(given: dict[str, Any], said: str) -> None:
    assert list(changes_of(given)) == [said]
    with pytest.raises(CommandError, match="Nothing has been changed") as refused:
        agree_to_change(given, agreed=False)
    assert said in str(refused.value)
    assert "`waybill up --seed`" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    agree_to_change(given, agreed=True)


@pytest.mark.parametrize("answer", [True, False])
def test_a_terminal_is_asked(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    asked = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        return answer

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(typer, "confirm", confirm)
    if answer:
        agree_to_change({"database_url": URL}, agreed=False)
    else:
        with pytest.raises(CommandError):
            agree_to_change({"database_url": URL}, agreed=False)
    (question,) = asked
    assert "the database shop on db.example port 5433" in question


def test_ctrl_c_at_the_question_is_not_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(typer.Abort):
        agree_to_change({"database_url": URL}, agreed=False)
