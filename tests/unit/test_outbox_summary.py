"""What a failed event shows is the error itself, and different errors are different kinds."""

import json
from collections.abc import Callable

import pytest
from asyncpg.exceptions import UniqueViolationError
from sqlalchemy.exc import IntegrityError

from services.fields import now
from services.outbox.control.service import last_line
from services.outbox.models import FailureReason
from services.outbox.policy import describe, fingerprint, history_entry
from services.outbox.summary import summary


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001
        return caught


def refused(value: str, constraint: str = "uq_shipments") -> Exception:
    """A driver's error as `services.sql` raises it: it holds the statement, and ends with a link to a manual."""
    driver = UniqueViolationError(f'duplicate key value violates unique constraint "{constraint}"\nDETAIL: {value}')
    driver.sqlstate, driver.constraint_name = "23505", constraint
    return raised(IntegrityError("INSERT INTO shipments", None, driver))


def wrapped(value: str) -> Exception:
    """The same as SQLAlchemy wraps it: the driver's error is the cause of another one."""
    driver = refused(value)
    assert isinstance(driver, IntegrityError)
    outer = ValueError(f"<class 'x'>: {driver.orig}")
    outer.__cause__ = driver.orig
    return raised(IntegrityError("INSERT INTO shipments", None, outer))


SAID = (
    'UniqueViolationError: duplicate key value violates unique constraint "uq_shipments"'
    " (SQLSTATE 23505, constraint uq_shipments)"
)


@pytest.mark.parametrize("make", [refused, wrapped])
def test_a_database_error_is_summed_up_by_what_the_database_said(make: Callable[[str], Exception]) -> None:
    error = make("Key (id)=(1)")
    assert "Background on this error" in str(error)
    assert summary(error) == last_line(describe(error)) == SAID
    assert json.loads(history_entry(error, 1, now(), FailureReason.handler_error))["error"] == SAID


def test_an_error_stored_before_there_were_summaries_shows_what_the_driver_said() -> None:
    head = "sqlalchemy.exc.IntegrityError: (sqlalchemy.dialects.postgresql.asyncpg.IntegrityError) "
    tail = "\nDETAIL: x\n[SQL: INSERT]\n(Background on this error at: https://sqlalche.me/e/20/gkpj)\n"
    assert last_line(f"Traceback\n{head}<class 'asyncpg.exceptions.UniqueViolationError'>: too much{tail}") == (
        "IntegrityError: too much"
    )
    assert last_line(f"{tail}") == tail.splitlines()[-1]


def test_an_error_with_several_lines_or_notes_ends_with_its_first_line() -> None:
    error = ValueError("the payload is wrong\n  for more, see the manual")
    error.add_note("a note")
    assert last_line(describe(error)) == "ValueError: the payload is wrong"
    group = ExceptionGroup("two at once", [ValueError("a"), ValueError("b")])
    assert last_line(describe(raised(group))) == "ExceptionGroup: two at once (2 sub-exceptions)"


def test_an_error_whose_message_cannot_be_read_is_described_all_the_same() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert "Broken: <Broken, whose text cannot be shown: RuntimeError>" in describe(raised(Broken()))
    assert len(fingerprint(raised(Broken()))) == 16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("order 1 has 2.50 left", "order 17 has 1,000.00 left"),
        ("order 0193f0e4-0000-7000-8000-000000000000 is lost", "order 0193F0E5-1111-7000-8000-00000000000A is lost"),
        ("no product 'red hat' there", "no product 'blue hat' there"),
        ('no product "red hat" there', 'no product "blue hat" there'),
        ("<Order object at 0x7f00ab>", "<Order object at 0x7f11cd>"),
        ("can't reach 1; it doesn't answer", "can't reach 2; it doesn't answer"),
    ],
)
def test_numbers_ids_and_quoted_values_make_no_kind_of_error(one: str, other: str) -> None:
    assert fingerprint(raised(ValueError(one))) == fingerprint(raised(ValueError(other)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (RuntimeError("warehouse said no"), RuntimeError("disk on fire")),
        (RuntimeError("can't read; it doesn't answer"), RuntimeError("can't write; it doesn't answer")),
        (refused("x"), refused("x", "uq_parcels")),
    ],
)
def test_unlike_errors_from_the_same_place_are_different_kinds(one: Exception, other: Exception) -> None:
    assert fingerprint(raised(one)) != fingerprint(raised(other))


def test_database_errors_of_one_constraint_are_one_kind_whatever_the_values() -> None:
    assert fingerprint(refused("Key (id)=(1)")) == fingerprint(refused("Key (id)=(ab)"))
