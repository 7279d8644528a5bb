"""`waybill clean-data`: forget everything a `waybill up` has kept."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from services.cli.console import CommandError, plain_errors, say
from services.cli.facts import DEFAULT_DATA_DIR
from services.local.home import ENTRIES, hold, is_ours


def clean_data(
    data_dir: Annotated[Path, typer.Option(help="The folder that was given to `waybill up`.")] = DEFAULT_DATA_DIR,
) -> None:
    """Remove what `waybill up` keeps: databases, credentials and logs. It must not be running."""
    with plain_errors():
        if not data_dir.exists():
            say(f"There are no data in {data_dir.absolute()}")
            return
        try:
            # Whoever mistypes the path must not lose a folder of another kind.
            if not is_ours(data_dir):
                raise CommandError(f"{data_dir.absolute()} is no data folder of `waybill up`; nothing was removed")
            with hold(data_dir) as home:
                for name in ENTRIES:
                    _remove(home.path / name)
        except OSError as error:
            raise CommandError(f"{error.filename or data_dir} cannot be removed: {error.strerror}") from error
    try:
        home.path.rmdir()
    except OSError:
        say(f"Removed the data in {home.path}; the folder stays, with what else is in it")
    else:
        say(f"Removed {home.path}")


def _remove(path: Path) -> None:
    # A link's target lies elsewhere, and is not known to be ours alone.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
