"""Fingerprints distinguish errors by their type and origin; an entry of the history is storable JSON."""

import json
from datetime import UTC, datetime

import pytest

from services.outbox.models import FailureReason
from services.outbox.policy import RetryPolicy, describe, fingerprint, history_entry


def here(message: str) -> None:
    if "another" in message:
        # Another line of the same function.
        raise ValueError(message)
    raise ValueError(message)


def there(message: str) -> None:
    raise ValueError(message)


def other_kind(message: str) -> None:
    raise KeyError(message)


def caught(function: object, message: str) -> Exception:
    try:
        function(message)  # type: ignore[operator]
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("it raises")


def test_a_fingerprint_is_the_same_whatever_the_values_in_the_message_and_the_line() -> None:
    assert fingerprint(caught(here, "'a' 1")) == fingerprint(caught(here, "'another' 2"))


@pytest.mark.parametrize("other", [there, other_kind])
def test_a_fingerprint_differs_by_place_and_by_type(other: object) -> None:
    assert fingerprint(caught(here, "x")) != fingerprint(caught(other, "x"))


def test_a_fingerprint_is_sixteen_hexadecimal_digits_also_of_an_error_that_was_never_raised() -> None:
    for error in (ValueError("x"), caught(here, "x")):
        assert len(fingerprint(error)) == 16
        assert int(fingerprint(error), 16) >= 0


def test_a_history_line_says_when_which_attempt_and_what_without_what_a_database_cannot_hold() -> None:
    at = datetime(2026, 5, 4, tzinfo=UTC)
    error = caught(here, "nul \x00 and half a pair \ud800" + "x" * 9000)

    entry = json.loads(history_entry(error, 3, at, FailureReason.handler_error))

    assert entry["at"] == "2026-05-04T00:00:00+00:00"
    assert entry["attempt"] == 3
    assert entry["fingerprint"] == fingerprint(error)
    assert entry["error"].startswith("ValueError: nul  and half a pair ?")
    assert len(entry["error"]) == 500


class EndsAll(BaseException):
    """No `Exception`."""


class Unreadable(Exception):
    """Its own code fails whenever it is shown."""

    def __str__(self) -> str:
        raise EndsAll

    __repr__ = __str__


class OtherText(str):
    """What it returns for its text is a string, and does not behave like one."""

    def replace(self, *_: object) -> str:
        raise ValueError("replace")

    encode = replace  # type: ignore[assignment]


class Odd(Exception):
    def __str__(self) -> str:
        return OtherText("odd")


class Misplaced(SyntaxError):
    """A traceback shows where a syntax error is, and this one has no such place."""

    text = 5  # type: ignore[assignment]
    filename = lineno = offset = Unreadable()  # type: ignore[assignment]


@pytest.mark.parametrize("error", [Unreadable(), Odd(), Misplaced("x"), EndsAll("x"), ExceptionGroup("x", [Odd()])])
def test_any_error_can_be_described_whatever_its_own_code_does(error: BaseException) -> None:
    name = type(error).__qualname__
    assert name in describe(error)
    assert len(fingerprint(error)) == 16
    assert json.loads(history_entry(error, 1, datetime(2026, 5, 4, tzinfo=UTC), FailureReason.handler_error))[
        "error"
    ].startswith(name)


def test_a_description_that_is_too_long_keeps_its_end() -> None:
    text = describe(caught(here, "x" * 9000 + " the end"))
    assert len(text) == 8000
    assert text.endswith("the end\n")


def test_a_delay_grows_to_its_cap_and_is_never_less_than_half() -> None:
    policy = RetryPolicy(max_attempts=5, base=1, cap=10)
    for attempts, longest in ((0, 1), (1, 2), (3, 8), (4, 10), (1000, 10)):
        delays = [policy.delay(attempts) for _ in range(100)]
        assert longest / 2 <= min(delays) <= max(delays) <= longest
