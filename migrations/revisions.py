"""The revisions of this release, read from the names of the files: no migration has to be imported for that."""

from functools import lru_cache
from pathlib import Path

_HERE = Path(__file__).parent


@lru_cache
def revisions(history: str = ".") -> tuple[str, ...]:
    """The number of each step, in order; the last one is the head. `history` is `analytics` for that database."""
    return tuple(sorted(file.name.partition("_")[0] for file in (_HERE / history / "versions").glob("[0-9]*_*.py")))
