"""Programs of the system that some tests need, such as PgBouncer, Prometheus and Chromium."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def installed(name: str, package: str) -> str:
    """The path of the program. As root, it is installed if missing; otherwise the test is skipped, and fails in CI.

    `WAYBILL_TEST_` and the name in capitals can be set to its path.
    """
    variable = f"WAYBILL_TEST_{name.upper()}"
    for found in (os.environ.get(variable), shutil.which(name), f"/usr/sbin/{name}"):
        if found and Path(found).exists():
            return found
    if os.geteuid() == 0 and (apt := shutil.which("apt-get")):
        # Sessions of xdist would be refused by each other's locks.
        with Path(tempfile.gettempdir(), "waybill-tests-apt.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not shutil.which(name, path="/usr/sbin:/usr/bin"):
                subprocess.run([apt, "update", "-qq"], check=False, capture_output=True)
                command = [apt, "install", "-y", "-qq", "--no-install-recommends", package]
                subprocess.run(command, check=False, capture_output=True)
        if program := shutil.which(name, path="/usr/sbin:/usr/bin"):
            return program
    how = f"{name} is needed: install the package `{package}`, or set {variable} to its path"
    if os.environ.get("WAYBILL_TEST_NEEDS_ALL") or os.environ.get("CI"):
        pytest.fail(how)
    pytest.skip(how)
