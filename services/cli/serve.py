"""`waybill api` and `waybill worker`: in the foreground, stopped by SIGTERM, SIGINT or SIGHUP."""

import logging
import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import NOT_FINISHED, CommandError, plain_errors
from services.safety import DEVELOPMENT_SECRET, GENERATE, is_loopback

if TYPE_CHECKING:
    import uvicorn

    from services.settings import Settings

logger = logging.getLogger(__name__)

# Together with the process's own exit, below the 10 s that supervisors grant between SIGTERM and SIGKILL.
GRACEFUL_SHUTDOWN_SECONDS = 8


def api(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free one.")] = 8000,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="The number of processes that serve the port, each with its own pools.")
    ] = 1,
) -> None:
    """Serve the HTTP API in this process, or in several that it starts and replaces when they die."""
    # Imported here: the other commands need no web server.
    import uvicorn

    from services.api.protocol import LimitedProtocol
    from services.api.server import Server
    from services.settings import get_settings

    with plain_errors():
        settings = get_settings()
        _check_address(host, settings)
    if workers > settings.api_processes:
        # What they compare with the server's limit of connections.
        os.environ["WAYBILL_API_PROCESSES"] = str(workers)
    config = uvicorn.Config(
        "services.app:serve_app",
        factory=True,
        host=host,
        port=port,
        loop="uvloop" if find_spec("uvloop") else "auto",
        http=LimitedProtocol,
        ws="none",
        lifespan="on",
        workers=workers,
        # A process answers its supervisor only when it has loaded the application, which takes long on a busy machine.
        timeout_worker_healthcheck=60,
        # The application sets up its own logging, and writes the line of each request itself.
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.http_keep_alive_timeout,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )
    if workers > 1:
        _serve_in_several(config)
        return
    # First, since it sets up the log that the server writes to.
    config.load()
    server = Server(config, settings)
    # uvicorn raises a caught Ctrl-C again when it has stopped.
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(NOT_FINISHED)


def _check_address(host: str, settings: "Settings") -> None:
    """Raises `CommandError` if other machines could reach an API whose signing key everyone can read."""
    if settings.secret_key.get_secret_value() == DEVELOPMENT_SECRET and not is_loopback(host):
        raise CommandError(
            f"with the development secret, the API listens on this machine only, and not on {host}: anyone could sign "
            "tokens of any user. Use --host 127.0.0.1, or set WAYBILL_SECRET_KEY to a key of your own: " + GENERATE
        )


def _serve_in_several(config: "uvicorn.Config") -> None:
    from services.api.processes import serve
    from services.logs import configure_logging
    from services.settings import get_settings

    configure_logging(get_settings(), "api")
    try:
        started = serve(config)
    except OSError as error:
        logger.error("cannot listen on %s port %d: %s", config.host, config.port, error)
        started = False
    if not started:
        sys.exit(NOT_FINISHED)


def worker() -> None:
    """Process events and jobs in this process."""
    from services.settings import get_settings

    with plain_errors():
        get_settings()
    # The services never import the worker; this process becomes it.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker"])  # noqa: S606 (no shell is meant)
