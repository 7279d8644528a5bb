"""`waybill import-retail`: its options, its exit codes, and how it finds the service."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.cli.client import ServiceError
from services.cli.console import INTERRUPTED, NOT_FINISHED, REFUSED, CommandError
from services.cli.facts import DEFAULT_DATA_DIR
from services.cli.retail.source import FileError
from services.cli.target import (
    ApproverEmail,
    ApproverPassword,
    DataDir,
    OperatorEmail,
    OperatorPassword,
    Url,
    find_target,
    login_of,
)

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
    data_dir: DataDir = DEFAULT_DATA_DIR,
    url: Url = None,
    operator_email: OperatorEmail = None,
    operator_password: OperatorPassword = None,
    approver_email: ApproverEmail = None,
    approver_password: ApproverPassword = None,
) -> None:
    """Place a real shop's invoices as orders through the HTTP API, and check that every credit is where it belongs.

    Running it again places nothing twice. Exit codes: 0 all checks are true; 1 a check is false; 3 it could not finish.
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
        raise typer.Exit(NOT_FINISHED) from error
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
        raise typer.Exit(REFUSED)


def _complain(message: str) -> None:
    typer.secho("waybill: ", fg=typer.colors.RED, err=True, nl=False)
    typer.echo(message, err=True)
