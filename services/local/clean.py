"""`waybill clean-data`: delete the data of `waybill up`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from services.cli.console import CommandError, plain_errors, say
from services.cli.facts import DEFAULT_DATA_DIR
from services.local.home import ENTRIES, hold, is_ours


def clean_data(
    data_dir: Annotated[Path, typer.Option(help="The data folder of `waybill up`.")] = DEFAULT_DATA_DIR,
) -> None:
    """Delete the data of `waybill up`: databases, credentials and logs. It must not be running."""
    with plain_errors():
        if not data_dir.exists():
            say(f"There is no data in {data_dir.absolute()}")
            return
        try:
            # A mistyped path must not delete another folder.
            if not is_ours(data_dir):
                raise CommandError(f"{data_dir.absolute()} is not a data folder of `waybill up`; nothing was removed")
            with hold(data_dir) as home:
                for name in ENTRIES:
                    _remove(home.path / name)
        except OSError as error:
            raise CommandError(f"cannot remove {error.filename or data_dir}: {error.strerror}") from error
    try:
        home.path.rmdir()
    except OSError:
        say(f"Removed the data in {home.path}; the folder is kept, since it contains other files")
    else:
        say(f"Removed {home.path}")


def _remove(path: Path) -> None:
    # A link's target is elsewhere and may not be ours alone.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
