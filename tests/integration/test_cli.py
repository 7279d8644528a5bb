"""The commands that work on a database, and the seed of `waybill up`."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic import command
from sqlmodel import col, select
from typer.testing import CliRunner

from migrations.config import alembic_config
from services.catalog import service as catalog
from services.catalog.schemas import CategoryCreate
from services.cli.facts import Facts
from services.cli.main import app
from services.database import Database
from services.local.seed import FIRST_CREDITS, seed
from services.models import Account, Product, User
from services.settings import Settings, get_settings
from services.unit_of_work import UnitOfWork
from services.users import service as users
from services.users.passwords import Passwords
from services.users.rights import Role
from services.users.sessions import service as sessions
from services.users.sessions.models import Device
from services.users.sessions.service import Credentials, Lifetimes
from services.users.totp.codes import Secrets
from tests.processes import wait_until
from tests.roles import superuser_of

CREATE = ["users", "create", "--role", "admin"]


@pytest.fixture
def facts(settings: Settings, tmp_path: Path) -> Facts:
    return Facts(
        api_url="",
        docs_url="",
        database_url=settings.database_url,
        redis_url=settings.redis_url,
        data_dir=tmp_path,
        environment=settings.environment.value,
    )


async def can_sign_in(database: Database, settings: Settings, facts: Facts) -> list[Role]:
    """Sign in as every user in the facts; return their roles."""
    assert facts.operator is not None
    assert facts.approver is not None
    assert facts.admin is not None
    passwords, secrets = Passwords(settings), Secrets.from_settings(settings)
    lifetimes, roles = Lifetimes.of(settings), []
    for known in (facts.operator, facts.approver, facts.admin, *facts.users):
        async with UnitOfWork(database.write) as uow:
            granted = await sessions.sign_in(
                uow, passwords, secrets, lifetimes, Credentials(known.email, known.password), Device(None, None)
            )
            signed_in = await uow.users.signed_in(granted.caller, require_totp=False)
            assert signed_in is not None
            roles.append(signed_in.role)
    return roles


@pytest.mark.usefixtures("_settings_of_commands")
@pytest.mark.parametrize(
    ("arguments", "role"),
    [(["create-operator"], "operator"), *((["users", "create", "--role", role.value], role.value) for role in Role)],
)
def test_users_create_makes_one_with_an_account(settings: Settings, arguments: list[str], role: str) -> None:
    made = CliRunner().invoke(app, [*arguments, "Boss@Waybill.example", "--generate"])
    assert made.exit_code == 0, made.output
    assert f"now has the role {role}. The password: " in made.output
    with psycopg.connect(superuser_of(settings)) as connection:
        operators = "SELECT email, role, posted FROM users JOIN accounts ON accounts.user_id = users.id"
        assert connection.execute(operators).fetchall() == [("boss@waybill.example", role, 0)]


@pytest.mark.usefixtures("_settings_of_commands")
def test_users_create_takes_a_password_from_a_prompt() -> None:
    typed = "a long password\na long password\n"
    made = CliRunner().invoke(app, [*CREATE, "boss@waybill.example"], input=typed)
    assert made.exit_code == 0, made.output
    assert "a long password" not in made.output


@pytest.mark.usefixtures("_settings_of_commands")
@pytest.mark.parametrize(
    ("email", "password", "complaint"),
    [("nonsense", "a long password", "email: "), ("boss@waybill.example", "short", "password: ")],
)
def test_users_create_says_what_is_wrong(settings: Settings, email: str, password: str, complaint: str) -> None:
    refused = CliRunner().invoke(app, [*CREATE, email], input=f"{password}\n{password}\n")
    assert refused.exit_code == 1
    assert complaint in refused.output
    with psycopg.connect(superuser_of(settings)) as connection:
        assert connection.execute("SELECT * FROM users").fetchall() == []


@pytest.mark.usefixtures("_settings_of_commands")
def test_an_address_that_is_taken_is_refused() -> None:
    assert CliRunner().invoke(app, [*CREATE, "boss@waybill.example", "--generate"]).exit_code == 0
    refused = CliRunner().invoke(app, [*CREATE, "BOSS@waybill.example", "--generate"])
    assert refused.exit_code == 1
    assert "already exists" in refused.output


@pytest.mark.usefixtures("_settings_of_commands")
def test_set_role_gives_a_role_but_not_that_of_the_last_operator(settings: Settings) -> None:
    def set_role(email: str, role: str) -> tuple[int, str]:
        ran = CliRunner().invoke(app, ["users", "set-role", email, role])
        return ran.exit_code, ran.output

    def roles() -> list[tuple[object, ...]]:
        with psycopg.connect(superuser_of(settings)) as connection:
            return connection.execute("SELECT email, role, version FROM users ORDER BY id").fetchall()

    for email in ("ada@waybill.example", "bea@waybill.example"):
        assert CliRunner().invoke(app, ["create-operator", email, "--generate"]).exit_code == 0
    assert set_role("ADA@waybill.example", "admin") == (
        0,
        "ADA@waybill.example now has the role admin; before: operator.\n",
    )
    assert set_role("ada@waybill.example", "admin")[0] == 0
    assert roles() == [("ada@waybill.example", "admin", 2), ("bea@waybill.example", "operator", 1)]

    code, said = set_role("bea@waybill.example", "customer")
    assert (code, "this is the last operator" in said) == (1, True)
    code, said = set_role("ada@waybill.example", "customer")
    assert (code, "this is the last admin" in said) == (1, True)
    code, said = set_role("nobody@waybill.example", "admin")
    assert (code, "there is no user with the address nobody@waybill.example" in said) == (1, True)
    assert set_role("bea@waybill.example", "king")[0] == 2
    assert [role for _, role, _ in roles()] == ["admin", "operator"]


@pytest.mark.usefixtures("_settings_of_commands")
def test_users_create_on_a_database_without_tables_says_to_migrate(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYBILL_DATABASE_URL", empty_database_url)
    get_settings.cache_clear()
    refused = CliRunner().invoke(app, [*CREATE, "boss@waybill.example", "--generate"])
    assert isinstance(refused.exception, SystemExit)
    assert refused.exit_code == 1
    assert "run `waybill migrate` first" in refused.output
    assert "SELECT" not in refused.output


@pytest.mark.usefixtures("_settings_of_commands")
def test_migrate_needs_no_secret(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_ENVIRONMENT", "production")
    ran = CliRunner().invoke(app, ["migrate"])
    assert ran.exit_code == 0, ran.output


@pytest.mark.usefixtures("_settings_of_commands")
def test_migrate_gives_up_if_a_table_is_locked_and_says_so(settings: Settings) -> None:
    command.downgrade(alembic_config(superuser_of(settings)), "0002")
    with psycopg.connect(superuser_of(settings)) as holder:
        holder.execute("LOCK TABLE order_items, orders IN ACCESS EXCLUSIVE MODE")
        refused = CliRunner().invoke(app, ["migrate"])
    assert isinstance(refused.exception, SystemExit)
    assert refused.exit_code == 1
    assert "run `waybill migrate` again" in refused.output
    assert CliRunner().invoke(app, ["migrate"]).exit_code == 0


def hold_and_want(url: str, held: threading.Event) -> None:
    """Use `adjustments` until a step waits for it, then wait for `users`, which the step has locked."""
    with psycopg.connect(url, autocommit=True) as watching, psycopg.connect(url) as holder:
        # The step notices the deadlock first, and is the one that is aborted.
        holder.execute("SET deadlock_timeout = '60s'")
        holder.execute("LOCK TABLE adjustments IN ACCESS SHARE MODE")
        held.set()
        waits = "SELECT count(*) FROM pg_locks WHERE relation = 'adjustments'::regclass AND NOT granted"
        wait_until(lambda: watching.execute(waits).fetchone() == (1,), "the step to wait")
        holder.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")


@pytest.mark.usefixtures("_settings_of_commands")
def test_migrate_that_meets_a_deadlock_says_so_and_can_be_run_again(settings: Settings) -> None:
    command.downgrade(alembic_config(superuser_of(settings)), "0029qtbr")
    held = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(hold_and_want, superuser_of(settings), held)
        assert held.wait(30)
        refused = CliRunner().invoke(app, ["migrate"])
        other.result(60)
    assert isinstance(refused.exception, SystemExit)
    assert refused.exit_code == 1
    assert "deadlock detected" in refused.output
    assert "run `waybill migrate` again" in refused.output
    assert CliRunner().invoke(app, ["migrate"]).exit_code == 0


@pytest.mark.usefixtures("_settings_of_commands")
def test_migrate_makes_the_tables_of_a_tenant(settings: Settings) -> None:
    ran = CliRunner().invoke(app, ["migrate", "--schema", "tenant_one"])
    assert ran.exit_code == 0, ran.output
    with psycopg.connect(superuser_of(settings)) as connection:
        assert connection.execute("SELECT count(*) FROM tenant_one.orders").fetchone() == (0,)


@pytest.mark.usefixtures("_settings_of_commands")
def test_a_database_that_is_not_there_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_DATABASE_URL", "postgresql://somebody:hidden@127.0.0.1:1/nowhere")
    monkeypatch.delenv("WAYBILL_MIGRATION_DATABASE_URL")
    get_settings.cache_clear()
    refused = CliRunner().invoke(app, ["migrate"])
    assert refused.exit_code == 1
    assert "cannot connect to the database at postgresql" in refused.output
    assert "127.0.0.1:1/nowhere: " in refused.output
    assert "hidden" not in refused.output


async def test_the_seed_makes_people_products_and_credits(settings: Settings, database: Database, facts: Facts) -> None:
    await seed(settings, facts, facts.write)
    assert await can_sign_in(database, settings, facts) == [
        Role.operator,
        Role.operator,
        Role.admin,
        Role.customer,
        Role.customer,
        Role.seller,
    ]
    async with database.write() as session:
        products = (await session.exec(select(Product).order_by(col(Product.id)))).all()
        assert [product.id for product in products] == facts.product_ids
        statement = select(col(Account.posted)).join(User).where(col(User.email) == facts.users[0].email)
        assert (await session.exec(statement)).one() == FIRST_CREDITS


async def test_the_seed_finds_its_category_and_products_through_the_repositories(
    settings: Settings, database: Database, facts: Facts
) -> None:
    async with UnitOfWork(database.write) as uow:
        shelf = await catalog.create_category(uow, CategoryCreate(name="STATIONERY"))
        await uow.commit()
    await seed(settings, facts, facts.write)
    async with UnitOfWork(database.write) as uow:
        found = await uow.categories.by_name("stationery")
        assert found is not None
        assert found.id == shelf.id
        assert await uow.categories.by_name("Station_ry") is None
        seller = await uow.users.by_email("seller@waybill.example")
        assert seller is not None
        await uow.products.take_off_sale(seller.id)
        skus = ("PEN-BLUE", "PAPER-A4", "INK-BLACK")
        assert await uow.products.ids_by_sku(seller.id) == dict(zip(skus, facts.product_ids, strict=True))
        assert await uow.products.ids_by_sku(0) == {}


async def test_a_second_seed_changes_nothing(settings: Settings, database: Database, facts: Facts) -> None:
    await seed(settings, facts, facts.write)
    before = facts.model_copy(deep=True)
    await seed(settings, facts, facts.write)
    assert facts == before
    assert len(await can_sign_in(database, settings, facts)) == 6
    async with database.write() as session:
        assert len((await session.exec(select(User))).all()) == 6


async def test_lost_credentials_are_replaced(settings: Settings, database: Database, facts: Facts) -> None:
    await seed(settings, facts, facts.write)
    kept = facts.users[1]
    facts.operator, facts.users = None, [kept]
    await seed(settings, facts, facts.write)
    assert facts.users[1] == kept
    assert len(await can_sign_in(database, settings, facts)) == 6


async def test_a_demo_user_that_was_deleted_stays_deleted(settings: Settings, database: Database, facts: Facts) -> None:
    await seed(settings, facts, facts.write)
    gone = facts.users[0].email
    async with UnitOfWork(database.write) as uow:
        user = await uow.users.by_email(gone)
        assert user is not None
        await users.delete(uow, user.id)
        await uow.commit()
    await seed(settings, facts, facts.write)
    assert gone not in [known.email for known in facts.users]


async def test_credentials_are_noted_before_the_commit(settings: Settings, database: Database, facts: Facts) -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await seed(settings, facts, fail)
    async with database.write() as session:
        assert (await session.exec(select(User))).all() == []
