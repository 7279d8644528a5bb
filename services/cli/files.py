"""Small files that survive a crash of the machine: afterwards they have the old content or the new, never a mixture."""

import errno
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

Say: TypeAlias = Callable[[str], object]
"""Shows a line to the user."""

# Some file systems sync a rename on their own, and refuse an explicit sync.
_CANNOT_SYNC_FOLDERS = (errno.EINVAL, errno.ENOTSUP)


def write_whole(path: Path, content: str) -> None:
    """Replace the file, readable only by its owner; it is on disk when this returns.

    The draft is `path` with `.new` appended. Raises `OSError` (a full disk, a folder that is not writable) and leaves
    the old content in place.
    """
    draft = path.with_name(f"{path.name}.new")
    try:
        # We create it ourselves, so that it has our mode and a link in its place is not followed.
        draft.unlink(missing_ok=True)
        with open(draft, "x", encoding="utf-8", opener=_owner_only) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        # An incomplete draft would take up space on a full disk.
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make sure that new and renamed files in the folder are on disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDERS:
            raise
    finally:
        os.close(opened)


def keep_secret(kept: Path, size: int, say: Say, consequence: str) -> str:
    """The secret in this file: `size` random bytes as text, created if there is none.

    A secret that is empty, too short or garbled is replaced, and `say` reports it, with the consequence for the user.
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
