"""How the engine's benchmark evaluates its figures."""

from pathlib import Path

import pytest

from benchmarks.outbox.hot import rate_of_others, rate_of_watched
from benchmarks.outbox.table import Line, at_least, at_most, document, figure
from benchmarks.outbox.timeline import Batch, Timeline, TimelineWriter, rate, rate_between
from benchmarks.outbox.writes import Counters, Life


def batch(at: float, processed: int, watched: int = 0) -> Batch:
    return Batch(at, processed, watched, 0, 0)


def test_a_line_reaches_its_bound_or_misses_it() -> None:
    assert [Line("", value, "x", at_least(3)).verdict for value in (2.99, 3.0)] == ["MISSED", "reached"]
    assert [Line("", value, "ms", at_most(5)).verdict for value in (5.0, 5.01)] == ["reached", "MISSED"]


def test_what_could_not_be_measured_misses_its_bound() -> None:
    unmeasured = Line("", None, "x", at_least(3))
    assert (unmeasured.verdict, unmeasured.reached) == ("MISSED", False)


def test_a_line_to_compare_with_misses_nothing() -> None:
    assert Line("", None, "jobs/s").reached
    assert Line("", 0.0, "jobs/s").verdict == ""


def test_figures_keep_the_digits_that_tell_them_apart() -> None:
    shown = [
        figure(0.897, "x"),
        figure(75.24, "x"),
        figure(60_123.4, "events/s"),
        figure(4.96, "ms"),
        figure(0.01284, "B"),
    ]
    assert shown == ["0.90 x", "75.2 x", "60,123 events/s", "5.0 ms", "0.0128 B"]


def test_a_ratio_just_below_its_bound_is_missed_though_it_rounds_to_it() -> None:
    assert Line("", 0.897, "x", at_least(0.9)).verdict == "MISSED"


def test_the_document_lists_every_line_and_its_verdict() -> None:
    lines = document("engine", [Line("rate", 3.0, "x", at_least(2)), Line("beside", 1.0, "x")], [])["lines"]
    assert [(line["measure"], line["value"], line["verdict"]) for line in lines] == [
        ("rate", 3.0, "reached"),
        ("beside", 1.0, None),
    ]


def test_a_rate_runs_from_the_end_of_the_first_batch_to_the_end_of_the_last() -> None:
    assert rate([batch(10.0, 500), batch(10.5, 100), batch(12.0, 100)]) == 100.0
    with pytest.raises(ValueError, match="two batches"):
        rate([batch(10.0, 500)])


def test_a_rate_between_two_times_counts_what_ended_between_them() -> None:
    batches = [batch(1.0, 10), batch(2.0, 20), batch(3.0, 40)]
    assert rate_between(batches, 2.0, 3.0) == 20.0
    assert rate_between(batches, 1.0, 5.0) == 17.5


def test_the_hot_aggregate_and_the_others_are_timed_apart() -> None:
    batches = [batch(0.0, 100), batch(1.0, 100), batch(2.0, 100, 50), batch(3.0, 100, 100), batch(4.0, 300)]
    assert rate_of_watched(batches) == (75.0, 100.0)
    assert rate_of_others(batches) == 200.0


def test_a_timeline_is_read_while_it_is_written(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "timeline")
    assert timeline.read() == []
    writer = TimelineWriter(timeline.path)
    writer.write(Batch(1.0, 200, 3, 0, 0))
    assert timeline.read() == [Batch(1.0, 200, 3, 0, 0)]
    writer.write(Batch(2.0, 100, 0, 1, 2))
    with timeline.path.open("ab") as file:
        file.write(b"half a record")
    assert timeline.read() == [Batch(2.0, 100, 0, 1, 2)]
    assert (timeline.processed, timeline.failed, timeline.disordered) == (300, 1, 2)


def test_what_an_event_costs_is_the_sum_of_the_parts_of_its_life() -> None:
    life = Life(100, Counters(90_000, 1, 100), Counters(10_000, 0, 2), Counters(2_000, 1, 3), dead=100)
    wal, commits, dead = life.lines(1)
    assert (wal.value, commits.value, dead.value) == (1020.0, 1.02, 1.0)
    assert wal.note == "900 to record, 100 to process, 20 to vacuum; at most 164 of them whole pages"


def test_counters_are_compared_part_by_part() -> None:
    assert Counters(100, 7, 9) - Counters(40, 5, 1) == Counters(60, 2, 8)
