"""Every setting, read from `WAYBILL_*` environment variables or a `.env` file."""

import logging
from collections.abc import Iterator, Sequence
from decimal import Decimal
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)
from redis.asyncio.connection import parse_url
from sqlalchemy.engine import URL

from services.database_urls import check, for_asyncpg
from services.environment import can_carry_mail, file_names, read_files, unknown_names
from services.safety import DEVELOPMENT_SECRET, OF_ADDRESSES, RULES, Fault, Rule

logger = logging.getLogger(__name__)

_FAULTS, _UNKNOWN = "files that cannot be read", "unknown names"
"""Under these keys, the sources of the settings hand over the faults that they found."""

_ROLE = "^[A-Za-z_][A-Za-z0-9_]{0,62}$"

ANALYTICS_WORKER_CONNECTIONS = 2
"""The most connections of a worker to the analytics database: a batch, and one that was given up and still ends."""


RateLimit = Annotated[int, Field(ge=0, le=10_000_000)]
"""Requests of a caller in a minute; 0 switches the limit off."""


class Environment(StrEnum):
    development = "development"
    production = "production"


class LogFormat(StrEnum):
    console = "console"
    json = "json"


class Settings(BaseSettings):
    """Every setting of every process. Durations are seconds, sizes bytes, unless the name says otherwise.

    Raises `pydantic.ValidationError`, which names the setting, if a value is missing, malformed or, outside
    development, unsafe.
    """

    model_config = SettingsConfigDict(
        env_prefix="WAYBILL_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        title="Settings",
    )
    rules: ClassVar[Sequence[Rule]] = RULES
    """What must hold outside development."""

    environment: Environment = Environment.production
    log_level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    log_format: LogFormat = LogFormat.json
    log_one_request_in: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    log_probes: bool = False
    tracing: bool = False

    database_url: str = "postgresql://waybill@localhost:5432/waybill"
    database_read_role: Annotated[str, Field(pattern=_ROLE)] | None = None
    migration_database_url: str | None = None
    admin_database_url: SecretStr | None = None
    database_replica_url: str | None = None
    database_replica_max_lag: Annotated[float, Field(ge=1, le=86_400)] = 10.0
    database_schema: Annotated[str, Field(pattern="^[a-z_][a-z0-9_]{0,62}$")] = "public"
    database_pool_size: Annotated[int, Field(ge=1, le=1000)] = 10
    database_max_overflow: Annotated[int, Field(ge=0, le=1000)] = 5
    database_pool_timeout: Annotated[float, Field(ge=0.01, le=600)] = 5.0
    database_pool_recycle: Annotated[int, Field(ge=-1, le=604_800)] = 1800
    database_pool_pre_ping: bool = False
    database_echo: bool = False
    database_echo_pool: bool | Literal["debug"] = False
    database_idle_in_transaction_timeout: Annotated[float, Field(ge=0.01, le=3600)] = 40.0
    database_statement_timeout: Annotated[float, Field(ge=0.01, le=600)] = 10.0
    database_lock_timeout: Annotated[float, Field(ge=0.01, le=600)] = 2.0
    database_transaction_timeout: Annotated[float, Field(ge=0.01, le=600)] = 20.0
    analytics_url: str | None = None
    migration_analytics_url: str | None = None
    analytics_pool_size: Annotated[int, Field(ge=1, le=100)] = 3
    api_processes: Annotated[int, Field(ge=1, le=1000)] = 1
    worker_processes: Annotated[int, Field(ge=0, le=1000)] = 1

    redis_url: str = "redis://localhost:6379/0"
    redis_prefix: Annotated[str, Field(pattern="^[A-Za-z0-9_.-]{1,64}$")] = "waybill"
    private_hosts: Annotated[str, Field(pattern="^[A-Za-z0-9_.:, -]{0,1000}$")] = ""

    secret_key: SecretStr = SecretStr(DEVELOPMENT_SECRET)
    secret_key_previous: SecretStr | None = None
    access_token_ttl: Annotated[int, Field(ge=60, le=86_400)] = 900
    session_idle_ttl: Annotated[int, Field(ge=300, le=31_536_000)] = 1_209_600
    session_max_ttl: Annotated[int, Field(ge=300, le=31_536_000)] = 7_776_000
    session_retention: Annotated[int, Field(ge=60, le=315_360_000)] = 2_592_000
    sign_in_attempts: Annotated[int, Field(ge=1, le=1000)] = 10
    sign_in_address_attempts: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    sign_in_first_pause: Annotated[float, Field(ge=0.1, le=3600)] = 1.0
    sign_in_max_pause: Annotated[float, Field(ge=1, le=3600)] = 300.0
    products_per_seller: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    unpaid_orders_per_user: Annotated[int, Field(ge=1, le=10_000)] = 100
    api_key_max_ttl: Annotated[int, Field(ge=60, le=315_360_000)] = 31_536_000
    api_keys_per_user: Annotated[int, Field(ge=1, le=1000)] = 20
    api_key_retention: Annotated[int, Field(ge=60, le=3_153_600_000)] = 34_560_000
    totp_required: bool | None = None
    password_queue: Annotated[int, Field(ge=0, le=10_000)] = 32
    mail_url: SecretStr | None = None
    mail_from: str = "Waybill <waybill@localhost>"
    password_reset_link: str = ""
    password_reset_ttl: Annotated[int, Field(ge=60, le=86_400)] = 1800
    role_request_ttl: Annotated[int, Field(ge=60, le=31_536_000)] = 604_800
    email_verification: bool | None = None
    email_verification_link: str = ""
    email_verification_ttl: Annotated[int, Field(ge=300, le=2_592_000)] = 86_400
    # ASVS 5.0, appendix C: of the costs it approves for argon2id, the one with the least memory; see decision 0036.
    argon2_memory_kib: Annotated[int, Field(ge=8, le=1_048_576)] = 12_288
    argon2_time_cost: Annotated[int, Field(ge=1, le=100)] = 3
    argon2_parallelism: Annotated[int, Field(ge=1, le=64)] = 1
    customers_may_sell: bool = True

    http_max_connections: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    http_head_timeout: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    http_body_timeout: Annotated[float, Field(ge=0.1, le=3600)] = 30.0
    http_write_timeout: Annotated[float, Field(ge=0.1, le=3600)] = 60.0
    http_keep_alive_timeout: Annotated[int, Field(ge=1, le=3600)] = 5
    max_body_bytes: Annotated[int, Field(ge=1024, le=67_108_864)] = 1_048_576
    http_hsts: Annotated[int, Field(ge=0, le=63_072_000)] = 0
    http_docs: bool = True
    console: bool = True
    rate_limit_read: RateLimit = 6000
    rate_limit_write: RateLimit = 3000
    rate_limit_search: RateLimit = 1200
    rate_limit_export: RateLimit = 60
    rate_limit_batch: RateLimit = 300
    rate_limit_sign_in: RateLimit = 1200
    group_commit: bool = True
    group_commit_size: Annotated[int, Field(ge=1, le=500)] = 64
    group_commit_wait: Annotated[float, Field(ge=0.01, le=60)] = 2.0
    transaction_attempts: Annotated[int, Field(ge=1, le=20)] = 5
    idempotency_retention: Annotated[int, Field(ge=60, le=31_536_000)] = 86_400

    hold_ttl: Annotated[int, Field(ge=1, le=31_536_000)] = 86_400
    awaiting_payment_ttl: Annotated[int, Field(ge=1, le=31_536_000)] = 604_800
    transfer_hold_max: Annotated[int, Field(ge=1, le=31_536_000)] = 2_592_000
    adjustment_approval_above: Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=2)] = Decimal(1000)
    operator_approval_above: Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=2)] = Decimal(5000)
    approval_window: Annotated[int, Field(ge=60, le=31_536_000)] = 86_400
    approver_tenure: Annotated[int, Field(ge=0, le=31_536_000)] | None = None

    outbox_poll_interval: Annotated[float, Field(ge=0.01, le=60)] = 1.0
    outbox_batch_size: Annotated[int, Field(ge=1, le=5000)] = 500
    outbox_concurrency: Annotated[int, Field(ge=1, le=16)] = 2
    outbox_time_limit: Annotated[float, Field(ge=0.01, le=600)] = 30.0
    outbox_max_attempts: Annotated[int, Field(ge=1, le=100)] = 8
    outbox_retry_base: Annotated[float, Field(ge=0.001, le=86_400)] = 1.0
    outbox_retry_cap: Annotated[float, Field(ge=0.001, le=86_400)] = 300.0
    outbox_order_check: bool | None = None
    event_retention_days: Annotated[int, Field(ge=0, le=36_500)] = 400
    event_export_path: Path | None = None
    worker_shutdown_grace: Annotated[float, Field(ge=0.01, le=60)] = 8.0
    worker_stall_limit: Annotated[float, Field(ge=0.04, le=7200)] = 120.0

    max_clock_skew: Annotated[float, Field(gt=1, le=86_400)] = 300.0
    audit_time_limit: Annotated[float, Field(ge=0.01, le=3000)] = 300.0
    canary_interval: Annotated[float, Field(ge=0.01, le=3600)] = 60.0
    metrics_token: SecretStr | None = None
    metrics_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    api_metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    worker_metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 0

    @property
    def polling_connections(self) -> int:
        """Connections of one worker's poll loops, outside its pool: one for each, and one that listens for all."""
        return self.outbox_concurrency + 1

    @property
    def analytics_connections(self) -> int:
        """Connections of all processes to the analytics database if it is on the primary's server; otherwise 0."""
        url = self.analytics_async_url()
        if url is None or (url.host, url.port or 5432) != (self.async_url().host, self.async_url().port or 5432):
            return 0
        return self.api_processes * self.analytics_pool_size + self.worker_processes * ANALYTICS_WORKER_CONNECTIONS

    @field_validator(
        "database_url", "database_replica_url", "migration_database_url", "analytics_url", "migration_analytics_url"
    )
    @classmethod
    def _is_postgresql(cls, value: str | None) -> str | None:
        if value is not None:
            check(value)
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        try:
            parse_url(value)
        except ValueError as error:
            raise ValueError("expected redis://[:PASSWORD@]HOST:PORT/DB, rediss:// or unix://") from error
        return value

    @field_validator("metrics_token", "secret_key_previous", "mail_url", "admin_database_url")
    @classmethod
    def _is_given(cls, value: SecretStr | None) -> SecretStr | None:
        # A compose file can pass a variable on only by setting it, even if it is empty.
        return value if value is not None and value.get_secret_value() else None

    @field_validator("mail_url")
    @classmethod
    def _is_for_mail(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not can_carry_mail(value.get_secret_value()):
            raise ValueError("expected smtp://USER:PASSWORD@HOST:PORT, smtps://..., file:///FOLDER or console:")
        return value

    @field_validator("mail_from")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not value.isprintable() or "@" not in value:
            raise ValueError("expected an address, such as Waybill <waybill@example.com>")
        return value

    @field_validator("password_reset_link", "email_verification_link")
    @classmethod
    def _has_a_place_for_the_token(cls, value: str) -> str:
        if value and (value.count("{token}") != 1 or value.count("{") != 1 or value.count("}") != 1):
            raise ValueError(
                "expected an address that contains {token} once, such as https://example.com/reset#{token}"
            )
        return value

    @field_validator(
        "database_read_role",
        "database_replica_url",
        "event_export_path",
        "outbox_order_check",
        "totp_required",
        "email_verification",
        "analytics_url",
        "migration_analytics_url",
        "migration_database_url",
        "approver_tenure",
        mode="before",
    )
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        # An empty path would be the current directory, and an empty string is neither a boolean nor an address.
        return None if value == "" else value

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *args: PydanticBaseSettingsSource, **kwargs: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """As usual, and values from files, which are named in the environment or in `.env`."""
        sources: list[PydanticBaseSettingsSource] = []
        faults: list[Fault] = []
        unknown: list[Fault] = []
        for source in (*args, *kwargs.values()):
            sources.append(source)
            if isinstance(source, EnvSettingsSource) and not isinstance(source, SecretsSettingsSource):
                where = ".env" if isinstance(source, DotEnvSettingsSource) else "the environment"
                values, unreadable = read_files(source.env_vars, cls.in_files(), where)
                known = {*cls.model_fields, *file_names(cls.in_files())}
                sources.append(InitSettingsSource(settings_cls, values))
                faults += unreadable
                unknown += unknown_names(source.env_vars, known, where)
        return (*sources, InitSettingsSource(settings_cls, {_FAULTS: faults, _UNKNOWN: unknown}))

    @classmethod
    def in_files(cls) -> list[str]:
        """The settings whose value may be in a file, because it is a secret or contains one."""
        secret = (SecretStr, SecretStr | None)
        return [name for name, field in cls.model_fields.items() if field.annotation in secret or name[-4:] == "_url"]

    @model_validator(mode="wrap")
    @classmethod
    def _report_all_faults(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Find every fault before raising, so that a process that does not start shows all of them."""
        values = dict(given)
        malformed: list[Fault] = values.pop(_FAULTS, [])
        unknown: list[Fault] = values.pop(_UNKNOWN, [])
        try:
            settings = handler(values)
        except ValidationError as error:
            malformed += [Fault(str(one["loc"][0]), one["msg"].removeprefix("Value error, ")) for one in error.errors()]
            # The others are judged as if those that are malformed had not been given.
            settings = handler({name: values[name] for name in values.keys() - {one.setting for one in malformed}})
        found = list(settings._contradictions())
        if settings.is_development:
            for fault in unknown:
                warn_once(f"WAYBILL_{fault.setting.upper()} {fault.message}")
        else:
            found += [*unknown, *(fault for rule in cls.rules for fault in rule(settings))]
        settled = {fault.setting.removesuffix("_file") for fault in malformed}
        faults = [*malformed, *(fault for fault in found if fault.setting not in settled)]
        if faults:
            raise ValidationError.from_exception_data("Settings", [_as_error(fault) for fault in faults])
        return settings

    def _contradictions(self) -> Iterator[Fault]:
        # In one transaction, new events may take one and a half times the limit, and events that waited as long again.
        least = max(4 * self.outbox_time_limit, 2 * self.outbox_poll_interval)
        if self.worker_stall_limit < least:
            yield Fault(
                "worker_stall_limit",
                f"must be at least {least:g}: four times WAYBILL_OUTBOX_TIME_LIMIT and "
                "twice WAYBILL_OUTBOX_POLL_INTERVAL; otherwise workers would exit in the middle of their work",
            )
        url, primary = self.analytics_async_url(), self.async_url()
        if url is not None and all(
            getattr(url, name) == getattr(primary, name) for name in ("host", "port", "database", "query")
        ):
            yield Fault("analytics_url", "must name a different database from WAYBILL_DATABASE_URL")

    @property
    def is_development(self) -> bool:
        return self.environment is Environment.development

    @property
    def requires_totp(self) -> bool:
        """Whether the staff may do nothing but set up a second factor as long as they have none."""
        return not self.is_development if self.totp_required is None else self.totp_required

    @property
    def verifies_email(self) -> bool:
        """Whether an e-mail address counts only once its owner has confirmed it."""
        return not self.is_development if self.email_verification is None else self.email_verification

    @property
    def checks_order(self) -> bool:
        """Whether a transaction that records an event finds out if another one records one of the same aggregate."""
        return self.is_development if self.outbox_order_check is None else self.outbox_order_check

    @property
    def tenure_of_approvers(self) -> int:
        """How long, in seconds, someone must have had a role before they approve what others with it request."""
        if self.approver_tenure is None:
            return 0 if self.is_development else 86_400
        return self.approver_tenure

    def async_url(self) -> URL:
        """The primary's address for asyncpg."""
        return for_asyncpg(self.database_url)

    def owner_url(self) -> URL:
        """The address, for asyncpg, with the role that owns the tables and migrates them."""
        return for_asyncpg(self.migration_database_url or self.database_url)

    def analytics_owner_url(self) -> URL | None:
        """The same for the analytics database; None if reports are off."""
        address = self.migration_analytics_url or self.analytics_url
        return for_asyncpg(address) if address else None

    @property
    def readers(self) -> str | None:
        """The role that may only read: the given one, or that of the replica's address."""
        replica = self.replica_url()
        return self.database_read_role or (replica.username if replica is not None else None)

    def replica_url(self) -> URL | None:
        """The read replica's address for asyncpg, if there is one."""
        return for_asyncpg(self.database_replica_url) if self.database_replica_url else None

    def analytics_async_url(self) -> URL | None:
        """The analytics database's address for asyncpg; None if reports are off."""
        return for_asyncpg(self.analytics_url) if self.analytics_url else None


class MigrationSettings(Settings):
    """The settings of a process that only migrates: it needs an address, but not the services' secrets."""

    rules: ClassVar[Sequence[Rule]] = OF_ADDRESSES


def _as_error(fault: Fault) -> InitErrorDetails:
    error = PydanticCustomError("setting", "{message}", {"message": fault.message})
    return {"type": error, "loc": (fault.setting,), "input": None}


@cache
def warn_once(message: str) -> None:
    """Log it, once in each process. Before the log is set up, it goes to standard error."""
    logger.warning("%s", message)


def given_settings() -> dict[str, Any]:
    """What has been set in the environment, in `.env`, or in files that they name; not validated."""
    sources = Settings.settings_customise_sources(Settings, EnvSettingsSource(Settings), DotEnvSettingsSource(Settings))
    given: dict[str, Any] = {}
    for source in reversed(sources):
        given.update(source())
    del given[_FAULTS], given[_UNKNOWN]
    return given


@lru_cache
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings()


def explain(error: ValidationError) -> str:
    """What is not valid, one fault per line, without the values. Settings are called by their variable."""
    ours = error.title == "Settings"
    prefix = "WAYBILL_" if ours else ""
    named = ((".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors())
    faults = (
        f"  {prefix}{name.upper() if ours else name}: {msg}" if name else f"  {error.title}: {msg}"
        for name, msg in named
    )
    subject = "the settings are" if ours else "the input is"
    return "\n".join((f"{subject} not valid:", *faults))
