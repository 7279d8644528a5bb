"""Reading the Online Retail format: what is understood, what is counted as bad, what is refused whole."""

import gzip
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from services.cli.retail.reasons import LineReason
from services.cli.retail.source import BadLine, FileError, Line, RetailFile

HEADER = b"InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
GOOD = b"536365,85123A,WHITE HANGING HEART,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom\n"
GOOD_LINE = Line("536365", "85123A", "WHITE HANGING HEART", 6, Decimal("2.55"), "17850")


def read(tmp_path: Path, content: bytes) -> Sequence[Line | BadLine]:
    path = tmp_path / "retail.csv"
    path.write_bytes(content)
    return list(RetailFile(path).lines())


def only(tmp_path: Path, line: bytes) -> Line | BadLine:
    (read_line,) = read(tmp_path, HEADER + line)
    return read_line


def test_plain_and_packed_files_give_the_same_lines_and_the_same_digest(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.csv", tmp_path / "packed.csv"
    plain.write_bytes(HEADER + GOOD)
    # Told by its content: the name does not say that it is packed.
    packed.write_bytes(gzip.compress(HEADER + GOOD))
    files = [RetailFile(plain), RetailFile(packed)]
    assert [list(file.lines()) for file in files] == [[GOOD_LINE], [GOOD_LINE]]
    assert files[0].digest == files[1].digest


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_line_ends_do_not_matter(tmp_path: Path, end: bytes) -> None:
    assert only(tmp_path, GOOD.rstrip() + end) == GOOD_LINE


def test_columns_are_found_by_name_whatever_their_order_case_and_byte_order_mark(tmp_path: Path) -> None:
    header = b"\xef\xbb\xbfCountry,customerid,UnitPrice,InvoiceDate,Quantity,Description,StockCode,InvoiceNo\n"
    line = b"United Kingdom,17850,2.55,2010-12-01,6,WHITE HANGING HEART,85123A,536365\n"
    assert read(tmp_path, header + line) == [GOOD_LINE]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("£ OFF".encode(), "£ OFF"),
        (b"\xa3 OFF", "£ OFF"),
        (b"\x81 \xa3 OFF", "\x81 £ OFF"),
        (b'"A ""B"", C"', 'A "B", C'),
    ],
    ids=["utf-8", "cp1252", "latin-1", "quoted"],
)
def test_descriptions_survive_their_encoding(tmp_path: Path, written: bytes, meant: str) -> None:
    line = only(tmp_path, GOOD.replace(b"WHITE HANGING HEART", written))
    assert isinstance(line, Line)
    assert line.description == meant


@pytest.mark.parametrize("customer", [b"", b"nan", b"NULL", b"  "])
def test_a_missing_customer_is_none(tmp_path: Path, customer: bytes) -> None:
    line = only(tmp_path, GOOD.replace(b"17850.0", customer))
    assert isinstance(line, Line)
    assert line.customer is None


@pytest.mark.parametrize(
    "line",
    [
        b"536365,85123A,too few\n",
        GOOD.replace(b"United Kingdom", b"United Kingdom,and more"),
        GOOD.replace(b"536365", b""),
        GOOD.replace(b"536365", b"53 63"),
        GOOD.replace(b"536365", b"53\x006"),
        GOOD.replace(b"536365", b"5" * 65),
        GOOD.replace(b"WHITE", b'"WHITE'),
        GOOD.replace(b"WHITE", b"W" * 70_000),
    ],
    ids=["short", "long", "no invoice", "blank inside", "NUL", "endless invoice", "open quote", "endless line"],
)
def test_an_unreadable_line_costs_only_itself(tmp_path: Path, line: bytes) -> None:
    assert read(tmp_path, HEADER + line + GOOD) == [BadLine(LineReason.malformed), GOOD_LINE]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b",6,", b",six,"),
        (b",6,", b",6.5,"),
        (b"2.55", b"cheap"),
        (b"2.55", b"1e400"),
        (b"2.55", b"NaN"),
        (b"85123A", b""),
    ],
)
def test_a_line_with_a_broken_field_is_counted_for_its_invoice(tmp_path: Path, old: bytes, new: bytes) -> None:
    assert only(tmp_path, GOOD.replace(old, new)) == BadLine(LineReason.malformed, "536365")


def test_blank_lines_are_counted_as_such(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER + b"\n  \r\n" + GOOD) == [BadLine(LineReason.blank)] * 2 + [GOOD_LINE]


def test_a_file_of_another_format_is_refused_naming_the_missing_columns(tmp_path: Path) -> None:
    header = HEADER.replace(b"UnitPrice", b"Price").replace(b"CustomerID", b"Customer ID")
    with pytest.raises(FileError, match="lacks the columns UnitPrice, CustomerID"):
        read(tmp_path, header + GOOD)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="lacks the columns InvoiceNo"):
        read(tmp_path, b"")


def test_a_truncated_gzip_is_refused_as_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is damaged"):
        read(tmp_path, gzip.compress(HEADER + GOOD * 1000)[:-20])


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(FileError, match="cannot be read"):
            list(RetailFile(path).lines())
