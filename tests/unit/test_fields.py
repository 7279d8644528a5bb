"""The types that schemas and columns share."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from services.fields import (
    MAX_BIGINT,
    MAX_CREDITS,
    Id,
    Instant,
    Money,
    Name,
    Price,
    Quantity,
    StrictId,
    Text,
    allowed,
    made_storable,
    new_id,
    now,
    one_of,
    text_enum,
)

price: TypeAdapter[Decimal] = TypeAdapter(Price)
money: TypeAdapter[Decimal] = TypeAdapter(Money)
instant: TypeAdapter[datetime] = TypeAdapter(Instant)

amounts = st.decimals(min_value=Decimal("0.01"), max_value=MAX_CREDITS, places=2)


@given(value=st.text(st.characters(exclude_categories=[])))
def test_any_text_can_be_made_storable(value: str) -> None:
    made = made_storable(value)
    assert "\x00" not in made
    made.encode()
    if "\x00" not in value and not any("\ud800" <= character <= "\udfff" for character in value):
        assert made == value


@given(amount=amounts)
def test_an_amount_survives_a_round_trip_through_json(amount: Decimal) -> None:
    written = price.dump_json(amount)
    assert price.validate_json(written) == amount
    assert written == f'"{amount:.2f}"'.encode()


@pytest.mark.parametrize(("text", "value"), [("1", "1.00"), ("1.5", "1.50"), ("0.01", "0.01"), (str(MAX_CREDITS),) * 2])
def test_an_amount_has_two_decimals(text: str, value: str) -> None:
    assert str(price.validate_python(text)) == value


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "0.00",
        "-1",
        "+1",
        "01",
        "1.",
        ".5",
        "1.005",
        "1e2",
        "1_000",
        "1,5",
        " 1",
        "1\n",
        "",
        "NaN",
        "Infinity",
        "١",
    ],
    ids=repr,
)
def test_text_that_is_not_an_amount_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        price.validate_python(value)


@pytest.mark.parametrize("value", ["9" * 17, 1, 1.5, True, None, [], b"1"], ids=repr)
def test_values_that_are_not_amounts_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        price.validate_python(value)


@given(text=st.text())
def test_any_text_is_an_amount_with_two_decimals_or_refused(text: str) -> None:
    try:
        amount = price.validate_python(text)
    except ValidationError:
        return
    assert amount.as_tuple().exponent == -2
    assert 0 < amount <= MAX_CREDITS


def test_negative_amounts_are_shown_with_their_sign() -> None:
    assert money.dump_json(Decimal("-3.5")) == b'"-3.50"'


@pytest.mark.parametrize("value", [0, -1, MAX_BIGINT + 1, "x", 1.5, None])
def test_an_id_is_a_positive_bigint(value: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Id).validate_python(value)
    assert TypeAdapter(Id).validate_python(str(MAX_BIGINT)) == MAX_BIGINT


@pytest.mark.parametrize("value", ["1", 1.0, True])
def test_ids_and_quantities_in_json_are_numbers(value: Any) -> None:
    for type_ in (StrictId, Quantity):
        with pytest.raises(ValidationError):
            TypeAdapter(type_).validate_python(value)


@pytest.mark.parametrize("value", ["", " ", "\t\n", "x" * 201, "a\x00b", "\ud800"])
def test_a_name_is_not_blank_and_can_be_stored(value: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(value)


def test_text_may_be_empty_but_must_be_storable() -> None:
    assert TypeAdapter(Text).validate_python("") == ""
    with pytest.raises(ValidationError, match=r"U\+0000"):
        TypeAdapter(Text).validate_python("\x00")


def test_an_instant_without_an_offset_is_utc() -> None:
    assert instant.validate_python("2026-01-02T03:04:05") == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("value", ["11429", "-5", "1700000000.5", " 17. ", 11429, 1.5, True])
def test_a_number_is_not_an_instant(value: object) -> None:
    with pytest.raises(ValidationError, match="must be a date and time as in RFC 3339"):
        instant.validate_python(value)


def test_an_instant_with_an_offset_is_turned_into_utc() -> None:
    found = instant.validate_python("2026-01-02T03:04:05+02:00")
    assert found.tzinfo is UTC
    assert found == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    "value", ["0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z", "9001-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00"]
)
def test_an_instant_out_of_range_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="1970"):
        instant.validate_python(value)


def test_ids_made_one_after_the_other_are_in_order() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    assert {made.version for made in ids} == {7}


def test_now_is_utc() -> None:
    assert now().tzinfo is UTC


class Colour(StrEnum):
    RED = "red"
    DARK_BLUE = "dark blue"


def test_an_enum_is_kept_as_its_values() -> None:
    assert text_enum(Colour).enums == ["red", "dark blue"]
    assert allowed("colour", Colour) == "colour = ANY ('{red,dark blue}'::text[])"


@pytest.mark.parametrize("word", ["a,b", "{}", 'say "no"', "it's", "back\\slash", "", " red", "NULL"])
def test_a_word_that_an_array_would_have_to_quote_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="cannot be listed in SQL"):
        one_of("colour", ["red", word])
