"""`waybill api` and `waybill worker`: one process each, in the foreground, stopped by SIGTERM, SIGINT or SIGHUP."""

import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import Annotated

import typer

from services.cli.console import plain_errors

STARTUP_FAILURE = 3
# Together with the process's own exit, below the 10 s that supervisors grant between SIGTERM and SIGKILL.
GRACEFUL_SHUTDOWN_SECONDS = 8


def api(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free one.")] = 8000,
) -> None:
    """Serve the HTTP API in this process."""
    # Imported here: the other commands need no web server.
    import uvicorn

    from services.api.protocol import LimitedProtocol
    from services.api.server import Server
    from services.settings import get_settings

    with plain_errors():
        settings = get_settings()
    config = uvicorn.Config(
        "services.app:serve_app",
        factory=True,
        host=host,
        port=port,
        loop="uvloop" if find_spec("uvloop") else "auto",
        http=LimitedProtocol,
        ws="none",
        lifespan="on",
        # One process per command: each has its own limits, metrics and port.
        workers=1,
        # The application sets up its own logging; access logs are left to the proxy.
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.http_keep_alive_timeout,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )
    # First, since it sets up the log that the server writes to.
    config.load()
    server = Server(config, settings)
    # uvicorn raises a caught Ctrl-C again when it has stopped.
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def worker() -> None:
    """Process events and jobs in this process."""
    from services.settings import get_settings

    with plain_errors():
        get_settings()
    # The services never import the worker; this process becomes it.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker"])  # noqa: S606 (no shell is meant)
