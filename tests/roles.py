"""The database roles of the tests, made and granted as in an installation."""

from sqlalchemy import make_url

from services.cli.database_roles import Roles
from services.settings import Settings

OWNER, APPLICATION, READER = "test_owner", "test_application", "test_reader"
_PASSWORD = "of-a-test"


def superuser_of(settings: Settings) -> str:
    """The superuser's address of a test's database, for what the application cannot do."""
    given = settings.admin_database_url
    return settings.database_url if given is None else given.get_secret_value()


def as_role(role: str, url: str) -> str:
    """The address of the same database for another role."""
    return make_url(url).set(username=role, password=_PASSWORD).render_as_string(hide_password=False)


def roles_of(url: str) -> Roles:
    """The roles of this database."""
    return Roles(make_url(as_role(OWNER, url)), make_url(as_role(APPLICATION, url)), READER, _PASSWORD)
