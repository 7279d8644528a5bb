"""`waybill clean-data`: forget everything a `waybill up` has kept."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from services.cli.console import CommandError, plain_errors, say
from services.cli.facts import DEFAULT_DATA_DIR
from services.cli.home import hold


def clean_data(
    data_dir: Annotated[Path, typer.Option(help="The folder that was given to `waybill up`.")] = DEFAULT_DATA_DIR,
) -> None:
    """Remove the data folder of `waybill up`: databases, credentials and logs. It must not be running."""
    with plain_errors():
        if not data_dir.exists():
            say(f"There are no data in {data_dir.absolute()}")
            return
        # Whoever mistypes the path must not lose a folder of another kind.
        if not (data_dir / "lock").exists() or not (data_dir / "logs").is_dir():
            raise CommandError(f"{data_dir.absolute()} is no data folder of `waybill up`; nothing was removed")
        with hold(data_dir) as home:
            shutil.rmtree(home.path)
    say(f"Removed {home.path}")
