"""The files that deploy Waybill (Procfile, compose file, image, locks), parsed and compared with the code."""

import os
import re
import secrets
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from services.cli.main import COMMANDS, app
from services.settings import Environment, Settings

ROOT = Path(__file__).parents[2]
LOCKS = (
    "requirements.txt",
    "requirements-otel.txt",
    "requirements-dev.txt",
    "requirements-embedded.txt",
    "requirements-bench.txt",
    "requirements-sbom.txt",
    "requirements-advisories.txt",
)


def commands() -> set[str]:
    return set(COMMANDS)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def dockerfile() -> list[str]:
    joined = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def stages(dockerfile: list[str]) -> list[list[str]]:
    starts = [number for number, line in enumerate(dockerfile) if line.startswith("FROM ")]
    return [dockerfile[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def test_the_procfile_runs_commands_that_exist() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    processes = dict(line.split(": ", 1) for line in lines)
    assert set(processes) == {"release", "web", "worker"}
    assert {line.split()[0] for line in processes.values()} == {"waybill"}
    assert processes["release"].split()[1] == "migrate"
    assert {line.split()[1] for line in processes.values()} <= commands()
    assert "--host 0.0.0.0 --port ${PORT:-8000}" in processes["web"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.output


def test_compose_starts_services_in_order(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"postgres", "redis", "roles", "migrate", "api", "worker"}
    for server in ("postgres", "redis"):
        assert services[server]["healthcheck"]["test"][0] == "CMD"
    assert services["roles"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert services["migrate"]["depends_on"]["roles"]["condition"] == "service_completed_successfully"
    assert services["roles"]["restart"] == services["migrate"]["restart"] == "no"
    for name in ("api", "worker"):
        waits = services[name]["depends_on"]
        assert waits["migrate"]["condition"] == "service_completed_successfully"
        assert waits["redis"]["condition"] == "service_healthy"
        assert services[name]["restart"] == "unless-stopped"


def test_compose_can_scale_workers(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    assert not {"ports", "container_name"} & worker.keys()
    # Each container asks for its own host: the image's check asks the API, which does not run there.
    kind, check = worker["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert check == 'python -m services.cli workers check --host "$$HOSTNAME"'


def test_compose_publishes_only_the_api_and_only_on_the_loopback_address(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:${WAYBILL_PORT:-8000}:8000"]}


def test_compose_runs_commands_and_sets_settings_that_exist(compose: dict[str, Any]) -> None:
    for name, command in {"roles": "database-roles", "migrate": "migrate", "api": "api", "worker": "worker"}.items():
        service = compose["services"][name]
        assert service["command"][0] == command
        assert command in commands()
        # uvicorn reads the last one: the proxy that may say where a request comes from.
        known = {f"WAYBILL_{field.upper()}" for field in Settings.model_fields} | {"FORWARDED_ALLOW_IPS"}
        assert set(service["environment"]) <= known
        # The secrets are required and have no default.
        for secret in ("WAYBILL_SECRET_KEY", "WAYBILL_DATABASE_URL", "WAYBILL_REDIS_URL"):
            assert ":?" in service["environment"][secret]


def test_compose_passes_the_metrics_token_on_and_asks_redis_for_a_password(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in ("api", "worker"):
        environment = services[name]["environment"]
        assert environment["WAYBILL_METRICS_TOKEN"] == "${WAYBILL_METRICS_TOKEN:-}"
        assert environment["WAYBILL_REDIS_URL"].startswith("redis://:${REDIS_PASSWORD:?")
    redis = services["redis"]
    *_, option, password = redis["command"]
    assert option == "--requirepass"
    assert password == redis["environment"]["REDISCLI_AUTH"] == "${REDIS_PASSWORD:?set REDIS_PASSWORD}"
    assert redis["healthcheck"]["test"] == ["CMD", "redis-cli", "-e", "ping"]


def test_compose_makes_settings_that_production_accepts(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {name: secrets.token_urlsafe(48) for name in ("WAYBILL_SECRET_KEY", "WAYBILL_METRICS_TOKEN")}
    given = {**made, "WAYBILL_EMAIL_VERIFICATION": "false"}
    for name in [name for name in os.environ if name.startswith("WAYBILL_")]:
        monkeypatch.delenv(name)
    for name, value in compose["services"]["api"]["environment"].items():
        monkeypatch.setenv(name, substituted(str(value), {**given, "APP_PASSWORD": "pg1", "REDIS_PASSWORD": "rd2"}))
    settings = Settings(_env_file=None)
    assert settings.environment is Environment.production
    assert (settings.async_url().password, settings.redis_url) == ("pg1", "redis://:rd2@redis:6379/0")
    assert settings.metrics_token is not None


def substituted(value: str, given: dict[str, str]) -> str:
    """The value as compose would pass it on."""

    def replacement(found: re.Match[str]) -> str:
        name, kind, other = found[1], found[2], found[3]
        assert kind == ":-" or given.get(name), f"{name} is required"
        return given.get(name) or other

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", replacement, value)


def test_compose_keeps_the_addresses_of_owner_and_superuser_from_those_that_serve(compose: dict[str, Any]) -> None:
    services = compose["services"]
    known = {
        name: " ".join(map(str, services[name]["environment"].values()))
        for name in ("roles", "migrate", "api", "worker")
    }
    assert {name for name, values in known.items() if "POSTGRES_PASSWORD" in values} == {"roles"}
    assert {name for name, values in known.items() if "OWNER_PASSWORD" in values} == {"roles", "migrate"}
    users = {re.findall(r"postgresql://(\w+):\$\{APP", values)[0] for values in known.values()}
    assert users == {"waybill_app"}


def test_images_are_pinned_by_version_and_digest(compose: dict[str, Any], dockerfile: list[str]) -> None:
    images = [service["image"] for service in compose["services"].values() if "build" not in service]
    images = [image for image in images if image != "waybill"]
    images += [line.split()[1] for line in dockerfile if line.startswith("FROM ")]
    assert len(images) == 4
    for image in images:
        assert re.fullmatch(r"\w+:\d+\.\d+(\.\d+)?-\w+@sha256:[0-9a-f]{64}", image), image


def test_systemd_runs_commands_that_exist_and_grants_them_their_grace() -> None:
    units = {name: (ROOT / "deploy" / f"waybill-{name}@.service").read_text() for name in ("api", "worker")}
    for name, unit in units.items():
        (started,) = re.findall(r"^ExecStart=/opt/waybill/venv/bin/waybill (.+)$", unit, re.MULTILINE)
        assert started.split()[0] == name
        assert name in commands()
        (grace,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
        assert int(grace) > Settings.model_fields["worker_shutdown_grace"].default
        assert "\nRestart=always\n" in unit
        assert "\nUser=waybill\n" in unit
    assert "api --port %i" in units["api"]


def test_compose_grants_the_worker_its_grace(compose: dict[str, Any]) -> None:
    grace = int(compose["services"]["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["worker_shutdown_grace"].default


def test_the_image_holds_locked_dependencies_and_no_build_tools(dockerfile: list[str]) -> None:
    build, final = stages(dockerfile)
    assert "ARG REQUIREMENTS=requirements.txt" in build
    assert any("--require-hashes" in line and "$REQUIREMENTS" in line for line in build)
    assert not any("apt" in line or "pip install" in line or "requirements" in line for line in final)
    assert any("pip uninstall" in line for line in final)


def test_the_image_runs_as_nobody_special_and_reports_its_health(dockerfile: list[str]) -> None:
    final = stages(dockerfile)[-1]
    (user,) = [line.split()[1] for line in final if line.startswith("USER ")]
    assert int(user) >= 1000
    assert any(line.startswith("HEALTHCHECK") and "/healthz" in line for line in final)
    assert 'ENTRYPOINT ["python", "-m", "services.cli"]' in final


def test_the_image_gets_every_package_and_the_build_context_nothing_else(dockerfile: list[str]) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in pyproject["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {line.split()[1] for line in dockerfile if line.startswith("COPY ") and "--from" not in line}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert packages <= copied
    assert copied == allowed
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize("name", LOCKS)
def test_locks_pin_everything_with_hashes_and_name_no_index(name: str) -> None:
    content = (ROOT / name).read_text()
    requirements = re.findall(r"^[a-z0-9].*?(?=^\S|\Z)", content, re.MULTILINE | re.DOTALL)
    assert requirements
    for requirement in requirements:
        first = requirement.splitlines()[0]
        assert re.match(r"[a-z0-9._-]+(\[.*\])?==[0-9]", first), first
        assert "--hash=sha256:" in requirement, first
    assert "://" not in content
    assert not re.search(r"^\s*(-i|-f|--index|--extra-index|--find-links|--trusted)", content, re.MULTILINE)


def test_the_locks_agree_with_each_other() -> None:
    pinned = [
        dict(re.findall(r"^([a-z0-9._-]+)(?:\[.*?\])?==(\S+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in LOCKS[:3]
    ]
    assert pinned[0].items() <= pinned[1].items() <= pinned[2].items()


def make(*arguments: str, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    # As from a shell: the tests themselves may have been started by make.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_record_of_dependencies_names_each_one_that_is_installed_with_the_product() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [re.match(r"[\w.-]+(\[[\w,]+\])?", line) for line in project["dependencies"]]
    record = (ROOT / "docs/decisions/0022-runtime-dependencies.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| (.+) \| (.+) \| (.+) \|$", record, re.MULTILINE)
    assert [row[0] for row in rows] == sorted(match[0] for match in wanted if match)
    assert all(re.match(r"\d[\d.]+, 20\d\d-\d\d-\d\d", row[2]) for row in rows)


def test_make_shows_its_targets_and_each_is_explained() -> None:
    shown = make("help")
    listed = {line.split()[1] for line in shown.stdout.splitlines()}
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed == set(phony.split())


def test_make_refuses_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "old python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tmp_path)
    refused = make("setup", f"PYTHON={old}", folder=tmp_path)
    assert refused.returncode != 0
    assert "Waybill needs Python 3.11 or newer" in refused.stderr
    assert "Python 3.8.1" in refused.stderr
    assert not (tmp_path / ".venv").exists()
