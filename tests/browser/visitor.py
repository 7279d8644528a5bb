"""Someone who uses the console with a real browser, and notices whatever a browser has to complain about."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.async_api import Browser, ConsoleMessage, Page, Request, Response, expect

from tests.factories import PASSWORD

AXE = Path(__file__).parent / "axe" / "axe.min.js"

PATIENCE = 30_000.0
"""Milliseconds to wait for what a page shows; a busy machine is slow."""

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}

Theme = Literal["light", "dark"]

_TELL_VIOLATIONS = """
    document.addEventListener("securitypolicyviolation", (event) =>
        console.error(`the policy forbids ${event.blockedURI} (${event.violatedDirective})`));
"""

_FAULTS = """
    async () => (await axe.run(document, { resultTypes: ["violations"] })).violations.flatMap(({ id, help, nodes }) =>
        nodes.map((node) => `${id}: ${help}: ${node.html} ${[...node.any, ...node.all].map((one) => one.message)}`))
"""

_TOO_WIDE = """
    () => [...document.querySelectorAll("body *")]
        .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".scroll, .skip, pre"))
        .map((one) => one.outerHTML.slice(0, 120))
"""


class Visitor:
    """A page of a browser at one address. `faults` collects what is wrong with it; the test looks at them on exit."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.faults: list[str] = []
        self.expected_errors: set[int] = set()
        """Statuses that a test provokes; a browser complains about each."""
        page.on("console", self._on_message)
        page.on("pageerror", lambda error: self.faults.append(f"error in a script: {error}"))
        page.on("request", self._on_request)
        page.on("response", self._on_response)

    async def sign_in(self, email: str) -> None:
        await self.page.goto(f"{self.url}/console/sign-in")
        await self.page.get_by_label("E-mail address").fill(email)
        await self.page.get_by_label("Password").fill(PASSWORD)
        await self.page.get_by_role("button", name="Sign in").click()
        await expect(self.page.get_by_role("heading", level=1)).not_to_have_text("Sign in")

    async def open(self, path: str, status: int = 200) -> None:
        if status >= 400:
            self.expected_errors.add(status)
        reply = await self.page.goto(f"{self.url}{path}")
        assert reply is not None
        assert reply.status == status, f"{path}: {reply.status}"

    async def as_seen(self, theme: Theme, width: dict[str, int] = DESKTOP) -> None:
        """Have the system prefer this theme, and a window of this size."""
        await self.page.emulate_media(color_scheme=theme)
        await self.page.set_viewport_size(width)  # type: ignore[arg-type]

    async def check(self, what: str) -> None:
        """Note what axe finds on this page, and whether it has to be scrolled sideways."""
        if not await self.page.evaluate("() => 'axe' in window"):
            await self.page.evaluate(AXE.read_text())
        self.faults += [f"{what}: {fault}" for fault in await self.page.evaluate(_FAULTS)]
        if await self.page.evaluate("() => document.documentElement.scrollWidth > innerWidth"):
            self.faults.append(f"{what}: wider than the window: {await self.page.evaluate(_TOO_WIDE)}")

    def _on_message(self, message: ConsoleMessage) -> None:
        expected = any(f"status of {status} " in message.text for status in self.expected_errors)
        if message.type in ("error", "warning") and not expected:
            self.faults.append(f"{message.type} in the browser's console: {message.text}")

    def _on_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.netloc != urlsplit(self.url).netloc:
            self.faults.append(f"request to another host: {request.url}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected_errors:
            self.faults.append(f"{response.status} for {response.url}")


@asynccontextmanager
async def visiting(browser: Browser, url: str, **options: Any) -> AsyncIterator[Visitor]:
    """A new visitor without cookies. Fails on exit if there were faults."""
    context = await browser.new_context(viewport=DESKTOP, reduced_motion="reduce", **options)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE)
    await context.add_init_script(_TELL_VIOLATIONS)
    try:
        visitor = Visitor(await context.new_page(), url)
        try:
            yield visitor
        except BaseException as error:
            error.add_note("\n".join(visitor.faults))
            raise
    finally:
        await context.close()
    assert visitor.faults == [], "\n".join(visitor.faults)
