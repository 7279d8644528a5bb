"""The revisions of this release, read from the names of the files: no migration has to be imported for that."""

from functools import lru_cache
from pathlib import Path

_VERSIONS = Path(__file__).parent / "versions"


@lru_cache
def revisions() -> tuple[str, ...]:
    """The number of each step, in order; the last one is the head."""
    return tuple(sorted(file.name.partition("_")[0] for file in _VERSIONS.glob("[0-9]*_*.py")))
