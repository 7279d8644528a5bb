"""The options with which commands select dead letters and waiting events."""

from datetime import datetime
from typing import Annotated

import typer

from services.outbox.models import FailureReason

OfType = Annotated[str | None, typer.Option("--type", help="Only events of this type.")]
OfAggregate = Annotated[str | None, typer.Option("--aggregate", help="Only events of this aggregate.")]
Fingerprint = Annotated[
    str | None, typer.Option(help="Only those with this kind of error; see `waybill outbox dead-letters groups`.")
]
FailedBecause = Annotated[FailureReason | None, typer.Option("--failure-reason", help="Only those that died of this.")]
DiedFrom = Annotated[
    datetime | None, typer.Option("--died-from", help="Only those that died at this time (UTC) or later.")
]
DiedBefore = Annotated[
    datetime | None, typer.Option("--died-before", help="Only those that died before this time (UTC).")
]
