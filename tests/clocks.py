"""Clocks that are wrong."""

from time import time

import pytest

from services import clock


def shift_the_host(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set this host's clock ahead (negative: behind), as if it had never been compared with the database's."""
    patch.setattr(clock.CLOCK, "_lead", None)
    step_the_host(patch, seconds)


def step_the_host(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set this host's clock while the process runs."""
    patch.setattr(clock, "host_time", lambda: time() + seconds)


def mislead(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set this process's clock ahead, so that no comparison with the database's corrects it."""
    patch.setattr(clock.Clock, "time", lambda _: time() + seconds)
