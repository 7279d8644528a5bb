"""Print docs/reference/settings.md: what .env.example says of each setting, as a page."""

import re
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / ".env.example"

HEAD = """\
# Settings

Every setting with its default. This page is generated: change `.env.example`, then run
`.venv/bin/python .ci/settings_page.py > docs/reference/settings.md`.

Settings are environment variables, or lines of a file `.env` in the working directory; the environment wins.
Durations are in seconds, sizes in bytes. `make run` needs no settings. [What production refuses](production-checks.md)
says which values, and which names, no process accepts.

Keys, tokens and URLs may be in files, such as the secrets of Docker or Kubernetes:
`WAYBILL_SECRET_KEY_FILE=/run/secrets/key` is read in place of `WAYBILL_SECRET_KEY`, without line breaks at its end, and
so on for `WAYBILL_SECRET_KEY_PREVIOUS`, `WAYBILL_METRICS_TOKEN` and every `WAYBILL_..._URL`. Setting both is an error.
"""

TITLE = re.compile(r"# --- (.+?) -+$")
SETTING = re.compile(r"^#(WAYBILL_\w+)=(.*)$", re.MULTILINE)


def page(example: str) -> str:
    """The page: a section for each of the file's, an entry for each paragraph about one setting or several."""
    parts = [HEAD]
    for paragraph in example.split("\n\n"):
        if title := TITLE.match(paragraph):
            parts.append(f"## {title[1]}\n")
        if settings := SETTING.findall(paragraph):
            said = [line[2:] for line in paragraph.splitlines() if line.startswith("# ")]
            names = [f"`{name}`: {f'`{default}`' if default else 'empty'}" for name, default in settings]
            parts.append("\\\n".join(names) + "\n")
            parts.append("\n".join(said) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page(EXAMPLE.read_text()))
