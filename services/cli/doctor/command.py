"""The command `waybill doctor`."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Annotated, ClassVar

import typer
from pydantic import ValidationError

from services.cli.console import plain_errors
from services.cli.doctor.findings import Outcome, state_of
from services.cli.doctor.of_settings import of_refused
from services.cli.doctor.report import as_json, show
from services.cli.doctor.run import examine
from services.cli.run import AsJson, show_json
from services.safety import Fault, Rule
from services.settings import Settings


class _AnySettings(Settings):
    """The settings as they are, unsafe ones too: that they are unsafe is a finding."""

    rules: ClassVar[Sequence[Rule]] = ()


def doctor(
    json: AsJson = False,
    oldest_snapshot: Annotated[
        float, typer.Option(min=0, help="Seconds from which an open transaction is reported.", metavar="SECONDS")
    ] = 60.0,
) -> None:
    """Check this installation, and say what is wrong, why it matters and what to do.

    It looks at the settings, the database (tables, roles, indexes, plans, snapshots, vacuum, connections), Redis, the
    workers and what waits, changes nothing, and needs only what the services have in their environment. With
    WAYBILL_ADMIN_DATABASE_URL it also sees what the sessions of other roles do. Each check takes at most 15 seconds.

    Exit codes: 0 nothing found, or only notes; 1 a warning, a problem, or a check that failed; 2 wrong usage.
    """
    # What the parts log while they are asked is among the findings.
    logging.getLogger().addHandler(logging.NullHandler())
    with plain_errors():
        outcomes = _examined(oldest_snapshot)
        if json:
            show_json(as_json(outcomes))
        else:
            show(outcomes)
    if any(one.is_bad for one in outcomes):
        raise typer.Exit(1)


def _examined(oldest_snapshot: float) -> list[Outcome]:
    try:
        settings = _AnySettings()
    except ValidationError as error:
        faults = [Fault(str(one["loc"][0]) if one["loc"] else "settings", one["msg"]) for one in error.errors()]
        findings = of_refused(faults)
        return [Outcome("settings", state_of(findings), "they are not valid", findings)]
    return asyncio.run(examine(settings, snapshot_limit=oldest_snapshot))
