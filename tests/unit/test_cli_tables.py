"""Tables of commands: quick where nothing has to be wrapped, and otherwise as Rich prints them."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console
from rich.table import Table

from services.cli import run

HEADINGS = ["position", "name", "note"]
ROWS: list[list[object]] = [[number, "ü日本" * (number % 4), None if number % 3 else "a  b"] for number in range(20)]


def printed(monkeypatch: pytest.MonkeyPatch, rows: Sequence[Sequence[object]], width: int | None = None) -> list[str]:
    """The lines that the table has in a pipe, or in a terminal of this width."""
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    if width is not None:
        terminal = Console(file=output, width=width, force_terminal=True, color_system=None, highlight=False)
        monkeypatch.setattr(run, "plain_console", lambda: terminal)
    run.show_table(HEADINGS, rows)
    return [line.rstrip() for line in output.getvalue().splitlines()]


def by_rich(rows: Sequence[Sequence[object]], width: int) -> list[str]:
    output = io.StringIO()
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    Console(file=output, width=width, color_system=None, highlight=False, markup=False).print(table)
    return [line.rstrip() for line in output.getvalue().splitlines()]


@pytest.mark.parametrize("width", [None, 80])
def test_a_table_that_fits_looks_as_rich_prints_it(monkeypatch: pytest.MonkeyPatch, width: int | None) -> None:
    monkeypatch.setattr(run, "Table", None)
    assert printed(monkeypatch, ROWS, width) == by_rich(ROWS, 80)


def test_in_a_narrow_terminal_and_with_line_breaks_cells_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    long: list[list[object]] = [[1, "words " * 10, "x"]]
    assert printed(monkeypatch, long, 40) == by_rich(long, 40)
    assert len(by_rich(long, 40)) > 2
    several: list[list[object]] = [[1, "one\ntwo", "x"]]
    assert printed(monkeypatch, several, 80) == by_rich(several, 80)


def test_in_a_pipe_no_line_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(printed(monkeypatch, [[1, "x" * 1000, "\x1b[31m"]])) == 2
    assert printed(monkeypatch, [[1, "", "\x1b[31m"]])[1].endswith("\\u001b[31m")
