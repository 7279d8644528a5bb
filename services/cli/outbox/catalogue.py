"""Every event type that Waybill writes, as the page `docs/reference/events.md`."""

import importlib
import pkgutil
from datetime import datetime
from decimal import Decimal
from inspect import getdoc
from typing import Any, get_args, get_origin
from uuid import UUID

import services
from services.outbox.events import Event, defined, personal_fields

_HEAD = """\
# Events

Each event type and the fields of its payload. This page is generated: change the code, then run
`waybill outbox types --markdown > docs/reference/events.md`.

[The event log](engine.md#the-event-log) describes the fields that all events share, such as position and time.
Workers process the events that are queued; the others are only written to the log. Amounts have at most two decimals.
Of a dead letter's payload, auditors do not see the fields that are personal: who it is about, and what someone wrote.

| type | version | aggregate | queued |
|---|---|---|---|
"""

_JSON = {
    int: "integer",
    str: "string",
    bool: "boolean",
    Decimal: "string (decimal)",
    UUID: "string (UUID)",
    datetime: "string (RFC 3339)",
}


def event_types() -> list[type[Event]]:
    """Every event type of every subject, by name."""
    for module in pkgutil.walk_packages(services.__path__, f"{services.__name__}."):
        if module.name.endswith(".events"):
            importlib.import_module(module.name)
    ours = (kind for kind in defined() if kind.__module__.startswith(f"{services.__name__}."))
    return sorted(ours, key=lambda kind: kind.type)


def as_markdown() -> str:
    """The page."""
    found = event_types()
    rows = (
        f"| [`{kind.type}`](#{kind.type.replace('.', '')}) | {kind.version} | `{_aggregate(kind)}` "
        f"| {'yes' if kind.queued else 'no'} |\n"
        for kind in found
    )
    return _HEAD + "".join(rows) + "".join(map(_section, found))


def _section(kind: type[Event]) -> str:
    rows = (
        f"| `{name}` | {_as_json(field.annotation)} | {field.description or ''}{_mark(kind, name)} |\n"
        for name, field in kind.model_fields.items()
    )
    return f"\n## {kind.type}\n\n{getdoc(kind)}\n\n| field | type | meaning |\n|---|---|---|\n{''.join(rows)}"


def _mark(kind: type[Event], name: str) -> str:
    return " *Personal.*" if name in personal_fields(kind) else ""


def _aggregate(kind: type[Event]) -> str:
    """Its pattern, such as `order/{order_id}`."""
    names: dict[str, Any] = {name: f"{{{name}}}" for name in kind.model_fields}
    return kind.model_construct(**names).aggregate


def _as_json(annotation: Any) -> str:
    if get_origin(annotation) is dict:
        return f"object of {_as_json(get_args(annotation)[1])}s"
    return _JSON[annotation]
