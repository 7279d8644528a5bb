"""`waybill users`: create a user with a role, change a user's role, and reset a second factor.

Access to the database is the authority for this: it is how an installation gets its first admins.
"""

import asyncio
import secrets
from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from services.cli.console import CommandError, plain_errors, say
from services.cli.migrate import check_database
from services.cli.run import in_one
from services.errors import DomainError
from services.settings import Settings, get_settings
from services.startup import reason_of
from services.users.rights import Role
from services.users.totp.service import reset

users = typer.Typer(help="Create users with a role, change a role, and reset a second factor.", no_args_is_help=True)

Email = Annotated[str, typer.Argument(help="The address to sign in with.")]
Name = Annotated[str | None, typer.Option(help="The user's full name. Default: the role.")]
Generate = Annotated[
    bool, typer.Option("--generate", help="Generate a random password and print it, instead of asking for one.")
]


@users.command()
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
