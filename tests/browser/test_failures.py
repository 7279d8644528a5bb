"""From a failure to its repair, as an operator does it at night: find the kind, replay all of it, watch it go on."""

import asyncio
import re

from playwright.async_api import Browser, Page, expect

from services.database import Database
from services.users.rights import Role
from tests.browser.shown import letters
from tests.browser.visitor import Visitor, visiting
from tests.concurrency.test_bulk_actions import in_order
from tests.concurrency.ticks import Tick, append, effects, rows
from tests.factories import make_user
from tests.processes import Running

PARCELS, EACH = 2500, 4
LETTERS = PARCELS * EACH

BURY = """
    WITH taken AS (DELETE FROM outbox WHERE type = 'test.tick' RETURNING *)
    INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint, failures, reason)
    SELECT taken.position, taken.event_id, taken.aggregate, taken.type, first.attempts, first.error, first.fingerprint,
        first.failures, first.reason
    FROM taken CROSS JOIN dead_letters AS first
"""


async def fail_in_great_numbers(database: Database, worker: Running) -> None:
    """One event fails in the worker, and 9,999 others are left as if they had failed in the same way."""
    await rows(database, "INSERT INTO causes VALUES ('the carrier')")
    ticks = [Tick(name=f"p{name}", number=number) for number in range(EACH) for name in range(PARCELS)]
    await append(database, ticks[0])
    await letters(database, 1, worker)
    await asyncio.to_thread(worker.terminate, 30)
    for first in range(1, LETTERS, 2500):
        await append(database, *ticks[first : first + 2500])
    await rows(database, BURY)
    await rows(database, "ANALYZE dead_letters")
    await rows(database, "DELETE FROM causes")
    worker.start_again()


async def done(page: Page) -> int:
    """The number of events that the progress says are done."""
    found = re.search(r"([\d\N{NARROW NO-BREAK SPACE}]+) done", await page.locator("#progress").inner_text())
    assert found is not None
    return int(found[1].replace("\N{NARROW NO-BREAK SPACE}", ""))


async def until_past(page: Page, number: int) -> int:
    """Wait until the page, by itself, says that more than this many are done."""
    for _ in range(1200):
        if (now := await done(page)) > number:
            return now
        await asyncio.sleep(0.05)
    raise AssertionError(f"the page still says that {await done(page)} are done, and was to pass {number}")


async def until_processed(database: Database, number: int, worker: Running) -> list[tuple[str, int]]:
    for _ in range(1200):
        found = await effects(database)
        if len(found) >= number:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"{len(found)} of {number} events have taken effect; the worker: {worker.said()[-2000:]}")


async def kill_when_some_are_done(database: Database, worker: Running) -> None:
    """Kill the worker after the first chunks. The page would show them too late for that."""
    for _ in range(6000):
        if any(await rows(database, "SELECT done FROM bulk_actions")):
            worker.kill()
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"nothing was done; the worker: {worker.said()[-2000:]}")


async def start_replay(visitor: Visitor) -> None:
    """From the first page to the replay of everything that has failed with this error."""
    page = visitor.page
    await page.get_by_role("link", name="Failures").click()
    await page.get_by_role("link", name="the carrier does not know this parcel").click()
    await expect(page.get_by_role("article").filter(has_text="Letters").first).to_contain_text(re.compile(r"\d"))
    await expect(page.get_by_text("Unprocessable: the carrier does not know this parcel").first).to_be_visible()
    await page.get_by_role("button", name="Replay all matching").click()
    await expect(page.get_by_text(re.compile(r"10.000 dead letters"))).to_be_visible()
    await page.get_by_role("button", name="Replay all").click()
    # The browser itself asks for the reason.
    await expect(page).to_have_url(re.compile(r"/failures/all"))
    await page.get_by_label("Reason").fill("the carrier knows the parcels now")
    await page.get_by_role("button", name="Replay all").click()
    await expect(page.get_by_role("heading", name="Replay all matching")).to_be_visible()


async def test_an_operator_replays_ten_thousand_failures_and_watches_while_the_worker_is_killed(
    browser: Browser, ticking: Database, url: str, worker: Running
) -> None:
    operator = await make_user(ticking, role=Role.operator)
    await fail_in_great_numbers(ticking, worker)
    async with visiting(browser, url) as visitor:
        await visitor.sign_in(operator.email)
        killing = asyncio.create_task(kill_when_some_are_done(ticking, worker))
        await start_replay(visitor)
        await killing
        page = visitor.page
        await until_past(page, 0)
        await asyncio.sleep(1.5)
        at_rest = await done(page)
        assert at_rest < LETTERS, "it was over before the worker was killed"
        await expect(page.locator("#progress")).to_contain_text("running")
        worker.start_again()
        await until_past(page, at_rest)
        await expect(page.locator("#progress")).to_contain_text("finished")
        assert await done(page) == LETTERS
        await expect(page.locator("#progress")).to_contain_text("0 failed, 0 skipped")
        await page.get_by_role("link", name="Failures", exact=True).first.click()
        await expect(page.get_by_text("No dead letters.")).to_be_visible()
        await page.get_by_role("link", name="Log of actions").click()
        await expect(page.get_by_text("the carrier knows the parcels now").first).to_be_visible()
    found = await until_processed(ticking, LETTERS, worker)
    assert len(found) == len(set(found)) == LETTERS
    assert in_order(found)
