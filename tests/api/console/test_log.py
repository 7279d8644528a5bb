"""The page about the log of actions: who did what, and its export."""

import csv
import io
import json

from services.acting import Action
from services.users.rights import Role
from tests.api.client import Api
from tests.api.console.browser import Browser, Page, browser_of
from tests.factories import make_operator, make_user

PATH = "/console/log"


async def top_up(api: Api, note: str = "paid in cash") -> tuple[int, int]:
    """An operator tops a user up; returns the ids of both."""
    operator, user = await make_operator(api.database), await make_user(api.database)
    wanted = {"user_id": user.id, "amount": "5.00", "note": note}
    assert (await api.post("/v1/top-ups", by=operator, json=wanted)).status_code == 201
    return operator.id, user.id


def actions_on(page: Page) -> list[str]:
    """The actions of the rows that the page shows."""
    shown = page.text.partition("The export is recorded here, too.")[2]
    return [word for word in shown.split() if word in set(Action)]


async def test_the_log_is_shown_and_filtered(api: Api) -> None:
    operator_id, _ = await top_up(api)
    browser = await browser_of(api, Role.auditor)
    page = await browser.open(PATH)
    assert {"credits.top_up", "user.signed_in"} <= set(page.text.split())
    for query, shown in (
        (f"actor=user:{operator_id}", True),
        (f"user={operator_id}", True),
        ("action=credits.top_up", True),
        ("action=user.deleted", False),
        ("actor=user:999999", False),
        ("since=2020-01-01T00:00", True),
        ("until=2020-01-01T00:00", False),
        ("what=account/999999", False),
    ):
        page = await browser.open(f"{PATH}?{query}")
        assert ("paid in cash" in page.text) == shown, query


async def test_a_filter_that_makes_no_sense_is_named_on_the_page(api: Api) -> None:
    browser = await browser_of(api)
    for query in ("user=abc", "since=yesterday", "action=unknown", "cursor=abc", "actor=%00"):
        reply = await browser.get(f"{PATH}?{query}")
        assert (reply.status_code, 'role="alert"' in reply.text) == (400, True), query


async def test_older_actions_are_on_the_next_page(api: Api) -> None:
    await api.execute(
        "INSERT INTO audit_log (action, object, reason) SELECT 'user.deleted', 'user/' || n, 'number ' || n || '.'"
        " FROM generate_series(1, 120) AS n"
    )
    browser = await browser_of(api)
    path, seen = f"{PATH}?action=user.deleted", []
    while path:
        page = await browser.open(path)
        seen.append([number for number in range(1, 121) if f"number {number}." in page.text])
        path = next((link for link in page.links if "cursor=" in link), "")
    assert [len(one) for one in seen] == [50, 50, 20]
    assert sorted(number for one in seen for number in one) == list(range(1, 121))


async def export(browser: Browser, query: str, kind: str) -> str:
    page = await browser.open(f"{PATH}?{query}")
    (link,) = [link for link in page.links if f"log.{kind}" in link]
    reply = await browser.get(link)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-disposition"] == f'attachment; filename="audit-log.{kind}"'
    return reply.text


async def test_what_is_filtered_is_exported_and_the_export_is_recorded(api: Api) -> None:
    await top_up(api)
    browser = await browser_of(api, Role.auditor)
    rows = list(csv.DictReader(io.StringIO(await export(browser, "action=credits.top_up", "csv"))))
    assert [row["reason"] for row in rows] == ["paid in cash"]
    (line,) = (await export(browser, "action=credits.top_up", "ndjson")).splitlines()
    assert json.loads(line)["reason"] == "paid in cash"
    page = await browser.open(f"{PATH}?action=audit_log.exported")
    assert page.text.count("action:eq:credits.top_up") == 2
    assert (await browser.get(f"{PATH}.csv?user=abc")).status_code == 400


async def test_those_without_the_scope_see_and_export_nothing(api: Api) -> None:
    browser = await browser_of(api, Role.support)
    for path in (PATH, f"{PATH}.csv", f"{PATH}.ndjson"):
        assert (await browser.get(path)).status_code == 403


async def test_what_is_in_the_log_is_escaped(api: Api) -> None:
    bad = "<script>alert(1)</script>"
    await top_up(api, bad)
    reply = await (await browser_of(api)).get(PATH)
    assert bad not in reply.text
    assert bad in Page(reply.text).text
    again = await (await browser_of(api)).get(f"{PATH}?actor={bad}")
    assert bad not in again.text
