"""The service that a command sends its requests to: the one at --url, or that of a running `waybill up`."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from services.cli.client import Login, Target
from services.cli.console import CommandError
from services.cli.facts import Facts
from services.cli.running import find_running, tell

DataDir = Annotated[Path, typer.Option(help="The data folder of the running `waybill up`.")]
Url = Annotated[str | None, typer.Option(help="The service to use instead of that of `waybill up`.")]
OperatorEmail = Annotated[
    str | None, typer.Option(envvar="WAYBILL_OPERATOR_EMAIL", help="Default: the operator of `waybill up`.")
]
OperatorPassword = Annotated[
    str | None, typer.Option(envvar="WAYBILL_OPERATOR_PASSWORD", help="Safer to set in the environment.")
]
ApproverEmail = Annotated[
    str | None, typer.Option(envvar="WAYBILL_APPROVER_EMAIL", help="A second operator, who approves large top-ups.")
]
ApproverPassword = Annotated[
    str | None, typer.Option(envvar="WAYBILL_APPROVER_PASSWORD", help="Safer to set in the environment.")
]


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
    """The service to use: the one at `url`, else that of the `waybill up` that runs in `data_dir`.

    Raises `CommandError` if there is none, or no operator to sign in as.
    """
    operator = login_of("operator", email, password)
    running = find_running(data_dir)
    facts = None if running is None else running.facts
    if url is None:
        if running is None:
            raise CommandError(
                f"cannot find a service: no `waybill up` is running in {data_dir.absolute()}. "
                "Start one, or point to one with --data-dir or --url"
            )
        url = running.facts.api_url
        tell(running, data_dir)
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
