"""`waybill down`: end a running `waybill up`, as Ctrl-C in its terminal would."""

import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from services.cli.console import CommandError, plain_errors, say
from services.cli.facts import DEFAULT_DATA_DIR
from services.cli.running import holder

_LOOK_SECONDS = 0.1


def down(
    data_dir: Annotated[Path, typer.Option(help="The data folder of the `waybill up`.")] = DEFAULT_DATA_DIR,
    wait: Annotated[float, typer.Option(min=0, max=3600, help="Seconds to wait until it has ended.")] = 60.0,
) -> None:
    """End the `waybill up` of a data folder: workers and API first, then the servers. The data is kept.

    If it has not ended in time, run the command again to hurry it. Exit codes: 0 it has ended; 1 it is not running, or
    has not ended in time.
    """
    with plain_errors():
        pid = _end(data_dir)
        if pid is None:
            raise CommandError(f"`waybill up` is not running in {data_dir.absolute()}")
        say(f"Ending the `waybill up` in {data_dir.absolute()} (process {pid}) ...")
        deadline = time.monotonic() + wait
        while holder(data_dir) == pid:
            if time.monotonic() >= deadline:
                raise CommandError(f"it has not ended after {wait:g} s; run `waybill down` again to hurry it")
            time.sleep(_LOOK_SECONDS)
    say(f"Ended. The data is kept in {data_dir.absolute()}")


def _end(data_dir: Path) -> int | None:
    """Send SIGTERM to the process that holds the folder; returns its id, or None if there is none."""
    pid = holder(data_dir)
    if pid is None:
        return None
    try:
        if not hasattr(os, "pidfd_open"):
            os.kill(pid, signal.SIGTERM)
            return pid
        # Between the look and the signal, the process may end and its id be taken by another one.
        process = os.pidfd_open(pid)
        try:
            if holder(data_dir) != pid:
                return None
            signal.pidfd_send_signal(process, signal.SIGTERM)
        finally:
            os.close(process)
    except ProcessLookupError:
        return None
    except PermissionError as error:
        raise CommandError(f"process {pid} belongs to another user") from error
    return pid
