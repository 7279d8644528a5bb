"""The `waybill` command: every sub-command is a function in a module of its own, registered here."""

import typer

from services.cli.jobs import jobs
from services.cli.ledger import ledger
from services.cli.migrate import migrate
from services.cli.outbox import outbox
from services.cli.retail.command import replay
from services.cli.serve import api, worker
from services.cli.users import create_operator
from services.local.clean import clean_data
from services.local.up import up

app = typer.Typer(
    name="waybill",
    help="An order service that never loses an event and never miscounts a credit.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback must not print the values of local variables: some of them are passwords.
    pretty_exceptions_show_locals=False,
)

app.command("up")(up)
app.command("api")(api)
app.command("worker")(worker)
app.command("migrate")(migrate)
app.command("create-operator")(create_operator)
app.command("replay")(replay)
app.command("clean-data")(clean_data)
app.add_typer(ledger, name="ledger")
app.add_typer(outbox, name="outbox")
app.add_typer(jobs, name="jobs")


if __name__ == "__main__":
    app()
