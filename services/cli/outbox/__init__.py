"""`waybill outbox`: inspect and control the engine."""

import typer

from services.cli.outbox.bulk import bulk
from services.cli.outbox.consumers import delete, list_consumers, reset
from services.cli.outbox.consumers import pause as pause_consumer
from services.cli.outbox.consumers import resume as resume_consumer
from services.cli.outbox.inspection import groups, waiting
from services.cli.outbox.letters import discard, list_letters, replay, show
from services.cli.outbox.partitions import partitions
from services.cli.outbox.pending import bury, cancel, deferred, retry_now, why
from services.cli.outbox.rebase import rebase
from services.cli.outbox.types import limit, pause, resume, status, types

outbox = typer.Typer(
    help="Inspect and control the outbox. Exit codes: 0 done; 1 refused, not found or unhealthy; 2 wrong usage.",
    no_args_is_help=True,
)
dead_letters = typer.Typer(help="Inspect events that used up their attempts.", no_args_is_help=True)
consumers = typer.Typer(help="Inspect and control the consumers of the event log.", no_args_is_help=True)

dead_letters.command("list")(list_letters)
dead_letters.command("show")(show)
dead_letters.command("groups")(groups)

consumers.command("list")(list_consumers)
consumers.command("reset")(reset)
consumers.command("pause")(pause_consumer)
consumers.command("resume")(resume_consumer)
consumers.command("delete")(delete)

outbox.command("status")(status)
outbox.command("types")(types)
outbox.command("pause")(pause)
outbox.command("resume")(resume)
outbox.command("limit")(limit)
outbox.command("waiting")(waiting)
outbox.command("why")(why)
outbox.add_typer(dead_letters, name="dead-letters")
outbox.command("replay")(replay)
outbox.command("discard")(discard)
outbox.command("retry-now")(retry_now)
outbox.command("bury")(bury)
outbox.command("deferred")(deferred)
outbox.command("cancel")(cancel)
outbox.command("partitions")(partitions)
outbox.command("rebase")(rebase)
outbox.add_typer(bulk, name="bulk")
outbox.add_typer(consumers, name="consumers")
