"""Clocks that are wrong."""

from time import time

import pytest

from services import clock


def shift_the_host(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """This host's clock is so many seconds ahead (negative: behind), and was never compared with the database's."""
    patch.setattr(clock.CLOCK, "_lead", None)
    step_the_host(patch, seconds)


def step_the_host(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """The clock of this host is set while the process runs."""
    patch.setattr(clock, "host_time", lambda: time() + seconds)


def mislead(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """The clock of this process is so many seconds ahead, and no comparison with the database's mends it."""
    patch.setattr(clock.Clock, "time", lambda _: time() + seconds)
