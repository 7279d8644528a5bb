"""A real PgBouncer in transaction mode, configured as docs/how-to/use-pgbouncer.md says."""

import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

from services.local.embedded import child
from services.local.embedded.ports import LOOPBACK, any_free_port
from tests.installed import installed
from tests.processes import ROOT, wait_until

PAGE = ROOT / "docs/how-to/use-pgbouncer.md"


@contextmanager
def running_pgbouncer(database_url: str, **changes: str) -> Iterator[str]:
    """The address of the database through PgBouncer; `changes` replace or add lines of its configuration."""
    server = make_url(database_url)
    port = any_free_port()
    with tempfile.TemporaryDirectory(prefix="waybill-pgbouncer-") as name:
        folder = Path(name)
        users = folder / "userlist.txt"
        users.write_text(f'"{server.username}" "{server.password}"\n')
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            _changed(
                {
                    "waybill": f"host={server.host} port={server.port} dbname={server.database}",
                    "listen_port": str(port),
                    "auth_file": str(users),
                    **changes,
                }
            )
        )
        process = child.spawn(
            [installed("pgbouncer", "pgbouncer"), configuration],
            cwd=folder,
            log=folder / "pgbouncer.log",
            death_signal=signal.SIGKILL,
            environment={"PATH": os.environ["PATH"]},
            disguise=child.disguise_for_server(),
        )
        try:
            wait_until(lambda: _listens(port, process, folder / "pgbouncer.log"), "PgBouncer to listen", 20)
            yield server.set(host=LOOPBACK, port=port, database="waybill").render_as_string(hide_password=False)
        finally:
            child.stop(process, (signal.SIGINT, 5.0))


def _changed(changes: dict[str, str]) -> str:
    found = re.search(r"```ini\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    configuration = found[1]
    for name, value in changes.items():
        line = f"{name} = {value}"
        configuration, number = re.subn(rf"^{name} = .*$", line, configuration, flags=re.MULTILINE)
        if not number:
            configuration += line + "\n"
    return configuration


def _listens(port: int, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    with socket.socket() as client:
        return client.connect_ex((LOOPBACK, port)) == 0
