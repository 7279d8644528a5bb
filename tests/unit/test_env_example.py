"""`.env.example` lists every setting with its real default."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from services.settings import Environment, Settings

EXAMPLE = Path(__file__).parents[2] / ".env.example"
LINE = re.compile(r"^#(WAYBILL_[A-Z0-9_]+)=(.*)$", re.MULTILINE)


def example() -> dict[str, str]:
    found = LINE.findall(EXAMPLE.read_text())
    assert len(found) == len({name for name, _ in found}), "a setting stands there twice"
    return dict(found)


def as_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case SecretStr():
            return value.get_secret_value()
        case _:
            return str(value)


def test_it_names_every_setting_and_no_other() -> None:
    assert set(example()) == {f"WAYBILL_{name.upper()}" for name in Settings.model_fields}


def test_it_shows_the_defaults() -> None:
    defaults = {f"WAYBILL_{name.upper()}": as_text(field.default) for name, field in Settings.model_fields.items()}
    assert example() == defaults


def test_every_setting_is_explained() -> None:
    for paragraph in EXAMPLE.read_text().split("\n\n"):
        if LINE.search(paragraph):
            assert paragraph.startswith("# "), paragraph


def test_nothing_is_set_by_copying_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(EXAMPLE.read_text())
    settings = Settings(environment=Environment.development)
    assert settings.model_fields_set == {"environment"}
