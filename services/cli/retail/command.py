"""`waybill import-retail`: its options, its exit codes, and how it finds the service."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console

from services.cli.console import CommandError
from services.cli.facts import DEFAULT_DATA_DIR, FILE_NAME, Facts, read_facts
from services.cli.retail.client import Login, ServiceError, Target
from services.cli.retail.source import FileError

CHECK_FALSE = 1
NOT_DONE = 2
INTERRUPTED = 130

FILE_HELP = (
    "A CSV file, plain or gzipped: Online Retail of the UCI Machine Learning Repository, "
    "https://doi.org/10.24432/C5BW33, saved as CSV."
)

_WIDTH_OF_FILES = 120
"""Columns of the table if the output is not a terminal."""


def import_retail(
    file: Annotated[Path, typer.Argument(help=FILE_HELP)],
    limit: Annotated[int | None, typer.Option(min=1, help="Place only this many invoices, from the start.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="The number of concurrent requests.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    data_dir: Annotated[Path, typer.Option(help="The data folder of the running `waybill up`.")] = DEFAULT_DATA_DIR,
    url: Annotated[str | None, typer.Option(help="The service to use instead of that of `waybill up`.")] = None,
    operator_email: Annotated[
        str | None, typer.Option(envvar="WAYBILL_OPERATOR_EMAIL", help="Default: the operator of `waybill up`.")
    ] = None,
    operator_password: Annotated[
        str | None, typer.Option(envvar="WAYBILL_OPERATOR_PASSWORD", help="Safer to set in the environment.")
    ] = None,
    approver_email: Annotated[
        str | None,
        typer.Option(envvar="WAYBILL_APPROVER_EMAIL", help="A second operator, who approves large top-ups."),
    ] = None,
    approver_password: Annotated[
        str | None, typer.Option(envvar="WAYBILL_APPROVER_PASSWORD", help="Safer to set in the environment.")
    ] = None,
) -> None:
    """Place a real shop's invoices as orders through the HTTP API, and check that every credit is where it belongs.

    Running it again places nothing twice. Exit codes: 0 all checks are true; 1 a check is false; 2 it could not finish.
    """
    # Imported here: they load the domains, which other commands do not need.
    from services.cli.progress import open_display
    from services.cli.retail.report import print_table
    from services.cli.retail.run import read_plan
    from services.cli.retail.run import replay as run_replay

    try:
        plan = read_plan(file)
        target = find_target(
            data_dir, url, operator_email, operator_password, login_of("approver", approver_email, approver_password)
        )
        with open_display(quiet=as_json) as display:
            summary, remarks = asyncio.run(run_replay(plan, target, display, limit=limit, clients=concurrency))
    except (FileError, ServiceError, CommandError) as error:
        _complain(str(error))
        raise typer.Exit(NOT_DONE) from error
    except KeyboardInterrupt:
        _complain("interrupted; run it again to continue where it stopped")
        raise typer.Exit(INTERRUPTED) from None
    for remark in remarks:
        _complain(remark)
    if as_json:
        typer.echo(summary.as_json())
    else:
        print_table(summary, Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES))
    if not summary.all_true:
        raise typer.Exit(CHECK_FALSE)


def login_of(who: str, email: str | None, password: str | None) -> Login | None:
    """The given credentials, if there are any. Raises `CommandError` for one without the other."""
    if email is None and password is None:
        return None
    if email is None or password is None:
        raise CommandError(f"give both the {who}'s e-mail address and the password, or neither")
    return Login(email, password)


def find_target(
    data_dir: Path, url: str | None, email: str | None, password: str | None, approver: Login | None = None
) -> Target:
    """The service to use: the one at `url`, else that of `waybill up` in `data_dir`.

    Raises `CommandError` if there is none, or no operator to sign in as.
    """
    operator = login_of("operator", email, password)
    facts = read_facts(data_dir)
    if url is None:
        if facts is None:
            raise CommandError(
                f"cannot find a service: {data_dir.absolute() / FILE_NAME} does not exist. "
                "Start one with `waybill up`, or point to one with --data-dir or --url"
            )
        url = facts.api_url
    if operator is not None:
        return Target(url, operator, approver)
    if facts is None or facts.operator is None or not _same_place(url, facts):
        raise CommandError(
            "an operator is needed: --operator-email and --operator-password, "
            "or WAYBILL_OPERATOR_EMAIL and WAYBILL_OPERATOR_PASSWORD"
        )
    if approver is None and facts.approver is not None:
        approver = Login(facts.approver.email, facts.approver.password)
    return Target(url, Login(facts.operator.email, facts.operator.password), approver)


def _same_place(url: str, facts: Facts) -> bool:
    """Whether the credentials in `facts` belong to the service at `url`: no other service may see them."""
    return urlsplit(url).netloc == urlsplit(facts.api_url).netloc


def _complain(message: str) -> None:
    typer.secho("waybill: ", fg=typer.colors.RED, err=True, nl=False)
    typer.echo(message, err=True)
