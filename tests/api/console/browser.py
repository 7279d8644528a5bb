"""A person at the console: keeps cookies, follows redirects, and sends the forms that pages contain."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import httpx2

from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api
from tests.factories import PASSWORD, make_user

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}


@dataclass
class Form:
    """A form of a page: where it is sent to, and the values that its fields have."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)


class Page(HTMLParser):
    """What tests look at in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.inline: list[str] = []
        """Code and styles in the page itself, which its policy forbids."""
        self.words: list[str] = []
        self.feed(text)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def form(self, action: str) -> Form:
        """The form with this end of its action."""
        return next(form for form in self.forms if form.action.endswith(action))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(given.get("action", ""), given.get("method", "get")))
        if tag in ("input", "select", "textarea") and "name" in given and self.forms:
            self.forms[-1].fields[given["name"]] = given.get("value", "")
        if tag == "a":
            self.links.append(given.get("href", ""))
        self.loaded += [given[name] for name in ("src", "href") if name in given and tag != "a"]
        if (tag == "script" and "src" not in given) or tag == "style":
            self.inline.append(tag)
        self.inline += [name for name in given if name.startswith(("on", "hx-on")) or name == "style"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


class Browser:
    """A browser with which someone uses the console of this application."""

    def __init__(self, api: Api, **options: Any) -> None:
        self.api = api
        transport = httpx2.ASGITransport(api.app, raise_app_exceptions=False, **options)
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://api.test")

    async def get(self, path: str, **more: Any) -> httpx2.Response:
        return await self.client.get(path, **more)

    async def open(self, path: str) -> Page:
        """The page at this path, wherever that leads."""
        reply = await self.client.get(path, follow_redirects=True)
        assert reply.status_code == 200, f"{reply.status_code}: {reply.text}"
        return Page(reply.text)

    async def send(
        self, form: Form, values: Mapping[str, str] | None = None, headers: Mapping[str, str] = SAME_ORIGIN
    ) -> httpx2.Response:
        """Send a form of a page with these values; the reply is not followed if it leads elsewhere."""
        assert form.method == "post"
        return await self.client.post(form.action, data={**form.fields, **(values or {})}, headers=headers)

    async def sign_in(self, user: User, password: str = PASSWORD, **values: str) -> httpx2.Response:
        page = Page((await self.get("/console/sign-in")).text)
        return await self.send(page.form("/sign-in"), {"email": user.email, "password": password, **values})


async def browser_of(api: Api, role: Role = Role.operator) -> Browser:
    """The browser of a new user with this role, who is signed in."""
    browser = Browser(api)
    reply = await browser.sign_in(await make_user(api.database, role=role, full_name=f"Some {role.value}"))
    assert reply.status_code == 303, reply.text
    return browser
