"""Who gets into the console, how, and for how long."""

import re

import httpx2
import pytest

from services.app import create_app
from services.settings import Settings
from services.users.rights import Role
from tests.api import second_factors
from tests.api.client import Api, assert_problem
from tests.api.console.browser import SAME_ORIGIN, Browser, Page, browser_of
from tests.factories import PASSWORD, make_user

STAFF = [role for role in Role if role.is_staff]


@pytest.mark.parametrize("role", [Role.operator, Role.auditor, Role.admin])
async def test_the_staff_signs_in_and_comes_to_the_overview(api: Api, role: Role) -> None:
    browser = Browser(api)
    user = await make_user(api.database, role=role, full_name="Olga O'Hara <b>")
    reply = await browser.sign_in(user)
    assert (reply.status_code, reply.headers["location"]) == (303, "/console")
    page = await browser.open("/console")
    assert "Overview" in page.text
    assert f"Olga O'Hara <b> ({role.value})" in page.text, "escaped, so that it is text"


@pytest.mark.parametrize("role", [Role.customer, Role.seller])
async def test_a_customer_is_refused_and_has_no_session(api: Api, role: Role) -> None:
    browser = Browser(api)
    user = await make_user(api.database, role=role)
    reply = await browser.sign_in(user)
    assert reply.status_code == 403
    assert f"your role is {role.value}. The console is for operators" in Page(reply.text).text
    assert "waybill_console" not in browser.client.cookies
    assert await api.scalar("SELECT count(*) FROM refresh_tokens") == 0
    assert await api.scalar("SELECT count(*) FROM failed_attempts WHERE failures > 0") == 0, "the password was right"


async def test_a_session_of_a_customer_opens_no_page(api: Api) -> None:
    user = await make_user(api.database)
    token = (await api.sign_in(user.email)).json()["refresh_token"]
    browser = Browser(api)
    browser.client.cookies.set("waybill_console", token)
    reply = await browser.get("/console/overview")
    assert reply.status_code == 403
    assert "The console is for the staff; your role is customer." in Page(reply.text).text


async def test_without_a_session_every_page_is_the_form_to_sign_in_and_leads_back(api: Api) -> None:
    browser = Browser(api)
    for path in ("/console", "/console/overview"):
        reply = await browser.get(path)
        assert reply.status_code == 401
        assert Page(reply.text).form("/sign-in").fields["target"] == path
    user = await make_user(api.database, role=Role.operator)
    form = Page(reply.text).form("/sign-in")
    signed_in = await browser.send(form, {"email": user.email, "password": PASSWORD})
    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/console/overview")


async def test_a_link_of_another_site_opens_the_page_for_someone_who_is_signed_in(api: Api) -> None:
    # The browser leaves out the cookie, because it is sent within the site only.
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    first = await Browser(api).get("/console/overview", headers=elsewhere)
    assert first.status_code == 200
    assert '<meta http-equiv="refresh" content="0">' in first.text
    again = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"}
    assert (await Browser(api).get("/console/overview", headers=again)).status_code == 401


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example/console",
        "/console.evil.example",
        "/console/../v1/users/me",
        "/console/\\evil",
        "/v1/orders",
        "/console/x\r\nSet-Cookie: a=b",
    ],
)
async def test_a_sign_in_leads_nowhere_else(api: Api, target: str) -> None:
    user = await make_user(api.database, role=Role.operator)
    reply = await Browser(api).sign_in(user, target=target)
    assert (reply.status_code, reply.headers["location"]) == (303, "/console")


async def test_a_wrong_password_is_told_as_such_and_counted(api: Api) -> None:
    user = await make_user(api.database, role=Role.operator)
    browser = Browser(api)
    for _ in range(api.settings.sign_in_attempts):
        reply = await browser.sign_in(user, "a wrong password")
        assert reply.status_code == 401
        page = Page(reply.text)
        assert "The e-mail address or the password is wrong." in page.text
        assert page.form("/sign-in").fields["email"] == user.email
        assert page.form("/sign-in").fields["password"] == ""
    reply = await browser.sign_in(user)
    assert reply.status_code == 429, "the same count as that of POST /v1/token"
    assert int(reply.headers["retry-after"]) >= 1
    assert (await api.sign_in(user.email)).status_code == 429


async def test_a_second_factor_is_asked_for_and_its_code_works_once(api: Api) -> None:
    user = await make_user(api.database, role=Role.operator)
    app = await second_factors.enrol(api, user)
    browser = Browser(api)
    reply = await browser.sign_in(user)
    assert reply.status_code == 401
    assert "Your account has a second factor: type its code as well." in Page(reply.text).text
    assert (await browser.sign_in(user, otp=app.wrong_code())).status_code == 401
    code = app.code()
    assert (await browser.sign_in(user, otp=f" {code} ")).status_code == 303
    assert (await browser.sign_in(user, otp=code)).status_code == 401


async def test_someone_who_has_to_set_up_a_second_factor_is_told_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await browser_of(api)
    monkeypatch.setattr(Settings, "requires_totp", True)
    for path in ("/console", "/console/overview"):
        reply = await browser.get(path)
        assert reply.status_code == 403
        assert "Your role needs a second factor" in Page(reply.text).text


async def test_the_cookie_is_hidden_from_scripts_and_other_sites(api: Api, settings: Settings) -> None:
    user = await make_user(api.database, role=Role.operator)
    cookies = (await Browser(api).sign_in(user)).headers.get_list("set-cookie")
    (kept,) = [one for one in cookies if one.startswith("waybill_console=")]
    assert re.fullmatch(r"waybill_console=wbr_[\w-]{43}; HttpOnly; Path=/console; SameSite=strict", kept)


async def test_outside_development_the_cookie_needs_https(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "is_development", False)
    reply = await Browser(api).get("/console/sign-in")
    (kept,) = reply.headers.get_list("set-cookie")
    assert kept.startswith("__Secure-waybill_visitor=")
    assert kept.endswith("; HttpOnly; Path=/console; SameSite=strict; Secure")


async def test_signing_out_ends_the_session_and_forgets_the_cookie(api: Api) -> None:
    browser = await browser_of(api)
    token = browser.client.cookies["waybill_console"]
    page = await browser.open("/console")
    reply = await browser.send(page.form("/sign-out"))
    assert (reply.status_code, reply.headers["location"]) == (303, "/console/sign-in")
    assert "waybill_console" not in browser.client.cookies
    browser.client.cookies.set("waybill_console", token)
    assert (await browser.get("/console/overview")).status_code == 401


async def test_a_session_that_is_ended_elsewhere_ends_here_at_once(api: Api) -> None:
    user = await make_user(api.database, role=Role.operator)
    browser = Browser(api)
    await browser.sign_in(user)
    listed = (await api.get("/v1/sessions", by=user)).json()["data"]
    (session,) = [one for one in listed if not one["current"]]
    assert (await api.delete(f"/v1/sessions/{session['id']}", by=user)).status_code == 204
    reply = await browser.get("/console/overview")
    assert reply.status_code == 401
    assert "Your session has ended; sign in again." in Page(reply.text).text
    part = await browser.get("/console/overview", headers={"HX-Request": "true"})
    assert part.headers["hx-refresh"] == "true", "a part of a page loads the whole page again"


async def test_a_session_whose_cookie_was_used_elsewhere_ends_for_both(api: Api) -> None:
    browser = await browser_of(api)
    stolen = {"grant_type": "refresh_token", "refresh_token": browser.client.cookies["waybill_console"]}
    taken = (await api.client.post("/v1/token", data=stolen)).json()
    # At once, as pages that are open do: no browser has used it, and so none tries again.
    assert (await browser.get("/console/overview")).status_code == 401
    headers = {"Authorization": f"Bearer {taken['access_token']}"}
    assert_problem(await api.get("/v1/users/me", headers=headers), 401, "unauthenticated")
    assert await api.scalar("SELECT count(*) FROM audit_log WHERE action = 'session.token_reused'") == 1


async def test_a_session_lasts_half_a_day_from_its_last_use(api: Api) -> None:
    browser = await browser_of(api)
    left = "SELECT extract(epoch FROM max(expires_at) - now()) FROM sessions JOIN refresh_tokens ON session_id = id"
    assert 43_000 < await api.scalar(left) <= 43_200
    await api.execute(
        "UPDATE sessions SET last_used_at = now() - interval '2 minutes', expires_at = now() + interval '5 minutes' "
        "FROM refresh_tokens WHERE session_id = sessions.id"
    )
    await browser.open("/console")
    assert 43_000 < await api.scalar(left) <= 43_200
    await api.execute("UPDATE sessions SET expires_at = now() - interval '1 second'")
    assert (await browser.get("/console/overview")).status_code == 401


async def test_a_form_needs_its_token(api: Api) -> None:
    browser = await browser_of(api)
    form = (await browser.open("/console")).form("/sign-out")
    other = (await (await browser_of(api)).open("/console")).form("/sign-out")
    for token in ("", "0" * 64, other.fields["form_token"], "\N{SNOWMAN}"):
        reply = await browser.send(form, {"form_token": token})
        assert reply.status_code == 403
        assert "This form belongs to another session" in Page(reply.text).text
    assert (await browser.client.post(form.action, headers=SAME_ORIGIN)).status_code == 403
    reply = await browser.send(form)
    assert reply.status_code == 303, reply.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://api.test", "Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_a_form_that_another_site_sends_is_refused(api: Api, headers: dict[str, str]) -> None:
    browser = await browser_of(api)
    form = (await browser.open("/console")).form("/sign-out")
    reply = await browser.send(form, headers=headers)
    assert reply.status_code == 403
    assert "This form was sent by another site" in Page(reply.text).text
    assert (await browser.get("/console/overview")).status_code == 200, "the session goes on"


async def test_a_browser_that_only_sends_an_origin_is_understood(api: Api) -> None:
    browser = await browser_of(api)
    form = (await browser.open("/console")).form("/sign-out")
    assert (await browser.send(form, headers={"Origin": "http://api.test"})).status_code == 303


async def test_the_api_does_not_take_the_cookie(api: Api) -> None:
    browser = await browser_of(api)
    assert (await browser.get("/v1/users/me")).status_code == 401
    token = browser.client.cookies["waybill_console"]
    assert (await api.get("/v1/users/me", headers={"Cookie": f"waybill_console={token}"})).status_code == 401


async def test_the_console_does_not_take_tokens_of_the_api(api: Api) -> None:
    user = await make_user(api.database, role=Role.operator)
    assert (await api.get("/console/overview", by=user)).status_code == 401


async def test_the_console_works_below_a_prefix(api: Api) -> None:
    browser = Browser(api, root_path="/shop")
    user = await make_user(api.database, role=Role.operator)
    reply = await browser.get("/shop/console/overview")
    form = Page(reply.text).form("/sign-in")
    assert (form.action, form.fields["target"]) == ("/shop/console/sign-in", "/shop/console/overview")
    signed_in = await browser.send(form, {"email": user.email, "password": PASSWORD})
    assert signed_in.headers["location"] == "/shop/console/overview"
    assert "Path=/shop/console;" in signed_in.headers.get_list("set-cookie")[0]
    page = await browser.open("/shop/console")
    assert all(path.startswith(("/shop/console", "data:,", "#")) for path in page.loaded + page.links), page.loaded


async def test_the_console_can_be_turned_off(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"console": False}))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://api.test") as client:
        for path in ("/console", "/console/sign-in", "/console/overview"):
            assert (await client.get(path)).status_code == 404
