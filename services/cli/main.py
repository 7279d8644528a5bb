"""The `waybill` command. A command's module is imported when that command runs, so that `--help` is fast."""

import getpass
import os
import socket
from contextlib import ExitStack
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from services.acting import acting_as
from services.cli.console import CommandError, plain_errors


class Command(NamedTuple):
    """Where a command is defined, as `module:name` of a function or a `Typer`, and its line in the list of commands."""

    where: str
    summary: str
    hidden: bool = False


COMMANDS = {
    "up": Command("services.local.up:up", "Run everything on this machine: PostgreSQL, Redis, the API and workers."),
    "status": Command("services.local.status:status", "Show whether a `waybill up` runs here, and whether it is well."),
    "down": Command("services.local.down:down", "End a running `waybill up`."),
    "api": Command("services.cli.serve:api", "Serve the HTTP API in this process."),
    "worker": Command("services.cli.serve:worker", "Process events and jobs in this process."),
    "migrate": Command("services.cli.migrate:migrate", "Upgrade the database to the newest schema."),
    "doctor": Command("services.cli.doctor.command:doctor", "Check an installation, and say what to do."),
    "database-roles": Command(
        "services.cli.database_roles:database_roles", "Create the database roles, and give the tables to their owner."
    ),
    "users": Command("services.cli.users:users", "List users, create them, change a role, and reset a second factor."),
    "create-operator": Command(
        "services.cli.users:create_operator", "The old name of users create --role operator.", hidden=True
    ),
    "workers": Command("services.cli.workers:workers", "List and control the workers, and check their health."),
    "top": Command("services.cli.top:top", "Show live what the workers do and what waits."),
    "outbox": Command("services.cli.outbox:outbox", "Inspect and control the outbox."),
    "orders": Command("services.cli.orders:orders", "Find orders, and show what happened to one."),
    "events": Command("services.cli.event_log:events", "Read the event log."),
    "orders-by-day": Command("services.cli.orders:orders_by_day", "Show what happened to orders on the last days."),
    "reports": Command("services.cli.reports:reports", "Rebuild the reports in the analytics database."),
    "jobs": Command("services.cli.jobs:jobs", "List and control the scheduled jobs."),
    "ledger": Command("services.cli.ledger:ledger", "Check that the books balance."),
    "audit-log": Command("services.cli.audit_log:audit_log", "Show who did what, when and why."),
    "import-retail": Command("services.cli.retail.command:import_retail", "Place a real shop's invoices as orders."),
    "replay": Command("services.cli.retail.command:import_retail", "The old name of import-retail.", hidden=True),
    "demo": Command("services.local.demo.command:demo", "Send steady, realistic traffic to a service."),
    "clean-data": Command("services.local.clean:clean_data", "Delete the data of `waybill up`."),
}


_PROCESSES = ("api", "worker")
"""Commands that serve: they never get the address with the owner of the tables."""


class LazyGroup(TyperGroup):
    """Lists `COMMANDS` with their summaries, and loads only the one that runs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, command in COMMANDS.items():
            self.commands[name] = TyperCommand(name, help=command.summary, hidden=command.hidden)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            with plain_errors():
                self.commands[args[0]] = load(args[0])
            ctx.with_resource(acting_as(f"command:{_name(self, args)}", _where()))
        return super().resolve_command(ctx, args)


def _name(group: Any, args: list[str]) -> str:
    """The command with its sub-command, such as `outbox pause`, without its arguments."""
    names: list[str] = []
    for arg in args:
        group = getattr(group, "commands", {}).get(arg)
        if group is None:
            break
        names.append(arg)
    return " ".join(names)


def _where() -> str:
    """Who runs the command: the system user and the host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        # In a container, the user may have no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def load(name: str) -> Any:
    """The command with its options. Raises `CommandError` if this installation does not include it."""
    module, _, attribute = COMMANDS[name].where.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name == "services.local":
            raise CommandError(
                f"`waybill {name}` is for development, and this installation does not include it"
            ) from error
        raise
    if isinstance(found, typer.Typer):
        loaded: Any = typer.main.get_group(found)
    else:
        single = typer.Typer(add_completion=False)
        single.command(name)(found)
        loaded = typer.main.get_command(single)
    _let_find(loaded, as_process=name in _PROCESSES)
    return loaded


def _let_find(command: Any, *, as_process: bool) -> None:
    """Let the command, or each below it, find a running `waybill up`, unless it has a --data-dir of its own."""
    below = getattr(command, "commands", None)
    if below is not None:
        for one in below.values():
            _let_find(one, as_process=as_process)
        return
    if any(parameter.name == "data_dir" for parameter in command.params):
        return
    run = command.callback

    @wraps(run)
    def found(*args: Any, data_dir: str | Path | None, **options: Any) -> Any:
        # Imported here: `waybill --help` reads no settings.
        from services.cli.running import using

        with ExitStack() as stack:
            with plain_errors():
                stack.enter_context(using(None if data_dir is None else Path(data_dir), as_process=as_process))
            return run(*args, **options)

    command.params.append(_data_dir_option())
    command.callback = found


def _data_dir_option() -> Any:
    """The option --data-dir of the commands that use a database."""
    single = typer.Typer(add_completion=False)

    @single.command()
    def _(
        data_dir: Annotated[
            Path | None,
            typer.Option(
                help="Use the `waybill up` that runs with this data folder. Default: the settings, or else the "
                "`waybill up` in .waybill, if one runs."
            ),
        ] = None,
    ) -> None: ...

    return typer.main.get_command(single).params[0]


app = typer.Typer(
    name="waybill",
    cls=LazyGroup,
    no_args_is_help=True,
    # Tracebacks must not print the values of local variables: some of them are passwords.
    pretty_exceptions_show_locals=False,
)


@app.callback()
def waybill() -> None:
    """An order service that never loses an event and never miscounts a credit."""


if __name__ == "__main__":
    app()
