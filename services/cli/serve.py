"""`waybill api` and `waybill worker`: one process each, in the foreground, stopped by SIGTERM."""

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from services.cli.console import plain_errors

# Together with the process's own exit, below the 10 s that supervisors grant between SIGTERM and SIGKILL.
GRACEFUL_SHUTDOWN_SECONDS = 8


def api(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free one.")] = 8000,
) -> None:
    """Serve the HTTP API in this process."""
    # Imported here: the other commands need no web server.
    import uvicorn

    from services.settings import get_settings

    with plain_errors():
        get_settings()
    uvicorn.run(
        "services.api.app:serve_app",
        factory=True,
        host=host,
        port=port,
        loop="uvloop" if find_spec("uvloop") else "auto",
        http="httptools",
        ws="none",
        lifespan="on",
        # The application sets up its own logging; a line for each request is the proxy's business.
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )


def worker() -> None:
    """Process events and jobs in this process."""
    from services.settings import get_settings

    with plain_errors():
        get_settings()
    # The services never import the worker; this process becomes it.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker"])  # noqa: S606 (no shell is meant)
