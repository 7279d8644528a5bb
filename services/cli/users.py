"""`waybill create-operator`: the first operator of an installation."""

import asyncio
import secrets
from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from services.cli.console import CommandError, plain_errors, say
from services.cli.migrate import check_database
from services.errors import DomainError
from services.settings import Settings, get_settings
from services.startup import reason_of


def create_operator(
    email: Annotated[str, typer.Argument(help="The address to sign in with.")],
    name: Annotated[str, typer.Option(help="The operator's full name.")] = "Operator",
    generate: Annotated[
        bool, typer.Option("--generate", help="Generate a random password and print it, instead of asking for one.")
    ] = False,
) -> None:
    """Create a user with the operator role, who may see and do everything."""
    with plain_errors():
        settings = get_settings()
        check_database(settings)
        password = new_password() if generate else typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        try:
            asyncio.run(_create(settings, email, name, password))
        except DomainError as error:
            raise CommandError(error.detail) from error
        except (DBAPIError, OSError) as error:
            raise CommandError(f"the database refused the command: {reason_of(error)}") from error
    say(f"{email} is now an operator." + (f" The password: {password}" if generate else ""))


def new_password() -> str:
    """A random password of 20 characters that needs no quoting."""
    return secrets.token_hex(10)


async def _create(settings: Settings, email: str, name: str, password: str) -> None:
    # Imported here: this loads all domains, which the other commands do not need.
    from services.database import open_database
    from services.skew import follow_database
    from services.unit_of_work import UnitOfWork, background
    from services.users.passwords import Passwords
    from services.users.rights import Role
    from services.users.schemas import UserCreate
    from services.users.service import register

    wanted = UserCreate.model_validate({"email": email, "full_name": name, "password": password})
    async with open_database(settings, "cli") as database:
        await follow_database(database.engine)
        async with background(lambda: UnitOfWork(database.write)) as uow:
            await register(uow, Passwords(settings), wanted, Role.operator)
