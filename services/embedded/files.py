"""Small files that survive a crash of the machine: after it, the old content is there or the new one, never half."""

import errno
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

Say: TypeAlias = Callable[[str], None]
"""Where a line for the person at the terminal goes."""

# Some file systems sync a rename by themselves, and refuse to be asked.
_CANNOT_SYNC_FOLDERS = (errno.EINVAL, errno.ENOTSUP)


def write_whole(path: Path, content: str) -> None:
    """Replace the file, readable by its owner alone; it is on the disk when this returns.

    The draft is `path` with `.new` appended. Raises `OSError` (a full disk, a folder that cannot be written), and then
    the old content is still there.
    """
    draft = path.with_name(f"{path.name}.new")
    try:
        # Made by us, so that its mode is ours and a link in its place is not followed.
        draft.unlink(missing_ok=True)
        with open(draft, "x", encoding="utf-8", opener=_owner_only) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        # Half a draft would take up room where there is none.
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """See that names made or renamed in the folder are on the disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDERS:
            raise
    finally:
        os.close(opened)


def keep_secret(kept: Path, size: int, say: Say, consequence: str) -> str:
    """The secret in this file: `size` random bytes as text, made where there is none.

    One that is empty, too short or garbled is replaced, and `say` is told, with the consequence for the user.
    """
    try:
        found = kept.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        found = None
    if found is not None and re.fullmatch(rf"[A-Za-z0-9_-]{{{len(secrets.token_urlsafe(size))},}}", found):
        return found
    made = secrets.token_urlsafe(size)
    write_whole(kept, made)
    if found is not None:
        say(f"{kept} was damaged and has been replaced: {consequence}")
    return made


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
