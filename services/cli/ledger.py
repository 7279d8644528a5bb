"""`waybill ledger audit`: recompute everything, and report what does not agree."""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer
from sqlalchemy.exc import DBAPIError

from services.cli.console import NOT_FINISHED, REFUSED, CommandError, plain_errors, say
from services.cli.migrate import check_database
from services.settings import Settings, get_settings
from services.startup import reason_of

if TYPE_CHECKING:
    from services.audit.schemas import AuditResult, Difference


ledger = typer.Typer(help="Check that the books balance.", no_args_is_help=True)


@ledger.command("audit")
def audit_ledger(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: the differences, then the summary.")
    ] = False,
    head: Annotated[
        str | None,
        typer.Option(help="A head of the audit log from a worker's log, as POSITION:HASH; it must still be there."),
    ] = None,
) -> None:
    """Recompute accounts, transfers, orders, stock and the outbox from their tables, and print each difference.

    The audit reads a single snapshot of the database (of the replica, if one is configured) and blocks no writers.

    Exit codes: 0 everything agrees; 1 something does not; 3 the audit could not be completed, or not within
    WAYBILL_AUDIT_TIME_LIMIT.
    """
    with plain_errors(NOT_FINISHED):
        settings = get_settings()
        check_database(settings)
        printer = _JsonPrinter() if as_json else _Printer()
        try:
            result = asyncio.run(_audit(settings, printer, head))
        except (DBAPIError, OSError) as error:
            raise CommandError(f"the audit could not be completed: {reason_of(error)}") from error
        printer.end(result)
    if result.differences:
        raise typer.Exit(REFUSED)


async def _audit(settings: Settings, printer: "_Printer", head: str | None = None) -> "AuditResult":
    # Imported here: this loads all domains, which the other commands do not need.
    from services.audit.log.schemas import Head
    from services.audit.service import AuditNotFinished, audit
    from services.database import open_database
    from services.unit_of_work import UnitOfWork

    try:
        noted = None if head is None else Head.parse(head)
    except ValueError as error:
        raise typer.BadParameter(
            f"{head!r} is not a head of the audit log, such as 12:{'0' * 8}...: {error}", param_hint="--head"
        ) from error
    async with open_database(settings, "audit") as database, UnitOfWork(await database.look_and_read()) as uow:
        try:
            return await audit(uow, settings.audit_time_limit, printer.tell, noted)
        except AuditNotFinished as error:
            raise CommandError(str(error)) from error


class _Printer:
    """Prints a line for each difference as it is found, and one for the summary."""

    def tell(self, difference: "Difference") -> None:
        say(f"{difference.kind.value}: {difference.message} (expected {difference.expected})")

    def end(self, result: "AuditResult") -> None:
        found = "everything agrees" if not result.differences else f"{result.differences:,} differences"
        say(f"Checked {result.rows_checked:,} rows in {result.seconds:.1f} s: {found}.")


class _JsonPrinter(_Printer):
    """Prints one object, piece by piece: there may be more differences than fit in memory."""

    def __init__(self) -> None:
        self._separator = '{"differences": [\n'

    def tell(self, difference: "Difference") -> None:
        say(self._separator + json.dumps(difference.as_json()))
        self._separator = ","

    def end(self, result: "AuditResult") -> None:
        summary = {
            "started_at": result.started_at.isoformat(),
            "seconds": round(result.seconds, 3),
            "rows_checked": result.rows_checked,
            "number_of_differences": result.differences,
        }
        opened = "" if result.differences else self._separator
        say(f"{opened}], {json.dumps(summary)[1:]}")
