"""Reads the format of "Online Retail" (UCI Machine Learning Repository, CC BY 4.0): CSV, plain or gzipped.

One line of the file is one record: a quote that is never closed spoils its own line and none of those that follow.
"""

import csv
import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO

from services.cli.retail.reasons import LineReason

COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"
_LONGEST_LINE = 65_536
"""Bytes. A file without line ends must not be read into memory as a whole."""

# Order references have at most 64 characters, idempotency keys are visible ASCII, and filters list values with commas.
_INVOICE = re.compile(r"[!-+\--~]{1,64}", re.ASCII)
_QUANTITY = re.compile(r"([+-]?[0-9]{1,15})(\.0*)?", re.ASCII)
_PRICE = re.compile(r"-?[0-9]{1,15}(\.[0-9]{0,20})?", re.ASCII)
# Written by tools that treat a column with gaps as floating-point numbers.
_FLOAT_ID = re.compile(r"([0-9]+)\.0*", re.ASCII)
_NO_CUSTOMER = frozenset({"", "nan", "null", "none"})


class FileError(Exception):
    """The file cannot be read or is not in this format; the message says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an invoice. `price` is for one unit, as written; `customer` is None if the file has none."""

    invoice: str
    code: str
    description: str
    quantity: int
    price: Decimal
    customer: str | None


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not usable. `invoice` is None if not even that can be read."""

    reason: LineReason
    invoice: str | None = None


class RetailFile:
    """A file that is read once, from start to end, one line in memory at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the uncompressed content read so far: a file and its gzip have the same."""
        return self._hash.hexdigest()

    def lines(self) -> Iterator[Line | BadLine]:
        """Every line after the header. Raises `FileError`."""
        try:
            with self._open() as file:
                numbered = self._raw_lines(file)
                columns = self._header(next(numbered, b""))
                for raw in numbered:
                    yield _parse(raw, columns)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise FileError(f"{self.path} is damaged: {error}") from error
        except OSError as error:
            raise FileError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def _open(self) -> BinaryIO:
        with self.path.open("rb") as file:
            packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        return gzip.open(self.path, "rb") if packed else self.path.open("rb")  # type: ignore[return-value]

    def _raw_lines(self, file: BinaryIO) -> Iterator[bytes]:
        """Lines with their line ends; of a line that is too long, only its beginning."""
        while raw := file.readline(_LONGEST_LINE):
            self._hash.update(raw)
            rest = raw
            while len(rest) == _LONGEST_LINE and not rest.endswith(b"\n"):
                rest = file.readline(_LONGEST_LINE)
                self._hash.update(rest)
            yield raw

    def _header(self, raw: bytes) -> Mapping[str, int]:
        names = _fields(_decode(raw).removeprefix(_BYTE_ORDER_MARK)) or []
        places = {name.strip().lower(): place for place, name in enumerate(names)}
        missing = [name for name in COLUMNS if name.lower() not in places]
        if missing:
            raise FileError(
                f"{self.path} is not in the Online Retail format: its first line lacks the column"
                f"{'' if len(missing) == 1 else 's'} {', '.join(missing)}. Expected: {','.join(COLUMNS)}"
            )
        return {name: places[name.lower()] for name in COLUMNS} | {"": len(names)}


def _parse(raw: bytes, columns: Mapping[str, int]) -> Line | BadLine:
    if not raw.strip():
        return BadLine(LineReason.blank)
    fields = _fields(_decode(raw)) if len(raw) < _LONGEST_LINE else None
    if fields is None or len(fields) != columns[""]:
        return BadLine(LineReason.malformed)
    invoice, code, description, quantity, _, price, customer, _ = (fields[columns[name]].strip() for name in COLUMNS)
    if not _INVOICE.fullmatch(invoice):
        return BadLine(LineReason.malformed)
    pieces = _QUANTITY.fullmatch(quantity)
    if pieces is None or not _PRICE.fullmatch(price) or not code:
        return BadLine(LineReason.malformed, invoice)
    return Line(invoice, code, description, int(pieces[1]), Decimal(price), _customer(customer))


def _fields(line: str) -> list[str] | None:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return None


def _decode(raw: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")


def _customer(text: str) -> str | None:
    if text.lower() in _NO_CUSTOMER:
        return None
    number = _FLOAT_ID.fullmatch(text)
    return number[1] if number else text
