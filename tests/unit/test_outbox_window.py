"""Where a claim looks: the floor never rises past a row that may still appear, and types share the window."""

import random
from collections.abc import Sequence
from uuid import UUID

import pytest

from services.outbox.engine import window as window_module
from services.outbox.engine.schemas import ClaimedRow, Horizon, Span
from services.outbox.engine.window import Floor, Window, parts_of
from services.outbox.models import MAX_POSITION

NOBODY = UUID(int=0)


def horizon(first_ready: int | None, last_taken: int, transaction: int, oldest_running: int | None = None) -> Horizon:
    return Horizon(first_ready, last_taken, transaction, transaction if oldest_running is None else oldest_running)


def claimed(event_type: str, position: int, aggregate: str = "", waited: bool = False) -> ClaimedRow:
    return ClaimedRow(
        position, NOBODY, aggregate or f"a/{position}", event_type, 0, waited, False, 1, "{}", None, None, False, False
    )


def risen(*seen: Horizon) -> int:
    floor = Floor()
    for one in seen:
        floor.rise(one)
    return floor.position


def test_the_floor_rises_to_the_first_ready_row() -> None:
    assert risen(*(horizon(70, 100, transaction) for transaction in (10, 11, 12))) == 70


def test_without_a_ready_row_the_floor_rises_over_what_was_taken_before_the_claim_that_settled_it() -> None:
    assert risen(horizon(None, 100, 10), horizon(None, 100, 11), horizon(None, 150, 12)) == 101


def test_the_floor_waits_for_every_transaction_that_may_have_taken_a_lower_position() -> None:
    """Transaction 9 has taken position 50, and is still running."""
    waiting = [horizon(None, 100, 10, 9), horizon(None, 100, 11, 9), *(horizon(60, 100, n, 9) for n in range(12, 40))]
    assert risen(*waiting) == 0
    # It commits: position 50 is seen.
    assert risen(*waiting, *(horizon(50, 100, number) for number in (41, 42, 43))) == 50


def test_a_transaction_that_takes_no_position_holds_the_floor_up_until_the_takers_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Transaction 9 keeps running."""
    monkeypatch.setattr(window_module, "_MANY", 50)
    floor = Floor()
    for transaction in (10, 11, 12):
        floor.rise(horizon(49, 100, transaction, 9))
        assert not floor.held_up
    floor.rise(horizon(50, 100, 13, 9))
    assert (floor.position, floor.held_up) == (0, True)
    # A taker from that time is still running.
    floor.rise(horizon(60, 100, 14, 9), oldest_taker=9)
    assert floor.position == 0
    # The position that was taken last before the claim that settles it; then the first ready row.
    floor.rise(horizon(60, 100, 15, 9), oldest_taker=15)
    floor.rise(horizon(60, 100, 16, 9), oldest_taker=16)
    assert (floor.position, floor.held_up) == (60, False)


def test_the_floor_never_falls() -> None:
    floor = Floor()
    positions = []
    for number in range(10, 60):
        floor.rise(horizon(1000 - number if number % 3 else None, 1000, number))
        positions.append(floor.position)
    assert positions == sorted(positions)
    assert positions[-1] > 0


def spans(window: Window, floor: Floor | None = None) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in window.spans(floor or Floor()):
        found.setdefault(span.type, []).append(span)
    return found


def test_the_only_busy_type_gets_what_the_others_leave_and_they_keep_their_even_share() -> None:
    window = Window(dict.fromkeys("abcd", 1), 400)
    for _ in range(3):
        ((span,),) = [spans(window)["a"]]
        window.note([claimed("a", number) for number in range(span.ready)])
    shares = {name: of_type[0] for name, of_type in spans(window).items()}
    assert shares["a"].ready == 400
    # A type that was idle gets its share in the very next claim.
    assert [shares[name].ready for name in "bcd"] == [100, 100, 100]


def test_busy_types_divide_the_window() -> None:
    window = Window(dict.fromkeys("abcd", 1), 400)
    for _ in range(3):
        of_each = spans(window)
        window.note(
            [claimed(name, number) for name in ("a", "b") for number in range(sum(s.ready for s in of_each[name]))]
        )
    assert [spans(window)[name][0].ready for name in ("a", "b")] == [200, 200]


def test_every_type_gets_a_part_of_the_window_however_many_there_are() -> None:
    window = Window({f"t{number}": 1 for number in range(50)}, 10)
    assert all(span.ready >= 1 and span.due >= 1 for span in window.spans(Floor()))


def crowd(rows: int, aggregate: str = "hot") -> Sequence[ClaimedRow]:
    return [claimed("a", number, aggregate) for number in range(1, rows + 1)]


def test_if_one_aggregate_fills_the_window_part_of_the_next_one_looks_further_on() -> None:
    window, floor = Window({"a": 1}, 100), Floor()
    floor.last_taken = 100_000
    window.spans(floor)
    window.note(crowd(100))
    seen = set()
    for _ in range(50):
        head, further = window.spans(floor)
        assert (head.first, head.past) == (0, further.first)
        assert 100 < further.first <= 100_000
        assert head.ready + further.ready == 100
        assert further.ready >= 20
        seen.add(further.first)
    assert len(seen) > 10


def test_an_event_further_on_does_not_count_as_reached_until_it_is_found_at_the_head() -> None:
    window, floor = Window({"a": 1}, 100), Floor()
    floor.last_taken = 100_000
    at_head, further, waited = claimed("a", 1), claimed("a", 100_001), claimed("a", 100_002, waited=True)
    window.spans(floor)
    assert window.reached([at_head, further, waited]) == [at_head, further, waited]
    window.note(crowd(100))
    window.spans(floor)
    assert window.reached([at_head, further, waited]) == [at_head, waited]
    window.note([at_head])
    window.spans(floor)
    assert window.reached([at_head, further, waited]) == [at_head, further, waited]


def test_a_window_of_many_aggregates_is_taken_from_the_head() -> None:
    window, floor = Window({"a": 1}, 100), Floor()
    floor.last_taken = 100_000
    window.spans(floor)
    window.note([claimed("a", number) for number in range(1, 101)])
    assert len(window.spans(floor)) == 1


def test_a_window_says_that_there_may_be_more_if_a_part_was_filled() -> None:
    window = Window(dict.fromkeys("ab", 1), 100)
    window.spans(Floor())
    assert not window.note([])
    asked = spans(window)["a"][0].ready
    assert not window.note([claimed("a", number) for number in range(asked - 1)])
    asked = spans(window)["a"][0].ready
    assert window.note([claimed("a", number) for number in range(asked)])


LEFT_FOR = 60.0


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine, a sibling still counts as working."""
    monkeypatch.setattr(window_module, "_LEFT_FOR", LEFT_FOR)


def siblings() -> tuple[Window, Window, Floor]:
    """Two windows of one process. The first has an aggregate that fills it, and its transaction is running."""
    both: list[Window] = []
    one, other, floor = Window({"a": 1}, 100, both), Window({"a": 1}, 100, both), Floor()
    floor.last_taken = 100_000
    one.spans(floor)
    one.note(crowd(100))
    return one, other, floor


def test_while_one_window_works_on_an_aggregate_that_fills_it_its_sibling_only_looks_further_on() -> None:
    one, other, floor = siblings()
    (further,) = other.spans(floor)
    assert 100 < further.first <= 100_000
    assert further.ready == 100
    # There may be more elsewhere, though not all that was asked for was there.
    assert other.note([claimed("a", 50_000)])
    assert not other.note([])

    one.settle()
    assert [span.first for span in one.spans(floor)] == [0], "all of the head, since the other looks after the rest"


def test_a_sibling_that_begins_before_the_claim_has_come_back_knows_already() -> None:
    one, other, floor = siblings()
    one.settle()
    one.spans(floor)
    assert [span.first > 100 for span in other.spans(floor)] == [True]


def test_the_head_is_left_to_a_sibling_only_while_its_transaction_is_under_way() -> None:
    one, other, floor = siblings()
    one.settle()
    assert [span.first for span in other.spans(floor)] == [0]


def test_the_head_is_shared_again_when_no_aggregate_fills_it_any_more() -> None:
    one, other, floor = siblings()
    one.settle()
    one.spans(floor)
    one.note([claimed("a", number) for number in range(1, 101)])
    assert [span.first for span in other.spans(floor)] == [0]


def test_the_head_is_not_left_to_a_sibling_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.0 + LEFT_FOR - 1, 10.0 + LEFT_FOR + 1])
    monkeypatch.setattr(window_module, "monotonic", lambda: next(clock))
    _, other, floor = siblings()
    assert [span.first > 100 for span in other.spans(floor)] == [True]
    other.settle()
    assert next(span.first for span in other.spans(floor)) == 0


def test_a_batch_that_is_claimed_again_knows_nothing_of_its_first_claim() -> None:
    """Beside a sibling at first; that one's transaction has ended since, and its own failed."""
    one, other, floor = siblings()
    other.spans(floor)
    one.settle()
    assert next(span.first for span in other.spans(floor)) == 0
    other.note([claimed("a", number) for number in range(1, 101)])
    assert next(span.first for span in one.spans(floor)) == 0


def test_a_closed_window_is_not_a_sibling() -> None:
    one, other, floor = siblings()
    one.close()
    assert [span.first for span in other.spans(floor)] == [0]


def test_a_look_leaves_no_trace() -> None:
    one, other, floor = siblings()
    one.settle()
    assert one.whole(floor.position) == [Span("a", 0, MAX_POSITION, 1, 1, 1)]
    assert [span.first for span in other.spans(floor)] == [0]


def test_every_part_of_a_batch_has_one_kind_and_keeps_the_order_of_each_aggregate() -> None:
    chance = random.Random(1)
    rows = [
        claimed(f"type-{chance.randrange(4)}", n, f"a/{chance.randrange(20)}")._replace(attempts=chance.randrange(2))
        for n in range(200)
    ]
    parts = parts_of(rows)
    assert all((row.type, row.attempts > 0) == kind for kind, part in parts for row in part)
    taken = [row for _, part in parts for row in part]
    assert sorted(taken) == rows
    for aggregate in {row.aggregate for row in rows}:
        mine = [row.position for row in taken if row.aggregate == aggregate]
        assert mine == sorted(mine)


def test_aggregates_whose_types_come_in_different_orders_share_their_parts() -> None:
    """One ends with the type that the other begins with, so that three parts are enough."""
    for _ in range(20):
        parts = parts_of(
            [claimed("x", 1, "a/1"), claimed("y", 2, "a/2"), claimed("y", 3, "a/1"), claimed("x", 4, "a/2")]
        )
        assert len(parts) == 3
        assert [kind.type for kind, _ in parts] in (["x", "y", "x"], ["y", "x", "y"])


def test_any_type_of_a_batch_may_come_first() -> None:
    rows = [claimed("x", 1), claimed("y", 2), claimed("z", 3)]
    assert {parts_of(rows)[0][0].type for _ in range(200)} == {"x", "y", "z"}


def test_an_empty_batch_has_no_parts() -> None:
    assert parts_of([]) == []
