"""`waybill audit-log`: who did what."""

from datetime import datetime
from typing import Annotated

import typer

from services.acting import Action
from services.audit.log import service
from services.audit.log.schemas import ActPublic, Wanted
from services.cli.console import plain_errors, say
from services.cli.run import AsJson, in_one, show_json, show_table

Since = Annotated[datetime | None, typer.Option(help="Only from this time on (UTC).")]
Until = Annotated[datetime | None, typer.Option(help="Only before this time (UTC).")]


def audit_log(
    user: Annotated[
        str | None,
        typer.Option(help="An e-mail address: acts of this user, and acts on them or their account."),
    ] = None,
    actor: Annotated[str | None, typer.Option(help="Who did it, such as user:12 or job:expire.")] = None,
    action: Annotated[Action | None, typer.Option(help="What was done.", show_choices=False)] = None,
    what: Annotated[str | None, typer.Option("--object", help="What it was done to, such as account/7.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The most entries to show.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show who did what, when and why, newest first.

    Examples: `--user bea@example.com --action credits.top_up`, `--object order/...`, `--actor user:12`.
    """
    with plain_errors():
        wanted = Wanted(user, actor, action, what, since, until)
        found = in_one(lambda uow: service.find(uow, wanted, limit))
        if as_json:
            show_json(found)
            return
        show_table(["at", "who", "from", "what", "to", "times", "why", "details"], map(_line, found))
        if len(found) == limit:
            say(f"There may be more: these are the newest {limit}. Use --limit or --until.")


def _line(one: ActPublic) -> list[object]:
    details = ", ".join(f"{name} {value}" for name, value in one.details.items())
    who = one.actor if one.user_id is None or one.actor == f"user:{one.user_id}" else f"{one.actor} of {one.user_id}"
    return [f"{one.at:%Y-%m-%d %H:%M:%S}", who, one.address, one.action, one.object, one.number, one.reason, details]
