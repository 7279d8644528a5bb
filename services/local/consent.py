"""`waybill up` changes a database that it has not made only if the user agrees."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from services.cli.console import CommandError
from services.settings import Environment

_SEED = ", and create demo users, among them two operators and an admin, with products and credits"


def agree_to_change(given: Mapping[str, Any], *, agreed: bool) -> None:
    """Ask before a given database is changed, unless the user has agreed already.

    Raises `CommandError`, which says what would be done where, if there is no terminal or the answer is no.
    """
    changes = list(changes_of(given))
    if agreed or not changes:
        return
    what = f"`waybill up` would {'; it would also '.join(changes)}."
    if sys.stdin.isatty() and typer.confirm(f"{what}\nContinue?", err=True):
        return
    raise CommandError(
        f"{what}\nNothing has been changed. If you want that, run `waybill up --seed`. To use embedded databases, "
        "remove WAYBILL_DATABASE_URL and WAYBILL_ANALYTICS_URL from the environment and from .env"
    )


def changes_of(given: Mapping[str, Any]) -> Iterator[str]:
    """What would be done to which of the databases in these settings, which are not validated yet."""
    is_development = (given.get("environment") or Environment.development) == Environment.development
    for name, then in (("database_url", _SEED if is_development else ""), ("analytics_url", "")):
        if address := given.get(name):
            yield f"upgrade {_named(address)} (WAYBILL_{name.upper()}) to the newest schema{then}"


def _named(address: str) -> str:
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        # The settings refuse it, and say why, before anything is done.
        return "a database"
    host = url.host or url.query.get("host") or "this machine"
    port = f" port {url.port}" if url.port else ""
    return f"the database {url.database or url.username} on {host}{port}"
