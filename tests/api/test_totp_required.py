"""The staff needs a second factor where the settings say so, and nobody goes round one."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from benchmarks.sessions import session_of
from services.cli.main import app as cli
from services.database import Database
from services.settings import Environment, Settings
from services.unit_of_work import UnitOfWork
from services.users.rights import PROFILE, SCOPES, Role, Scope
from tests.api.client import Api, assert_problem, order_of
from tests.api.grouped import Gate, together
from tests.api.programs import make_key, order_with, with_key
from tests.api.second_factors import PATH, enrol, sign_in, start
from tests.factories import PASSWORD, make_product, make_user
from worker.context import open_worker
from worker.jobs.mails import send_mails
from worker.jobs.secrets import reencrypt_secrets
from worker.schedules import scheduled_jobs

OLD, NEW = "the old key of this installation, which is long", "the new key of this installation, which is long"


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    return settings.model_copy(update={"totp_required": True, "secret_key": SecretStr(OLD)})


@pytest.mark.parametrize(
    ("environment", "given", "required"),
    [
        ("production", None, True),
        ("production", "", True),
        ("development", None, False),
        ("production", "false", False),
        ("development", "1", True),
    ],
)
def test_production_requires_it_unless_the_setting_says_otherwise(
    environment: str, given: str | None, required: bool
) -> None:
    more: dict[str, Any] = {"totp_required": given, "email_verification": False}
    made = Settings(
        _env_file=None,
        environment=Environment(environment),
        secret_key=SecretStr(OLD),
        mail_url=SecretStr("file:///x"),
        **more,
    )
    assert made.requires_totp is required


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("require_totp", [True, False])
async def test_both_look_ups_of_a_caller_limit_the_staff_until_they_have_a_second_factor(
    database: Database, role: Role, require_totp: bool
) -> None:
    without, having = [await make_user(database, role=role) for _ in range(2)]
    async with UnitOfWork(database.write) as uow:
        await uow.users.update(await uow.users.get(having.id), totp_since=having.created_at)  # type: ignore[arg-type]
        await uow.commit()
    async with UnitOfWork(database.write) as uow:
        callers = [session_of(user.id) for user in (without, having)]
        found = {one: await uow.users.signed_in(one, require_totp=require_totp) for one in callers}
        (together,) = await uow.read(uow.users.all_signed_in(callers, require_totp=require_totp))
    assert found == together
    for user in (without, having):
        caller = found[session_of(user.id)]
        assert caller is not None
        limited = require_totp and user is without and role.is_staff
        assert {scope for scope in Scope if caller.may(scope)} == (PROFILE if limited else SCOPES[role])


async def test_an_operator_without_a_second_factor_may_only_set_one_up(api: Api) -> None:
    operator = await make_user(api.database, role=Role.operator)
    product = await make_product(api.database)
    assert (await sign_in(api, operator)).status_code == 200
    for method, path in (("GET", "/v1/users"), ("GET", "/v1/orders"), ("POST", "/v1/categories")):
        refused = await api.request(method, path, by=operator, json={"name": "Lamps"})
        problem = assert_problem(refused, 403, "second_factor_missing")
        assert "POST /v1/users/me/totp" in problem["detail"]
    refused = await api.post("/v1/orders", by=operator, json=order_of((product, 1)))
    assert_problem(refused, 403, "second_factor_missing")
    assert (await api.get(PATH, by=operator)).json()["required"] is True
    await start(api, operator)
    assert_problem(await api.get("/v1/users", by=operator), 403, "second_factor_missing")
    await enrol(api, operator)
    assert (await api.get("/v1/users", by=operator)).status_code == 200
    assert (await api.post("/v1/orders", by=operator, json=order_of((product, 1)))).status_code == 201


async def test_a_group_refuses_the_one_who_has_none_and_carries_out_the_others(api: Api, gate: Gate) -> None:
    buyer, _, product = await api.shop()
    auditor = await make_user(api.database, role=Role.support)
    order = order_of((product, 1))
    placed, refused = await together(gate, *[api.post("/v1/orders", by=user, json=order) for user in (buyer, auditor)])
    assert gate.attempts == [2]
    assert placed.status_code == 201
    assert_problem(refused, 403, "second_factor_missing")


async def test_an_api_key_is_no_way_around_it(api: Api) -> None:
    owner, _, product = await api.shop()
    made, order = await make_key(api, owner), order_of((product, 1))
    assert (await order_with(api, made, order)).status_code == 201
    await api.execute("UPDATE users SET role = 'operator' WHERE id = :id", id=owner.id)
    assert_problem(await api.get("/v1/orders", headers=with_key(made)), 403, "second_factor_missing")
    # Carried out in a group, whose callers are looked up by another statement.
    assert_problem(await order_with(api, made, order), 403, "second_factor_missing")
    assert_problem(await api.post("/v1/api-keys/current/rotate", headers=with_key(made)), 403, "second_factor_missing")
    assert_problem(await api.get("/v1/users/me", headers=with_key(made)), 403, "forbidden")
    await enrol(api, owner)
    assert (await order_with(api, made, order)).status_code == 201


async def test_customers_need_none(api: Api) -> None:
    user = await make_user(api.database)
    assert (await api.get("/v1/orders", by=user)).status_code == 200
    assert (await api.get(PATH, by=user)).json()["required"] is False


async def test_a_mailed_reset_of_the_password_leaves_the_second_factor(api: Api, tmp_path: Path) -> None:
    user = await make_user(api.database, role=Role.admin)
    app = await enrol(api, user)
    api_settings = api.settings.model_copy(update={"mail_url": SecretStr(f"file://{tmp_path}/out")})
    asked = await api.post("/v1/password-resets", key=None, json={"email": user.email})
    assert asked.status_code == 202
    async with open_worker(api_settings) as worker:
        await send_mails({"worker": worker})
    (mail,) = (tmp_path / "out").iterdir()
    token = mail.read_text().partition("Token: ")[2].split()[0]
    new = "a password of whales"
    done = await api.post("/v1/password-resets/confirm", key=None, json={"token": token, "password": new})
    assert done.status_code == 204
    assert_problem(await sign_in(api, user, password=new), 401, "otp_required")
    assert (await sign_in(api, user, app.code(), password=new)).status_code == 200


@pytest.mark.usefixtures("_settings_of_commands")
async def test_a_command_removes_the_second_factor_of_someone_who_has_lost_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make_user(api.database, email="ada@example.com")
    await enrol(api, user)

    def run(email: str) -> Any:
        return CliRunner().invoke(cli, ["users", "reset-totp", email])

    done = await asyncio.to_thread(run, "Ada@example.com")
    assert done.exit_code == 0, done.output
    assert (await api.get("/v1/users/me", by=user)).status_code == 401, "all sessions end"
    assert (await sign_in(api, user)).status_code == 200
    assert await api.scalar("SELECT (SELECT count(*) FROM totp_secrets) + (SELECT count(*) FROM recovery_codes)") == 0
    for email, said in (("ada@example.com", "has no second factor"), ("bob@example.com", "there is no user")):
        refused = await asyncio.to_thread(run, email)
        assert refused.exit_code == 1
        assert said in refused.output


async def test_secrets_are_encrypted_again_when_the_key_is_replaced(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    user = await make_user(api.database)
    app = await enrol(api, user)
    before = await api.scalar("SELECT sealed FROM totp_secrets")
    both = api.settings.model_copy(update={"secret_key": SecretStr(NEW), "secret_key_previous": SecretStr(OLD)})
    only_new = api.settings.model_copy(update={"secret_key": SecretStr(NEW)})
    assert "reencrypt_secrets" in {job.name for job in scheduled_jobs(both)}
    assert "reencrypt_secrets" not in {job.name for job in scheduled_jobs(only_new)}

    _use(api, only_new)
    with caplog.at_level(logging.ERROR, "services.users.totp.service"):
        assert_problem(await sign_in(api, user, app.code()), 401, "otp_invalid")
    assert "encrypted with a key that is no longer set" in caplog.text
    assert (await sign_in(api, user, app.recovery_codes[0])).status_code == 200, "these need no key"

    async with open_worker(both) as worker:
        await reencrypt_secrets({"worker": worker})
    assert await api.scalar("SELECT sealed FROM totp_secrets") != before
    assert (await sign_in(api, user, app.code())).status_code == 200


async def test_while_the_key_is_being_replaced_both_work(api: Api) -> None:
    user = await make_user(api.database)
    app = await enrol(api, user)
    _use(api, api.settings.model_copy(update={"secret_key": SecretStr(NEW), "secret_key_previous": SecretStr(OLD)}))
    assert (await sign_in(api, user, app.code())).status_code == 200


async def test_a_secret_that_is_copied_to_another_user_is_worthless(api: Api) -> None:
    victim, thief = [await make_user(api.database) for _ in range(2)]
    await enrol(api, victim)
    app = await enrol(api, thief)
    copied = "SELECT sealed FROM totp_secrets WHERE user_id = :thief"
    await api.execute(
        f"UPDATE totp_secrets SET sealed = ({copied}) WHERE user_id = :victim", thief=thief.id, victim=victim.id
    )
    assert_problem(await sign_in(api, victim, app.code(), PASSWORD), 401, "otp_invalid")
    assert (await sign_in(api, thief, app.code(), PASSWORD)).status_code == 200


def _use(api: Api, settings: Settings) -> None:
    state = api.app.state.waybill
    values = {name: getattr(state, name) for name in state.__slots__} | {"settings": settings}
    api.app.state.waybill = type(state)(**values)
