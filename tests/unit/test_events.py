"""Reading stored events: of the current version, an earlier one, a later one, and with an invalid payload."""

from typing import Any, ClassVar

import pytest

from services.outbox.events import Event, NoHandler, Registry, Unprocessable


class Moved(Event):
    """Its first version had one `place`."""

    type: ClassVar[str] = "test.moved"
    version: ClassVar[int] = 2

    start: str
    end: str

    @property
    def aggregate(self) -> str:
        return f"thing/{self.end}"

    @classmethod
    def upgraded(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        if version == 1:
            return {"start": "", "end": payload["place"]}
        return super().upgraded(payload, version)


class AlsoMoved(Moved):
    """Another class of the same name."""


def test_an_event_is_read_as_it_was_written() -> None:
    moved = Moved(start="a", end="b")
    assert Moved.reader()(moved.model_dump_json(), 2) == moved


def test_an_earlier_version_is_upgraded() -> None:
    assert Moved.reader()('{"place": "b"}', 1) == Moved(start="", end="b")


def test_an_earlier_version_without_an_upgrade_cannot_be_processed() -> None:
    with pytest.raises(Unprocessable, match=r"cannot upgrade 'test.moved' from version 0 to version 2"):
        Moved.reader()('{"where": "b"}', 0)


def test_a_later_version_is_for_another_worker() -> None:
    with pytest.raises(NoHandler, match=r"knows version 2 of 'test.moved', not 3"):
        Moved.reader()("{}", 3)


def test_a_field_that_the_class_does_not_have_is_ignored_when_an_event_is_read() -> None:
    payload = '{"start": "", "end": "b", "more": 1}'
    assert Moved.reader()(payload, 2) == Moved(start="", end="b")


def test_a_field_that_an_upgrade_returns_and_the_class_does_not_have_is_ignored() -> None:
    class Further(Moved):
        @classmethod
        def upgraded(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
            return {**super().upgraded(payload, version), **payload}

    assert Further.reader()('{"place": "b"}', 1) == Further(start="", end="b")


@pytest.mark.parametrize("payload", ["{}", "[]", '{"start": 1, "end": "b"}'])
def test_a_payload_that_does_not_fit_cannot_be_processed(payload: str) -> None:
    with pytest.raises(Unprocessable, match=r"the payload is not a valid 'test.moved' of version 2"):
        Moved.reader()(payload, 2)


def test_a_registry_knows_its_events_by_name() -> None:
    registry = Registry([Moved])
    assert registry["test.moved"] is Moved
    assert list(registry) == ["test.moved"]
    assert "test.other" not in registry


def test_two_events_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"duplicate event types: test\.moved"):
        Registry([Moved, AlsoMoved])
