"""The marker of pytest-alembic's functions: its plugin, which would add it, is kept out."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alembic: one of pytest-alembic's tests")
