"""How commands use the database, and how they show results."""

import asyncio
import getpass
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar

import typer
from pydantic_core import to_json
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import DBAPIError

from services.cli.console import CommandError, harmless, say
from services.cli.migrate import as_owner
from services.database import open_database, outcome_unknown
from services.errors import DomainError
from services.fields import now
from services.settings import Settings, get_settings
from services.skew import follow_database
from services.sql import CONTENTION, sqlstate
from services.startup import check_schema, plain_connecting, reason_of
from services.unit_of_work import UnitOfWork, background

_P = ParamSpec("_P")
ResultT = TypeVar("ResultT")
DoneT = TypeVar("DoneT")
Work: TypeAlias = Callable[[UnitOfWork], Awaitable[ResultT]]
Do: TypeAlias = Callable[[Work[ResultT]], Awaitable[ResultT]]

_TRIES = 5
_GAP = "  "
"""Between two columns."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Actor = Annotated[str | None, typer.Option(help="Who does it, for the audit trail. Default: your system user name.")]
Reason = Annotated[str, typer.Option(help="Why, for the audit trail.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
Cursor = Annotated[str | None, typer.Option(help="Continue after the page that printed this cursor.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]

_rehearses = ContextVar("rehearses", default=False)


def with_dry_run(command: Callable[_P, None]) -> Callable[..., None]:
    """Give the command the option --dry-run: what it does is checked and done, and rolled back in the end."""
    given = inspect.signature(command)
    option = inspect.Parameter("dry_run", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DryRun)

    @wraps(command)
    def run(*args: Any, dry_run: bool, **options: Any) -> None:
        token = _rehearses.set(dry_run)
        try:
            command(*args, **options)
        finally:
            _rehearses.reset(token)
        if dry_run:
            typer.echo("This was a dry run: nothing has been changed.", err=True)

    run.__signature__ = given.replace(parameters=[*given.parameters.values(), option])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, "dry_run": DryRun}
    return run


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless the user has agreed already or nothing would be changed anyway. No ends the command with code 1."""
    if not yes and not _rehearses.get():
        typer.confirm(question, abort=True, err=True)


def in_one(work: Work[ResultT], *, by_owner: bool = False) -> ResultT:
    """Do it in one unit of work, and commit. Raises `CommandError` if it is refused, or `CannotStart`.

    `by_owner` is for what only the owner of the tables may do.
    """
    return in_several([work], by_owner=by_owner)[0]


def in_several(works: Iterable[Work[ResultT]], *, by_owner: bool = False) -> list[ResultT]:
    """Do each in its own unit of work, which is committed before the next one is requested."""
    settings = as_owner(get_settings()) if by_owner else get_settings()

    async def each(do: Do[ResultT]) -> list[ResultT]:
        return [await do(work) for work in works]

    return _run(settings, each)


def watched(work: Work[ResultT], *, until: Callable[[ResultT], bool], every: float) -> ResultT:
    """Do it every so many seconds, each time in its own unit of work, until its result is the wanted one; returns that.

    Raises what `in_one` does, and `KeyboardInterrupt` after Ctrl-C.
    """

    async def again(do: Do[ResultT]) -> ResultT:
        while True:
            result = await do(work)
            if until(result):
                return result
            await asyncio.sleep(every)

    return _run(get_settings(), again)


def _run(settings: Settings, commands: Callable[[Do[ResultT]], Awaitable[DoneT]]) -> DoneT:
    """Let the commands do units of work, one after another."""

    async def run() -> DoneT:
        async with open_database(settings, "cli") as database:
            with plain_connecting(settings):
                await check_schema(database.engine, settings)
                await follow_database(database.engine)
            return await commands(lambda work: _committed(lambda: UnitOfWork(database.write), work))

    try:
        return asyncio.run(run())
    except DomainError as error:
        raise CommandError(error.detail) from error
    except (DBAPIError, OSError) as error:
        if outcome_unknown(error):
            raise CommandError(
                "the database did not confirm the commit; check whether the command took effect before repeating it"
            ) from error
        raise CommandError(f"the database refused the command: {reason_of(error)}") from error


def who(actor: str | None) -> str:
    """The actor for the audit trail."""
    return (actor or getpass.getuser())[:200]


def utc(at: datetime | None) -> datetime | None:
    """A time from an option, which is meant in UTC."""
    return None if at is None else at.replace(tzinfo=UTC)


def show_json(value: Any) -> None:
    say(to_json(value, indent=2).decode())


def show_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows below headings, in columns. Where a line would be too long for a terminal, its cells are wrapped."""
    cells = [["" if value is None else harmless(str(value)) for value in row] for row in rows]
    console = plain_console()
    widths = [max(map(cell_len, column)) for column in zip(headings, *cells, strict=True)]
    is_simple = not any("\n" in cell or "\t" in cell for row in cells for cell in row)
    if is_simple and (not console.is_terminal or sum(widths) + len(_GAP) * (len(widths) - 1) <= console.width):
        # Rich needs about a millisecond for each row, most of it to find out where to wrap.
        console.print(_line(headings, widths), style="bold", soft_wrap=True)
        for row in cells:
            say(_line(row, widths))
        return
    table = Table(*headings, box=None, header_style="bold", pad_edge=False)
    for row in cells:
        table.add_row(*row)
    console.print(table)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(set_cell_size(cell, width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def show_more(next_cursor: str | None) -> None:
    """Say how to see the next page, if there is one."""
    if next_cursor is not None:
        say(f"More with --cursor {next_cursor}")


def plain_console() -> Console:
    """Standard output. Nothing is truncated in a pipe."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=400)


def ago(at: datetime | None) -> str:
    """How long ago, or how far ahead, in words."""
    if at is None:
        return ""
    seconds = (now() - at).total_seconds()
    return f"in {lasting(-seconds)}" if seconds < 0 else f"{lasting(seconds)} ago"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number of things: `1 batch`, `2 batches`. By default the plural is `one` with an `s`."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def lasting(seconds: float | None) -> str:
    """A duration in words."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


async def _committed(open_unit_of_work: Callable[[], UnitOfWork], work: Work[ResultT]) -> ResultT:
    for left in reversed(range(_TRIES)):
        try:
            async with open_unit_of_work() if _rehearses.get() else background(open_unit_of_work) as uow:
                return await work(uow)
        except DBAPIError as error:
            # Workers keep running, so there may be deadlocks: the victim was rolled back and tries again.
            if sqlstate(error) not in CONTENTION or not left:
                raise
    raise AssertionError("the last try returns or raises")
