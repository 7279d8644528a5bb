"""Blocks of commands and settings in the pages of docs/, to be run as they stand there."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from services.local.embedded.postgres import find_postgres
from tests.processes import ROOT

HOW_TO = ROOT / "docs" / "how-to"


def blocks(page: str, heading: str, language: str) -> list[str]:
    """The blocks in this language under a heading of the second level, in their order."""
    _, found, rest = (HOW_TO / page).read_text().partition(f"\n## {heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    section, _, _ = rest.partition("\n## ")
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def settings_in(block: str) -> dict[str, str]:
    """The settings of a block of postgresql.conf."""
    return {name: value.strip("'") for name, value in re.findall(r"^(\w+) = (.+)$", block, re.MULTILINE)}


def run(script: str, folder: Path, variables: Mapping[str, str]) -> str:
    """What the script prints. It runs in a shell with PostgreSQL's programs and ours on its path, and must succeed."""
    path = [str(find_postgres().folder), str(Path(sys.executable).parent), os.environ["PATH"]]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WAYBILL_", "PG"))}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**kept, "PATH": ":".join(path), "WAYBILL_ENVIRONMENT": "development", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, f"{script}\n{ran.stdout}"
    return ran.stdout
