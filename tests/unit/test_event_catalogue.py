"""`docs/reference/events.md` says what the code writes."""

import importlib
import pkgutil
from inspect import getdoc
from pathlib import Path

from typer.testing import CliRunner

import services
from services.cli.main import app
from services.cli.outbox.catalogue import as_markdown, event_types

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "events.md"


def test_the_page_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(app, ["outbox", "types", "--markdown"])
    assert printed.exit_code == 0, printed.output
    assert PAGE.read_text() == printed.output, "run: waybill outbox types --markdown > docs/reference/events.md"


def test_no_event_is_left_out() -> None:
    """Each is in a module called `events`, where the catalogue looks."""
    found = event_types()
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert event_types() == found
    assert len(found) >= 19
    assert len({kind.type for kind in found}) == len(found)


def test_every_event_and_every_field_is_explained() -> None:
    for kind in event_types():
        assert kind.__doc__, kind
        assert all(field.description for field in kind.model_fields.values()), kind
        assert f"\n## {kind.type}\n\n{getdoc(kind)}\n" in as_markdown()
