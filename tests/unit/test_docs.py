"""The pages: every link leads somewhere, generated pages are up to date, and references leave nothing out."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from services.app import create_app
from services.cli.main import COMMANDS, load
from services.errors import DomainError
from services.settings import Environment, Settings
from services.users.rights import Scope

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
NOT_OURS = {".venv", ".venv-bench", ".waybill", "build", "dist"}

OURS = [entry for entry in ROOT.iterdir() if entry.name not in NOT_OURS]
PAGES = sorted(
    page.relative_to(ROOT)
    for entry in OURS
    for page in (entry.rglob("*.md") if entry.is_dir() else [entry])
    if page.suffix == ".md"
)

FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)|^\[[^\]]+\]: +(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(.+?)#* *$", re.MULTILINE)


def links(text: str) -> list[str]:
    """The targets of the links of a page, but for those in code."""
    return [inline or named for inline, named in LINK.findall(CODE.sub("", FENCE.sub("", text)))]


@cache
def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may end in, by GitHub's rules."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text())):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        again = sum(other == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", other) is not None for other in found)
        found.add(f"{anchor}-{again}" if again else anchor)
    return found


def broken(page: Path) -> list[str]:
    """The relative links of the page that lead nowhere."""
    wrong = []
    for target in links(page.read_text()):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        if (
            not file.exists()
            or not file.is_relative_to(ROOT)
            or (anchor and (file.suffix != ".md" or anchor not in anchors(file)))
        ):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_and_anchor_of_a_page_resolves(page: Path) -> None:
    assert broken(ROOT / page) == []


def test_links_that_lead_nowhere_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# `a.b_c`: Two, three\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    right = ["[a](.)", "[a](x:y)", "[a](#here)"]
    right += ["[a](other.md)", "[a](other.md#ab_c-two-three)", "[a](other.md#twice-1)"]
    wrong = ["[a](no.md)", "[a](other.md#no-heading)", "[a](other.md#twice-2)", "[a](#there)", "[a](../page.md)"]
    page.write_text("\n\n".join(["# Here", *right, *wrong, "[a]: gone.md", "`[a](code)`", "```\n[a](code)\n```"]))
    assert broken(page) == [*(link[4:-1] for link in wrong), "gone.md"]


def test_the_index_lists_every_page() -> None:
    docs = ROOT / "docs"
    listed = {(docs / target.partition("#")[0]).resolve() for target in links((docs / "README.md").read_text())}
    pages = {page for page in docs.rglob("*.md") if page.parent.name != "decisions"} - {docs / "README.md"}
    assert pages - listed == set()


def test_the_page_of_settings_is_what_env_example_says() -> None:
    generator = ROOT / ".ci" / "settings_page.py"
    printed = subprocess.run([sys.executable, generator], capture_output=True, text=True, check=True).stdout
    run = ".venv/bin/python .ci/settings_page.py > docs/reference/settings.md"
    assert (REFERENCE / "settings.md").read_text() == printed, f"run: {run}"
    assert set(re.findall(r"^`WAYBILL_(\w+)`: ", printed, re.MULTILINE)) == {
        name.upper() for name in Settings.model_fields
    }


def test_the_page_of_roles_is_what_the_code_declares() -> None:
    generator = ROOT / ".ci" / "roles_page.py"
    printed = subprocess.run([sys.executable, generator], capture_output=True, text=True, check=True).stdout
    run = ".venv/bin/python .ci/roles_page.py > docs/reference/roles.md"
    assert (REFERENCE / "roles.md").read_text() == printed, f"run: {run}"
    assert [scope for scope in Scope if printed.count(f"\n| `{scope.value}` | ") != 2] == []


def commands(command: Any, name: str) -> list[str]:
    """The full names of a command's commands, or its own where it has none."""
    inner = getattr(command, "commands", {})
    return [found for one, of in inner.items() for found in commands(of, f"{name} {one}")] or [name]


def test_every_command_is_in_the_reference() -> None:
    page = (REFERENCE / "command-line.md").read_text()
    found = [name for top, command in COMMANDS.items() if not command.hidden for name in commands(load(top), top)]
    assert len(found) > 20
    assert [name for name in found if not re.search(rf"`waybill {name}[` ]", page)] == []


def codes(kind: type[DomainError]) -> set[str]:
    return {kind.code}.union(*(codes(under) for under in kind.__subclasses__()))


def test_every_code_of_a_domain_error_is_in_the_reference() -> None:
    page = (REFERENCE / "http-api.md").read_text()
    found = {code for under in DomainError.__subclasses__() for code in codes(under)}
    assert len(found) > 20
    assert {code for code in found if f"`{code}`" not in page} == set()


def test_every_metric_is_in_the_reference() -> None:
    page, _, _ = (REFERENCE / "metrics.md").read_text().partition("## Alerts")
    source = "\n".join(file.read_text() for file in (ROOT / "services" / "api").glob("*.py"))
    found = set(re.findall(r'"(waybill_[a-z_]+)"', source))
    assert len(found) > 10
    assert {name for name in found if f"`{name}" not in page} == set()


def test_every_operation_is_in_the_reference_by_the_end_of_its_path() -> None:
    page = (REFERENCE / "http-api.md").read_text()
    app = create_app(Settings(environment=Environment.development))
    last = {re.sub(r"/\{\w+\}$", "", path) for path in app.openapi()["paths"]}
    assert len(last) > 30
    assert sorted(path for path in last if f"/{path.rpartition('/')[2]}" not in page) == []
