"""`waybill users`: list users, create them, change roles, reset second factors, and export and erase personal data.

Access to the database is the authority for this: it is how an installation gets its first admins.
"""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sqlalchemy.exc import DBAPIError

from services.cli.console import CommandError, plain_errors, say
from services.cli.migrate import check_database
from services.cli.run import AsJson, Cursor, Yes, ago, confirm, in_one, show_json, show_more, show_table, with_dry_run
from services.errors import DomainError
from services.fields import typed_id
from services.settings import Settings, get_settings
from services.startup import reason_of
from services.users.rights import Role
from services.users.totp.service import reset

if TYPE_CHECKING:
    from services.unit_of_work import UnitOfWork
    from services.users.models import User
    from services.users.personal.service import Rows

users = typer.Typer(
    help="List users, create them, change a role, reset a second factor, and export and erase personal data.",
    no_args_is_help=True,
)

Whom = Annotated[str, typer.Argument(help="The user's id or e-mail address.")]

Email = Annotated[str, typer.Argument(help="The address to sign in with.")]
Name = Annotated[str | None, typer.Option(help="The user's full name. Default: the role.")]
Generate = Annotated[
    bool, typer.Option("--generate", help="Generate a random password and print it, instead of asking for one.")
]


@users.command("list")
def list_users(
    role: Annotated[Role | None, typer.Option(help="Only users with this role.")] = None,
    email: Annotated[str | None, typer.Option(help="Only users whose address contains this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """List users by id. Deleted users are left out."""
    # Imported here: the listing loads what the other commands do not need.
    from services.query import PageQuery
    from services.users.repository import USERS, WITHOUT_PASSWORD

    filters = ([] if role is None else [f"role:eq:{role.value}"]) + ([] if email is None else [f"email:like:{email}"])
    wanted = PageQuery(filters, limit=limit, cursor=cursor)
    with plain_errors():
        page = in_one(lambda uow: uow.users.list_page(USERS, wanted, options=[WITHOUT_PASSWORD]))
        if as_json:
            show_json({"data": [shown(user) for user in page.data], "next_cursor": page.next_cursor})
            return
        show_table(
            ["id", "email", "name", "role", "active", "second factor", "created"],
            (
                [
                    user.id,
                    user.email,
                    user.full_name,
                    user.role.value,
                    "yes" if user.is_active else "no",
                    "yes" if user.totp_since else "no",
                    ago(user.created_at),
                ]
                for user in page.data
            ),
        )
        show_more(page.next_cursor)


@users.command()
def show(user: Whom, as_json: AsJson = False) -> None:
    """Show a user with their role, second factor and credits, even if the user is deleted."""
    with plain_errors():
        found = in_one(lambda uow: _show(uow, user))
        if as_json:
            show_json(found)
            return
        for name, value in found.items():
            say(f"{name:14} {'' if value is None else value}".rstrip())


def shown(user: "User") -> dict[str, Any]:
    """What commands show of a user."""
    names = ("id", "email", "full_name", "role", "role_since", "is_active", "totp_since", "created_at", "deleted_at")
    return {name: getattr(user, name) for name in names}


async def _show(uow: "UnitOfWork", wanted: str) -> dict[str, Any]:
    from services.users.personal import service

    user_id = await service.find(uow, _wanted(wanted))
    user = await uow.users.get(user_id) or await uow.users.get_deleted(user_id)
    account = await uow.ledger.account_of(user_id)
    if user is None or account is None:
        raise CommandError(f"there is no user {wanted}")
    return {**shown(user), "account": account.id, "posted": account.posted, "held": account.held}


@users.command()
@with_dry_run
def reset_totp(email: Annotated[str, typer.Argument(help="The user's e-mail address.")]) -> None:
    """Remove the second factor of a user who has lost it, recovery codes included. All their sessions end.

    Until they set up another one, their password alone signs them in: make sure that the user is the one who asks.
    """
    with plain_errors():
        in_one(lambda uow: reset(uow, email))
    say(f"{email} no longer has a second factor, and is signed out everywhere.")


@users.command()
def create(
    email: Email,
    role: Annotated[Role, typer.Option(help="What the user may do: see docs/reference/roles.md.")],
    name: Name = None,
    generate: Generate = False,
) -> None:
    """Create a user with a role."""
    with plain_errors():
        settings = get_settings()
        check_database(settings)
        password = new_password() if generate else typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        try:
            asyncio.run(_create(settings, email, name or role.value.capitalize(), password, role))
        except DomainError as error:
            raise CommandError(error.detail) from error
        except (DBAPIError, OSError) as error:
            raise CommandError(f"the database refused the command: {reason_of(error)}") from error
    say(f"{email} now has the role {role.value}." + (f" The password: {password}" if generate else ""))


@users.command()
@with_dry_run
def set_role(
    email: Annotated[str, typer.Argument(help="The user's address.")],
    role: Annotated[Role, typer.Argument(help="The new role.")],
) -> None:
    """Give a user another role, which counts from their next request on. The last operator and the last admin stay."""
    # Imported here: this loads all domains, which the other commands do not need.
    from services.users import service

    with plain_errors():
        before = in_one(lambda uow: service.set_role(uow, email, role))
    say(f"{email} now has the role {role.value}; before: {before.value}.")


@users.command()
def export(user: Whom, output: Annotated[Path, typer.Option(help="The file to write. It must not exist.")]) -> None:
    """Write everything that is stored about a user to a file, one JSON object a line. The audit log records it."""
    with plain_errors():
        number = in_one(lambda uow: _export(uow, user, output))
    say(f"Wrote {number} bytes to {output}.")


@users.command()
@with_dry_run
def erase(user: Whom, yes: Yes = False) -> None:
    """Erase a user's name, e-mail address and whatever else identifies them, permanently. The books stay.

    No credits may be left on their account, and no order of theirs may be open.
    """
    from services.users.personal import service

    with plain_errors():
        found = in_one(lambda uow: service.find(uow, _wanted(user)))
        confirm(f"This cannot be undone. Erase user {found}?", yes=yes)
        in_one(lambda uow: service.erase(uow, found))
    say(f"User {found} is erased.")


def _wanted(user: str) -> int | str:
    found = typed_id(user)
    return user if found is None else found


async def _export(uow: "UnitOfWork", user: str, output: Path) -> int:
    from services.acting import Action
    from services.users.personal import service

    user_id = await service.find(uow, _wanted(user))
    account_id = await uow.personal.account_id(user_id)
    uow.record_act(Action.exported, f"user/{user_id}")

    async def run(read: "Callable[[UnitOfWork], Awaitable[Rows]]") -> "Rows":
        return await read(uow)

    number = 0
    try:
        # Nothing else runs in this process.
        with open(output, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:  # noqa: ASYNC230
            async for piece in service.export(run, user_id, account_id):
                number += file.write(piece)
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}") from error
    return number


def create_operator(email: Email, name: Name = None, generate: Generate = False) -> None:
    """Create a user with the operator role. The old name of `waybill users create EMAIL --role operator`."""
    create(email, Role.operator, name, generate)


def new_password() -> str:
    """A random password of 20 characters that needs no quoting."""
    return secrets.token_hex(10)


async def _create(settings: Settings, email: str, name: str, password: str, role: Role) -> None:
    from services.database import open_database
    from services.skew import follow_database
    from services.unit_of_work import UnitOfWork, background
    from services.users.passwords import Passwords
    from services.users.schemas import UserCreate
    from services.users.service import register

    wanted = UserCreate.model_validate({"email": email, "full_name": name, "password": password})
    async with open_database(settings, "cli") as database:
        await follow_database(database.engine)
        async with background(lambda: UnitOfWork(database.write)) as uow:
            await register(uow, Passwords(settings), wanted, role)
