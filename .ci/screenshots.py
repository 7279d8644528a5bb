"""Take pictures of all pages of the console: `.venv/bin/python .ci/screenshots.py FOLDER`.

Needs a running `make run` with something to see, such as `waybill demo --fail 4%` for five minutes, and the Debian
packages chromium and pngquant. Each page is taken in both themes and as on a phone. With `--documentation`, those in
docs/images are replaced.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import typer
from playwright.async_api import Browser, Page, async_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from services.cli.facts import FILE_NAME  # noqa: E402
from tests.installed import installed  # noqa: E402

LOOKS = {
    "light": ("light", {"width": 1280, "height": 800}),
    "dark": ("dark", {"width": 1280, "height": 800}),
    "phone": ("light", {"width": 360, "height": 740}),
    "phone-dark": ("dark", {"width": 360, "height": 740}),
}
DOCUMENTED = {
    "overview-light": ("overview", 960),
    "failure-light": ("failure", 436),
    "order-light": ("order", 800),
    "events-dark": ("events", 620),
}
"""The pictures of the documentation: their names there, and their heights."""

Way = Callable[[Page, str], Awaitable[None]]


def at(path: str) -> Way:
    async def go(page: Page, root: str) -> None:
        await page.goto(f"{root}{path}")

    return go


async def search_orders(page: Page, root: str) -> None:
    await page.goto(f"{root}/orders")
    await page.get_by_role("button", name="Search").click()
    await page.wait_for_selector("tbody tr")


def first_link(path: str, links: str) -> Way:
    """Where the first of these links of a page leads."""

    async def go(page: Page, root: str) -> None:
        await (search_orders(page, root) if path == "/orders" else page.goto(f"{root}{path}"))
        target = await page.locator(links).first.get_attribute("href", timeout=5000)
        await page.goto(f"{root.removesuffix('/console')}{target}")

    return go


async def to_replay(page: Page, root: str) -> None:
    await PAGES["failure"](page, root)
    await page.get_by_role("button", name="Replay all matching").click()


PAGES: dict[str, Way] = {
    "overview": at("/overview?period=5m"),
    "events": at("/events?type=order.placed&waits=retry"),
    "failures": at("/failures"),
    "failure": first_link("/failures?window=hour", "tbody a"),
    "replay-all": to_replay,
    "orders": search_orders,
    "order": first_link("/orders", "tbody a"),
    "credits": at("/credits"),
    "account": at("/credits/accounts/4"),
    "consumers": at("/consumers"),
    "workers": at("/workers"),
    "log": at("/log"),
}


async def take(browser: Browser, facts: dict[str, Any], folder: Path) -> None:
    root, operator = facts["console_url"], facts["operator"]
    for look, (scheme, size) in LOOKS.items():
        context = await browser.new_context(color_scheme=scheme, viewport=size, reduced_motion="reduce")  # type: ignore[arg-type]
        page = await context.new_page()
        await page.goto(f"{root}/sign-in")
        await page.screenshot(path=folder / f"sign-in-{look}.png")
        await page.get_by_label("E-mail address").fill(operator["email"])
        await page.get_by_label("Password").fill(operator["password"])
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url("**/overview*")
        for name, go in PAGES.items():
            await go(page, root)
            await page.wait_for_timeout(1500 if name == "overview" else 300)
            _, height = DOCUMENTED.get(f"{name}-{look}", ("", None))
            if height is not None:
                await page.set_viewport_size({"width": size["width"], "height": height})
            await page.screenshot(path=folder / f"{name}-{look}.png", full_page=height is None)
            await page.set_viewport_size(size)
        await context.close()


def main(folder: Path, data_dir: Path = ROOT / ".waybill", documentation: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    facts = json.loads((data_dir / FILE_NAME).read_text())

    async def run() -> None:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=installed("chromium", "chromium"))
            await take(browser, facts, folder)
            await browser.close()

    asyncio.run(run())
    if documentation:
        for name, (documented, _) in DOCUMENTED.items():
            target = ROOT / "docs" / "images" / f"{documented}.png"
            # With a palette of few colours, they are a third as large.
            quantize = [installed("pngquant", "pngquant"), "--force", "--strip", "64", "--output", target]
            subprocess.run([*quantize, folder / f"{name}.png"], check=True)


if __name__ == "__main__":
    typer.run(main)
