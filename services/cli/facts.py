"""`waybill.json`: how scripts and the other commands find a running `waybill up`."""

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from services.cli.console import CommandError
from services.cli.files import write_whole

DEFAULT_DATA_DIR = Path(".waybill")
FILE_NAME = "waybill.json"


class Credentials(BaseModel):
    """A demo user's credentials."""

    email: str
    password: str
    full_name: str


class DemoKey(BaseModel):
    """The API key of a demo program."""

    key: str
    scopes: list[str]


class ProcessIds(BaseModel):
    """None means not started by us, or not running."""

    supervisor: int | None = None
    postgres: int | None = None
    redis: int | None = None
    api: int | None = None
    workers: list[int] = Field(default_factory=list)


class Facts(BaseModel):
    """The file's content. It contains passwords: mode 0600."""

    version: str | None = None
    """The release that runs."""
    api_url: str
    docs_url: str
    console_url: str | None = None
    """The operators' console; None if it is turned off."""
    database_url: str
    migration_database_url: str | None = None
    """The same database, with the role that owns the tables; None if the same role is used for everything."""
    read_database_url: str | None = None
    """The same database, with the role that may only read; None if the database is not ours."""
    analytics_url: str | None = None
    """The analytics database; None if reports are off."""
    migration_analytics_url: str | None = None
    """The same database, with the role that owns the tables."""
    database_schema: str = "public"
    database_read_role: str | None = None
    redis_url: str
    redis_prefix: str = "waybill"
    secret_key_file: Path | None = None
    """Holds the key that signs tokens; None if the key was given to `waybill up`."""
    data_dir: Path
    environment: str
    operator: Credentials | None = None
    approver: Credentials | None = None
    """A second operator, who approves what the first one may not do alone."""
    admin: Credentials | None = None
    users: list[Credentials] = Field(default_factory=list)
    """Demo users: first the buyers, who have credits, then the seller of the demo products."""
    api_key: DemoKey | None = None
    """A key of the first demo user."""
    product_ids: list[int] = Field(default_factory=list)
    pids: ProcessIds = Field(default_factory=ProcessIds)

    def variables(self) -> dict[str, str]:
        """The settings with which another process uses the same services, by the names of their variables."""
        values = {
            "environment": self.environment,
            "database_url": self.database_url,
            "migration_database_url": self.migration_database_url,
            "database_schema": self.database_schema,
            "database_read_role": self.database_read_role,
            "analytics_url": self.analytics_url,
            "migration_analytics_url": self.migration_analytics_url,
            "redis_url": self.redis_url,
            "redis_prefix": self.redis_prefix,
            "secret_key_file": self.secret_key_file,
        }
        return {f"WAYBILL_{name.upper()}": str(value) for name, value in values.items() if value is not None}

    def write(self) -> None:
        """Replace the whole file: a reader sees the old facts or the new ones, even after a crash. Raises `OSError`."""
        write_whole(self.data_dir / FILE_NAME, self.model_dump_json(indent=2) + "\n")


def read_facts(data_dir: Path = DEFAULT_DATA_DIR) -> Facts | None:
    """The facts last written in `data_dir`, or None if `waybill up` never ran there.

    Raises `CommandError` if the file was not written by `waybill up`.
    """
    path = data_dir / FILE_NAME
    try:
        return Facts.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise CommandError(
            f"{path} is damaged or was not written by `waybill up`. Restart `waybill up` to write it again"
        ) from error
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
