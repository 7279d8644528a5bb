"""`python -m worker`: one worker process."""

import asyncio
import logging
import signal
import sys

import uvloop
from arq.worker import get_kwargs
from pydantic import ValidationError

from services.collector import spare_what_stays
from services.errors import CannotStart
from services.logs import configure_logging
from services.outbox.subscription import TimeLimitTooLong
from services.settings import get_settings
from worker.guard import BROKEN, WorkerBroken
from worker.runner import ReconnectingWorker

logger = logging.getLogger("worker")


async def serve(settings_class: type) -> None:
    # Closing the terminal stops the worker like SIGTERM, unless it was started to outlive it, for example with nohup.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, signal.raise_signal, signal.SIGTERM)
    await ReconnectingWorker(get_settings().redis_url, **get_kwargs(settings_class)).serve()


def main() -> None:
    """Run until SIGTERM, SIGINT or SIGHUP.

    Exit code 1: cannot start (the database, its tables, its origin or the clock); 2: the settings or the time limits of
    subscriptions are not valid; 70: no progress, or a part of the worker has ended (`worker/guard.py`).
    """
    try:
        configure_logging(get_settings(), "worker")
    except ValidationError as error:
        # Imported here: a worker needs it only in this case.
        from services.settings import explain

        sys.stderr.write(f"worker: {explain(error)}\n")
        sys.exit(2)
    # Imported here: it reads the settings, too.
    from worker.settings import WorkerSettings

    spare_what_stays()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(WorkerSettings))
        except CannotStart as error:
            # One line, no traceback: the supervisor restarts us.
            logger.error("%s", error)
            sys.exit(1)
        except TimeLimitTooLong as error:
            logger.error("%s", error)
            sys.exit(2)
        except WorkerBroken:
            # Logged with its error when it happened.
            sys.exit(BROKEN)


if __name__ == "__main__":
    main()
