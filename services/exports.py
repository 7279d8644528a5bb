"""Rows as lines of text, in pieces: CSV (RFC 4180) and newline-delimited JSON."""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from pydantic_core import to_json

# What spreadsheets treat as the beginning of a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class Format(StrEnum):
    """How rows are written; the ending of a file's name."""

    csv = "csv"
    ndjson = "ndjson"


MEDIA_TYPES = {Format.csv: "text/csv; charset=utf-8; header=present", Format.ndjson: "application/x-ndjson"}


def documented(form: Format) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI documentation of an export."""
    return {200: {"content": {MEDIA_TYPES[form].partition(";")[0]: {"schema": {"type": "string"}}}}}


class Lines(Protocol):
    """Turns rows into a piece of an export. The first piece also has what comes before all rows."""

    def piece(self, rows: Iterable[Sequence[object]]) -> bytes: ...


class CsvLines:
    """Lines end with CRLF, and values with a comma, a quote or a line break are quoted. The first has the headings.

    Times are passed as `instant`, and text that is not ours as `harmless`.
    """

    def __init__(self, headings: Sequence[str]) -> None:
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text, lineterminator="\r\n")
        self._writer.writerow(headings)

    def piece(self, rows: Iterable[Sequence[object]]) -> bytes:
        self._writer.writerows(rows)
        taken = self._text.getvalue().encode()
        self._text.seek(0)
        self._text.truncate()
        return taken


class JsonLines:
    """One JSON object for each row, as in the API: amounts are strings, times are RFC 3339."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def piece(self, rows: Iterable[Sequence[object]]) -> bytes:
        return b"".join(to_json(dict(zip(self._names, row, strict=True))) + b"\n" for row in rows)


def instant(value: datetime) -> str:
    """A time in UTC as in the API."""
    return value.isoformat().replace("+00:00", "Z")


def harmless(text: str) -> str:
    """Prefix what a spreadsheet would take for a formula with an apostrophe, so that it is shown as text."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


async def begun(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces, the first of which is made now: an error in the request can still be answered as one."""
    first = await anext(pieces)

    async def all_of_them() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return all_of_them()
