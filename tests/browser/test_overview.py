"""The overview in a browser while `waybill demo` runs: numbers and charts follow, and are there after a restart."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from playwright.async_api import Browser, Page, expect

from services.database import Database
from services.settings import Settings
from services.users.models import User
from services.users.rights import Role
from tests.browser.visitor import Visitor, visiting
from tests.factories import PASSWORD, make_user
from tests.processes import Running, running

SOME = r"[\d.]*[1-9][\d.]*"
"""A number that is not zero."""


@contextmanager
def demo(url: str, settings: Settings, operator: User, approver: User, log: Path) -> Iterator[None]:
    """`waybill demo` against this service, until exit."""
    users = {"operator": operator, "approver": approver}
    given = [(f"--{name}-email", one.email, f"--{name}-password", PASSWORD) for name, one in users.items()]
    command = ["-m", "services.cli", "demo", "--url", url, "--rate", "10", *chain.from_iterable(given)]
    with running(command, settings, log) as started:
        try:
            yield
        finally:
            assert started.lives, started.said()


async def drawn(page: Page) -> str:
    """The picture that the chart of rates shows."""
    return str(await page.eval_on_selector("figure[data-series^=recorded] canvas", "(canvas) => canvas.toDataURL()"))


async def test_numbers_and_charts_follow_the_load_and_a_restarted_page_has_them_again(
    browser: Browser, ticking: Database, settings: Settings, url: str, worker: Running, tmp_path: Path
) -> None:
    operator, approver = [await make_user(ticking, role=Role.operator) for _ in range(2)]
    async with visiting(browser, url) as visitor:
        await visitor.sign_in(operator.email)
        page = visitor.page
        rates = page.locator("figure[data-series^=recorded] canvas")
        await expect(rates).to_have_attribute("aria-label", re.compile(r"Now: recorded"))
        before = await drawn(page)
        processed = page.get_by_role("article").filter(has=page.get_by_role("heading", name="Processed", exact=True))
        await expect(processed.locator(".big")).to_have_text("0.0")
        with demo(url, settings, operator, approver, tmp_path / "demo.log"):
            # First, it makes users and products.
            await expect(processed.locator(".big")).not_to_have_text(re.compile("0.0|–"), timeout=90_000)
            busy = re.compile(rf"recorded {SOME}, processed {SOME},")
            await expect(rates).to_have_attribute("aria-label", busy, timeout=60_000)
        assert await drawn(page) != before
        # The same from the history, which the worker has written.
        await page.get_by_role("link", name="1 hour").click()
        await expect(rates).to_have_attribute("aria-label", re.compile(r"recorded"))


async def test_the_charts_have_the_colours_of_the_theme(
    browser: Browser, ticking: Database, url: str, worker: Running
) -> None:
    operator = await make_user(ticking, role=Role.operator)
    async with visiting(browser, url) as visitor:
        await visitor.as_seen("light")
        await visitor.sign_in(operator.email)
        await expect(visitor.page.locator("figure canvas")).to_have_count(6)
        light = await drawn(visitor.page)
        await switch_theme(visitor, "dark")
        assert await drawn(visitor.page) != light
        await visitor.page.reload()
        await expect(visitor.page.locator("html")).to_have_attribute("data-theme", "dark")


async def switch_theme(visitor: Visitor, theme: str) -> None:
    button = visitor.page.get_by_role("button", name="Theme")
    for _ in range(3):
        if theme in await button.inner_text():
            return
        await button.click()
    raise AssertionError(f"there is no theme {theme}")
