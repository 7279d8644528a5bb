"""Column and schema types that several domains share."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Self
from uuid import UUID

import uuid_utils.compat
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from sqlalchemy import DateTime, Enum, Numeric, text
from sqlalchemy.orm import declared_attr
from sqlmodel import Field as Column
from sqlmodel import SQLModel

from services.clock import CLOCK
from services.errors import MOST_FAULTS

MAX_BIGINT = 2**63 - 1
"""Largest value of a PostgreSQL bigint."""

TIMESTAMPTZ: Any = DateTime(timezone=True)

CREDITS: Any = Numeric(18, 2)
"""A column of credits."""

MAX_CREDITS = Decimal("9999999999999999.99")
"""Largest amount a NUMERIC(18, 2) column holds."""

CENT = Decimal("0.01")

_UUID_TIME = 80
"""Bits of a UUIDv7 after its time, which is in milliseconds."""
_CLOSE = 1000
"""Milliseconds by which an id's time may be off."""
_MONEY = re.compile(r"(0|[1-9][0-9]{0,15})(\.[0-9]{1,2})?", re.ASCII)
_NUMBER = re.compile(r"\s*[-+]?[0-9_.]+\s*")
_PLAIN_WORD = re.compile(r"(?!null$)[\w>]([\w> ]*[\w>])?", re.ASCII | re.IGNORECASE)


class Schema(SQLModel):
    """What comes in or goes out. It shares its fields with a table by way of a base, and is never a table itself.

    Pydantic alone makes it: SQLModel's own ways are for tables, and together take twice the time.
    """

    # A reply has each field, even one that has a default. SQLModel's type of this is private.
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)  # type: ignore[assignment]

    __init__ = BaseModel.__init__

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return object.__new__(cls)


class RequestBody(Schema):
    """What a client sends. An unknown field is an error, since it is probably a typo."""

    model_config = ConfigDict(extra="forbid")


class Changes(RequestBody):
    """What a client changes of something. A field that is left out keeps its value."""

    @model_validator(mode="after")
    def _nothing_is_null(self) -> Self:
        empty = [name for name in self.model_fields_set if getattr(self, name) is None]
        if empty:
            raise ValueError(f"{', '.join(sorted(empty))} cannot be null; omit a field to keep its current value")
        return self


class Versioned(SQLModel):
    """A row with a version, which grows by one with each change. It is the row's ETag.

    Every update is conditional on it: an update of a stale copy raises `sqlalchemy.orm.exc.StaleDataError`.
    """

    version: int = Column(default=1, sa_column_kwargs={"server_default": text("1")})

    @declared_attr.directive
    def __mapper_args__(cls) -> dict[str, Any]:  # noqa: N805
        # eager_defaults: RETURNING fetches the new version and times; an expired attribute cannot be awaited.
        return {"version_id_col": cls.__table__.c.version, "eager_defaults": True}  # type: ignore[attr-defined]


class SoftDeletable(SQLModel):
    """A row that can be hidden from every read and restored. What is unique in it stays taken."""

    deleted_at: datetime | None = Column(default=None, sa_type=TIMESTAMPTZ)


def picked(source: object, names: Iterable[str]) -> dict[str, Any]:
    """The values of the fields with these names."""
    return {name: getattr(source, name) for name in names}


def text_enum(values: type[StrEnum]) -> Any:
    """A text column that holds the enum's *values*. The CHECK that limits it is written with the table."""
    return Enum(
        values,
        native_enum=False,
        create_constraint=False,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )


def allowed(column: str, values: type[StrEnum]) -> str:
    """The CHECK expression that limits a text column to the enum's values (see `one_of`)."""
    return one_of(column, [member.value for member in values])


def one_of(text: str, words: Sequence[str]) -> str:
    """The SQL condition that `text` is one of the words.

    One array, not `IN (...)`: PostgreSQL parses a check again for each statement that writes to the table, and `IN` is
    one expression per word. Raises `ValueError` for a word that would have to be quoted there.
    """
    for word in words:
        if not _PLAIN_WORD.fullmatch(word):
            raise ValueError(f"{word!r} cannot be listed in SQL: only letters, digits, '_', '>' and spaces are allowed")
    return f"{text} = ANY ('{{{','.join(words)}}}'::text[])"


def now() -> datetime:
    """The current time in UTC, by the database's clock if this process has compared the two (`services/clock.py`)."""
    return datetime.fromtimestamp(CLOCK.time(), UTC)


def new_id() -> UUID:
    """A fresh UUIDv7 (RFC 9562): ordered by time, so that inserts append to their index.

    Its time decides in which monthly partition of the event log an event is kept, so it is within a second of `now()`.
    The library takes the time from the host and keeps the ids of one millisecond in order; only a wrong time is
    replaced.
    """
    made = uuid_utils.compat.uuid7()
    ahead = (made.int >> _UUID_TIME) - int(CLOCK.time() * 1000)
    return made if abs(ahead) <= _CLOSE else UUID(int=made.int - (ahead << _UUID_TIME))


def id_at(moment: datetime) -> UUID:
    """A lower bound of the ids made from that moment on, above all earlier ones. No id is from before 1970."""
    return UUID(int=max(0, int(moment.timestamp() * 1000)) << _UUID_TIME)


def made_around(moment: datetime) -> tuple[UUID, UUID]:
    """The ids between which one is that was made with `new_id` while `now()` was this time."""
    spread = timedelta(milliseconds=2 * _CLOSE)
    return id_at(moment - spread), id_at(moment + spread)


def time_of(event_id: UUID) -> datetime:
    """When a UUIDv7 was made, to the millisecond."""
    return datetime.fromtimestamp(seconds_of(event_id), UTC)


def seconds_of(event_id: UUID) -> float:
    """When a UUIDv7 was made, in seconds since the epoch, to the millisecond."""
    return (event_id.int >> _UUID_TIME) / 1000


def sha256_of(secret: str) -> bytes:
    """What is stored of a random secret, which needs no slow hash. A text that cannot be encoded is none of them."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def storable(value: str) -> str:
    """Refuse what PostgreSQL's text cannot hold: U+0000 and lone surrogates. Raises `ValueError`."""
    if "\x00" in value:
        raise ValueError("must not contain the character U+0000")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must not contain half of a surrogate pair") from error
    return value


def made_storable(value: str) -> str:
    """The same text as PostgreSQL can store it: without U+0000, and with `?` for lone surrogates."""
    return value.replace("\x00", "").encode("utf-8", "replace").decode()


def _parse_money(value: object) -> Decimal:
    if isinstance(value, Decimal):
        value = format(value, "f")
    if not isinstance(value, str) or not _MONEY.fullmatch(value):
        raise ValueError('must be a string with at most 16 digits and two decimals, such as "12.50"')
    return Decimal(value).quantize(CENT)


def _positive(value: Decimal) -> Decimal:
    if value <= 0:
        raise ValueError("must be greater than zero")
    return value


def _parse_amount(value: object) -> Decimal:
    try:
        return _positive(_parse_money(value))
    except ValueError as error:
        raise PydanticCustomError("amount_invalid", "{reason}", {"reason": str(error)}) from error


def _parse_signed_amount(value: object) -> Decimal:
    if isinstance(value, Decimal):
        value = format(value, "f")
    if isinstance(value, str) and value.startswith("-"):
        return -_parse_amount(value[1:])
    return _parse_amount(value)


def typed_id(text: str) -> int | None:
    """The id that someone has typed into a field that also takes other text; None if it is not an id."""
    # No id is larger.
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def _not_a_number(value: object) -> object:
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        raise ValueError("must be a date and time as in RFC 3339, such as 2026-01-31T12:00:00Z")
    return value


def _in_calendar(value: datetime) -> datetime:
    if not 1970 <= value.year <= 9000:
        raise ValueError("must be between the years 1970 and 9000")
    return _in_utc(value)


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError("must be between the years 1 and 9999 in UTC") from error


def _two_decimals(value: Decimal) -> str:
    return format(value.quantize(CENT), "f")


def _some_faults(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    try:
        return validate(value)
    except ValidationError as error:
        if error.error_count() > _MANY_FAULTS and isinstance(value, list):
            validate(value[: _end_of_faults(value, validate)])
        raise


def _end_of_faults(elements: list[object], validate: ValidatorFunctionWrapHandler) -> int:
    """How many of the elements have at least as many faults as a reply lists."""
    faults = 0
    for number, element in enumerate(elements, start=1):
        try:
            validate([element])
        except ValidationError as error:
            faults += error.error_count()
        if faults >= MOST_FAULTS:
            return number
    return len(elements)


_MONEY_SCHEMA = WithJsonSchema({"type": "string", "pattern": r"^(0|[1-9][0-9]{0,15})(\.[0-9]{1,2})?$"})

_MANY_FAULTS = 10 * MOST_FAULTS

SOME_FAULTS = WrapValidator(_some_faults)
"""Of a list with very many faults: it has those up to the element with the last one that a reply lists.

To find all faults is quick, but not to make a list of them.
"""

Text = Annotated[str, AfterValidator(storable)]
"""Any text PostgreSQL can hold."""

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S"), AfterValidator(storable)]
"""A name for people: 1 to 200 characters, not all blank."""

Id = Annotated[int, Field(ge=1, le=MAX_BIGINT)]
"""A bigint id in a path or query."""

StrictId = Annotated[int, Field(strict=True, ge=1, le=MAX_BIGINT)]
"""A bigint id as a JSON number."""

Quantity = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
"""A number of units, as a JSON number."""

Price = Annotated[
    Decimal, BeforeValidator(_parse_money), AfterValidator(_positive), PlainSerializer(_two_decimals), _MONEY_SCHEMA
]
"""Credits, more than zero, as a JSON string with at most two decimals."""

Amount = Annotated[Decimal, BeforeValidator(_parse_amount), PlainSerializer(_two_decimals), _MONEY_SCHEMA]
"""Credits to be moved: written like a price; anything else is an `amount_invalid`."""

SignedAmount = Annotated[
    Decimal,
    BeforeValidator(_parse_signed_amount),
    PlainSerializer(_two_decimals),
    WithJsonSchema({"type": "string", "pattern": r"^-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,2})?$"}),
]
"""Credits to give, or to take if negative; zero, like anything else, is an `amount_invalid`."""

Money = Annotated[
    Decimal,
    PlainSerializer(_two_decimals, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^-?[0-9]+\.[0-9]{2}$"}),
]
"""Credits in a reply: a JSON string with two decimals."""

Instant = Annotated[datetime, BeforeValidator(_not_a_number), AfterValidator(_in_calendar)]
"""A point in time; UTC if it has no offset. Pydantic alone would take a number for seconds since 1970."""

Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""Any point in time that a row may have, which a client cannot choose; UTC if it has no offset."""
