"""What is asked for: of each page, its JSON twin and each command that reads, with the values that cost most.

A test compares these tables with the application's routes and the command line: what is missing here fails it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from services.console.navigation import ROOT

OPERATIONS = "/v1/operations"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `{names}` are replaced by those of the database; `form` or `body` make it a POST."""

    path: str
    form: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """As it is shown."""
        given = " ".join(f"{name}={value}" for name, value in {**(self.form or {}), **(self.body or {})}.items())
        method = "GET" if self.form is None and self.body is None else "POST"
        return f"{method} {self.path} {given}".strip()

    def target(self, names: Mapping[str, str]) -> str:
        return self.path.format_map({name: quote(value) for name, value in names.items()})


_PERIODS = ("5m", "1h", "24h")
_REASONS = ("ready", "retry", "behind", "begun", "unknown", "deferred", "paused")
_WAITING = (
    *(("order.placed", reason) for reason in ("ready", "retry", "behind", "begun", "paused", "unknown")),
    ("order.returned", "unknown"),
    ("order.returned", "behind"),
    ("order.cancelled", "paused"),
    ("reminder", "deferred"),
    ("reminder", "retry"),
    ("none", "ready"),
)
_SEARCHES: Sequence[Mapping[str, str]] = (
    {},
    {"id": "{order_id}"},
    {"buyer": "{buyer_id}"},
    {"buyer": "{buyer_id}", "status": "rejected"},
    {"buyer": "user77@example.com"},
    {"reference": "INV-4"},
    {"reference": "none"},
    {"status": "rejected"},
    {"status": "pending"},
    {"status": "awaiting_payment", "placed_before": "2020-01-01T00:00"},
    {"placed_from": "2020-01-01T00:00"},
    {"buyer": "{buyer_id}", "placed_from": "2099-01-01T00:00"},
)
_LOGGED: Sequence[tuple[str, str, str]] = (
    ("actor", "actor", "user:1"),
    ("actor", "actor", "none"),
    ("user", "user_id", "1"),
    ("user", "user_id", "999999"),
    ("action", "action", "credits.top_up"),
    ("action", "action", "user.erased"),
    ("what", "object", "user/1"),
    ("what", "object", "none"),
    ("since", "at:gte", "2020-01-01T00:00"),
    ("until", "at:lt", "2020-01-01T00:00"),
)
_LETTERS = ("type:eq:order.fulfilled", "type:eq:none", "fingerprint:eq:kind 0", "fingerprint:eq:kind 7",
            "reason:eq:time_limit", "reason:eq:bisected", "aggregate:eq:none", "died_at:gte:2020-01-01T00:00:00Z",
            "died_at:lt:2020-01-01T00:00:00Z")  # fmt: skip
_PREVIEWS = (
    "action=replay&fingerprint=kind%200",
    "action=replay&everything=true",
    "action=discard&type=order.fulfilled",
    "action=replay&type=none",
    "action=replay&aggregate=none&fingerprint=kind%200",
    "action=replay&died_before=2020-01-01T00:00:00Z",
    "action=retry_now&everything=true",
    "action=retry_now&type=order.placed",
    "action=bury&waits=unknown",
    "action=bury&type=none",
)


def _with(path: str, *queries: str) -> Iterator[Ask]:
    for query in queries:
        yield Ask(f"{path}?{query}" if query else path)


def pages() -> Iterator[Ask]:
    """Every page of the console that reads."""
    yield from _with(ROOT, "", "")
    yield from _with(f"{ROOT}/sign-in", "")
    yield from _with(f"{ROOT}/assets/{{version}}/{{asset}}", "")
    yield from _with(f"{ROOT}/overview", *(f"period={one}" for one in _PERIODS))
    yield from _with(f"{ROOT}/overview/history", *(f"period={one}" for one in _PERIODS))
    yield from _with(f"{ROOT}/overview/live", "")
    searched = (
        "{position}",
        "{behind}",
        "{letter}",
        "{event_id}",
        "{letter_event_id}",
        "thing/77",
        "none/1",
        "{order_id}",
    )
    yield from _with(f"{ROOT}/events", "", *(f"q={one}" for one in searched))
    yield from _with(f"{ROOT}/events", *(f"type={name}&waits={reason}" for name, reason in _WAITING))
    yield from _with(
        f"{ROOT}/events/why", "position={position}", "position={behind}", "position={letter}", "position=5"
    )
    windows = ("window=hour", "window=day", "window=week")
    yield from _with(f"{ROOT}/failures", *windows, "type=order.fulfilled", "type=none", "reason=time_limit")
    of_kinds = ("fingerprint=kind%200", "fingerprint=kind%207", "fingerprint=kind%200&window=week")
    yield from _with(f"{ROOT}/failures/group", *of_kinds)
    yield from _with(f"{ROOT}/failures/all", "act=replay&fingerprint=kind%200", "act=discard&fingerprint=kind%207")
    yield from _with(f"{ROOT}/failures/letters/{{letter}}", "")
    yield from _with(f"{ROOT}/bulk/{{action_id}}", "")
    yield from _with(f"{ROOT}/bulk/{{action_id}}/progress", "")
    yield from _with(f"{ROOT}/orders", "")
    for search in _SEARCHES:
        yield Ask(f"{ROOT}/orders", form=search)
    for order in ("order_id", "of_big_buyer", "in_burst", "waiting_order"):
        yield from _with(f"{ROOT}/orders/{{{order}}}", "")
    yield from _with(f"{ROOT}/credits", "")
    for user in ("{buyer_id}", "user77@example.com"):
        yield Ask(f"{ROOT}/credits", form={"user": user})
    for account in ("buyer_id", "seller_id", "user_id"):
        yield from _with(f"{ROOT}/credits/accounts/{{{account}}}", "")
    yield from _with(f"{ROOT}/consumers", "")
    yield from _with(f"{ROOT}/workers", "")
    logged = [f"{name}={value}" for name, _, value in _LOGGED]
    yield from _with(f"{ROOT}/log", "", *logged, "actor=user:1&action=user.erased")
    yield from _with(f"{ROOT}/log.csv", "", "actor=none")
    yield from _with(f"{ROOT}/log.ndjson", "", "actor=none")


def twins() -> Iterator[Ask]:
    """What the pages show, as JSON."""
    for name in ("overview", "types", "workers", "consumers", "jobs", "audit", "sweep-failures", "backlog"):
        yield from _with(f"{OPERATIONS}/{name}", "")
    yield from _with(f"{OPERATIONS}/history", *(f"period={one}" for one in _PERIODS))
    yield from _with(f"{OPERATIONS}/orders-by-day", "days=366")
    waiting = ("position={position}", "position={behind}", "event_id={event_id}", "aggregate=thing/77")
    yield from _with(f"{OPERATIONS}/why", *waiting)
    yield from _with(f"{OPERATIONS}/waiting", *(f"type={name}&reason={reason}&limit=200" for name, reason in _WAITING))
    groups = f"{OPERATIONS}/dead-letter-groups"
    yield from _with(groups, "window=hour", "window=week&limit=50", "type=order.fulfilled", "reason=time_limit")
    yield from _with(f"{groups}/kind%200", "", "window=week")
    letters = f"{OPERATIONS}/dead-letters"
    yield from _with(letters, "", "count=estimate", "count=exact", *(f"filter={quote(one)}" for one in _LETTERS))
    yield from _with(f"{letters}/{{letter}}", "")
    sorts = ("sort=available_at", "sort=-available_at", "filter=type:eq:reminder", "filter=aggregate:eq:none")
    yield from _with(f"{OPERATIONS}/deferred", "", "count=exact", *sorts)
    bulk = f"{OPERATIONS}/bulk-actions"
    yield from _with(bulk, "", "filter=state:in:waiting,running", "filter=action:eq:bury")
    yield from _with(f"{bulk}/preview", *_PREVIEWS)
    yield from _with(f"{bulk}/{{action_id}}", "")
    for search in _SEARCHES:
        yield Ask(f"{OPERATIONS}/orders/search", body=dict(_as_json(search)))
    for order in ("order_id", "of_big_buyer", "in_burst", "waiting_order"):
        yield from _with(f"{OPERATIONS}/orders/{{{order}}}/timeline", "")
    yield from _with("/v1/adjustments", "", "filter=state:eq:pending&sort=id", "filter=user_id:eq:{buyer_id}")
    logged = [f"filter={name if ':' in name else f'{name}:eq'}:{value}" for _, name, value in _LOGGED]
    yield from _with("/v1/audit-log", "", "count=exact", *(f"{one}:00Z" if "T" in one else one for one in logged))
    yield from _with("/v1/audit-log.csv", "")
    yield from _with("/v1/audit-log.ndjson", "")


def _as_json(search: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name, value in search.items():
        if name == "buyer" and "@" in value:
            yield "buyer_email", value
        elif name == "buyer":
            yield "buyer_id", value
        elif name == "status":
            yield name, [value]
        else:
            yield name, f"{value}:00Z" if name.startswith("placed") else value


SEEN_ELSEWHERE = {f"{OPERATIONS}/books"}
"""Reads that recount the books: they grow with them, and are not on a page."""

COMMANDS = (
    "outbox status",
    "outbox types",
    "outbox why {position}",
    "outbox why {behind}",
    "outbox why {event_id}",
    "outbox why thing/77",
    *(f"outbox waiting {name} --reason {reason}" for name, reason in _WAITING[:4]),
    "outbox waiting reminder --reason deferred",
    "workers list",
    "workers check",
    "users list",
    "users show {buyer_id}",
    "events tail",
    "top --once",
    "outbox dead-letters groups",
    "outbox dead-letters groups --window week --limit 50",
    "outbox dead-letters list",
    "outbox dead-letters list --type order.fulfilled",
    "outbox dead-letters list --fingerprint none",
    "outbox dead-letters list --failure-reason time_limit",
    "outbox dead-letters list --died-before 2020-01-01",
    "outbox dead-letters list --died-from 2099-01-01",
    "outbox dead-letters show {letter}",
    "outbox replay --fingerprint 'kind 7' --dry-run --reason because",
    "outbox replay --died-from 2020-01-01 --dry-run --reason because",
    "outbox discard --died-before 2020-01-01 --dry-run --reason because",
    "outbox deferred",
    "outbox deferred --type reminder",
    "outbox deferred --type none",
    "outbox bulk list",
    "outbox bulk list --state running",
    "outbox bulk show {action_id}",
    "outbox bulk replay --all --dry-run --reason because",
    "outbox bulk discard --type order.fulfilled --dry-run --reason because",
    "outbox bulk retry-now --all --dry-run --reason because",
    "outbox bulk bury --waits unknown --dry-run --reason because",
    "outbox consumers list",
    "orders show {order_id}",
    "orders show {of_big_buyer}",
    "orders show {in_burst}",
    "orders show INV-4",
    "orders find",
    "orders find --status rejected",
    "orders find --buyer {buyer_id} --since 2099-01-01",
    "orders-by-day --days 366",
    "jobs list",
    "audit-log",
    "audit-log --user user77@example.com",
    "audit-log --actor none",
    "audit-log --action user.erased",
    "audit-log --object none --since 2020-01-01",
    "audit-log --actor user:1 --action user.erased",
    "audit-log --until 2020-01-01",
    "doctor",
)
"""Each command that reads a limited number of rows."""

OTHER_COMMANDS = frozenset({
    "up", "status", "down", "demo", "api", "worker",
    "migrate", "database-roles", "clean-data", "create-operator", "import-retail", "replay",
    "users create", "users set-role", "users reset-totp", "users erase", "users export",
    "outbox pause", "outbox resume", "outbox limit", "outbox retry-now", "outbox bury", "outbox cancel", "workers ask",
    "outbox partitions", "outbox rebase", "outbox bulk wait", "outbox bulk cancel",
    "outbox consumers reset", "outbox consumers pause", "outbox consumers resume", "outbox consumers delete",
    "reports rebuild", "jobs run", "jobs pause", "jobs resume", "ledger audit",
})  # fmt: skip
"""The commands that change something, run until they are stopped, or read everything, as the audit does."""
