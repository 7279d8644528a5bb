"""The files that pages load. All of them come from this package; nothing comes from another host."""

import hashlib
from pathlib import Path

_FOLDER = Path(__file__).parent / "assets"

FILES = {
    file.name: file
    for file in (
        _FOLDER / "console.css",
        _FOLDER / "console.js",
        _FOLDER / "htmx" / "htmx.min.js",
        _FOLDER / "htmx" / "hx-sse.min.js",
        _FOLDER / "pico" / "pico.min.css",
        _FOLDER / "uplot" / "uPlot.iife.min.js",
        _FOLDER / "uplot" / "uPlot.min.css",
    )
}
"""By the name under which they are served."""


def _version() -> str:
    digest = hashlib.sha256()
    for name, file in sorted(FILES.items()):
        digest.update(name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


VERSION = _version()
"""Part of their addresses, so that a browser may keep them: another release has other addresses."""
