"""`waybill events`: read the event log."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated
from uuid import UUID

import typer
from pydantic_core import to_json
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.cli.console import CommandError, plain_errors, say, until_interrupted
from services.database import Database, open_database
from services.errors import DomainError
from services.outbox.log import service as log
from services.outbox.log.schemas import Bookmark, LoggedEvent
from services.settings import get_settings
from services.skew import follow_database
from services.startup import check_schema, plain_connecting, reason_of
from services.unit_of_work import UnitOfWork

_PAGE = 500
_LOOK_SECONDS = 0.5
_SAID_OF_PAYLOAD = 200

events = typer.Typer(help="Read the event log.", no_args_is_help=True)


@events.callback()
def _group() -> None:
    """Read the event log."""


@events.command()
def tail(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new events as they are committed.")] = False,
    number: Annotated[int, typer.Option("--number", "-n", min=0, max=10_000, help="Begin with this many.")] = 10,
    event_type: Annotated[
        list[str] | None, typer.Option("--type", help="Only events of this type; may be given several times.")
    ] = None,
    order: Annotated[UUID | None, typer.Option(help="Only events of this order.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as JSON, one a line.")] = False,
) -> None:
    """Print the last events of the log, and with --follow each new one, in the order of their commits.

    An event whose transaction commits late comes late, but no event is left out. It looks for the last events among the
    newest 50,000 of the log. Ctrl-C ends it.
    """
    printer = _Printer(None if order is None else f"order/{order}", as_json=as_json)
    with plain_errors(), until_interrupted():
        try:
            asyncio.run(_tail(printer, number, event_type or None, follow=follow))
        except DomainError as error:
            raise CommandError(error.detail) from error
        except (DBAPIError, OSError) as error:
            raise CommandError(f"the log cannot be read: {reason_of(error)}") from error


class _Printer:
    """Prints the events of one aggregate, or all."""

    def __init__(self, aggregate: str | None, *, as_json: bool) -> None:
        self.aggregate = aggregate
        self._as_json = as_json

    def show(self, found: Sequence[LoggedEvent]) -> bool:
        """Print the events; False if no one reads them any longer, such as `head` after enough lines."""
        wanted = (event for event in found if self.aggregate is None or event.aggregate == self.aggregate)
        return all(say(to_json(asdict(event)).decode() if self._as_json else _line(event)) for event in wanted)


def _line(event: LoggedEvent) -> str:
    payload = to_json(event.payload).decode()
    if len(payload) > _SAID_OF_PAYLOAD:
        payload = f"{payload[:_SAID_OF_PAYLOAD]}..."
    at = f"{event.occurred_at:%Y-%m-%d %H:%M:%S.%f}"[:-3]
    return f"{at}  {event.position:>8}  {event.type:<24}  {event.aggregate}  {event.actor or '-'}  {payload}"


async def _tail(printer: _Printer, number: int, types: Sequence[str] | None, *, follow: bool) -> None:
    settings = get_settings()
    async with open_database(settings, "cli") as database:
        with plain_connecting(settings):
            await check_schema(database.engine, settings)
            await follow_database(database.engine)
        async with UnitOfWork(database.write) as uow:
            found, place = await log.tail(uow, number, types, printer.aggregate)
        heard = printer.show(found)
        complaining = False
        while follow and heard:
            try:
                found, following = await _next(database, place, types)
            except (DBAPIError, PoolTimeout, OSError) as error:
                # The place is kept: what is committed meanwhile is printed afterwards.
                if not complaining:
                    typer.echo(f"the log cannot be read ({reason_of(error)}); still trying ...", err=True)
                complaining = True
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            complaining = False
            heard = printer.show(found)
            if following == place:
                await asyncio.sleep(_LOOK_SECONDS)
            place = following


async def _next(
    database: Database, place: Bookmark, types: Sequence[str] | None
) -> tuple[Sequence[LoggedEvent], Bookmark]:
    async with UnitOfWork(database.write) as uow:
        return await log.follow(uow, place, _PAGE, types)
