"""What may fail many times a second is logged once, and then once a minute with the number left out."""

import logging

import pytest

from services.logs import RateLimitedLogger, Repeats


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_is_logged_and_the_next_only_after_a_minute_with_their_number() -> None:
    clock = Clock()
    repeats = Repeats(60.0, clock)
    assert [repeats.left_out("a") for _ in range(4)] == [0, None, None, None]
    clock.now += 59
    assert repeats.left_out("a") is None
    clock.now += 1
    assert [repeats.left_out("a") for _ in range(2)] == [4, None]
    clock.now += 60
    assert repeats.left_out("a") == 1


def test_messages_of_another_kind_are_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = RateLimitedLogger(logging.getLogger("services.test"), Repeats(60.0, clock))
    with caplog.at_level(logging.WARNING, "services.test"):
        for number in range(100):
            log.warning("no beat, next try in %d s: %r", number, OSError(f"attempt {number}"))
        log.warning("no beat, next try in %d s: %r", 1, ValueError("a fault of ours"))
        log.warning("the doorbell is silent: %r", OSError("attempt"))
        clock.now += 60
        log.warning("no beat, next try in %d s: %r", 7, OSError("the last one"))
    assert caplog.messages == [
        "no beat, next try in 0 s: OSError('attempt 0')",
        "no beat, next try in 1 s: ValueError('a fault of ours')",
        "the doorbell is silent: OSError('attempt')",
        "no beat, next try in 7 s: OSError('the last one') (and 99 more since this was last logged)",
    ]
