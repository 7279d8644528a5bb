"""`python -m worker`: one worker process."""

import asyncio

import uvloop
from arq.worker import get_kwargs

from services.logs import configure_logging
from services.settings import get_settings
from worker.runner import ReconnectingWorker
from worker.settings import WorkerSettings


async def serve() -> None:
    await ReconnectingWorker(**get_kwargs(WorkerSettings)).serve()  # type: ignore[arg-type]


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    configure_logging(get_settings(), "worker")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
