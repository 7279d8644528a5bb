"""How many rows a list has altogether: counted up to a bound, or estimated from the planner's statistics."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Executable, Select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement
from sqlmodel.ext.asyncio.session import AsyncSession

MAX_COUNTED = 10_000
"""Rows are counted, and examined for filters, up to this number: what a total costs does not grow with the list."""


class Count(StrEnum):
    """How to find the total."""

    estimate = "estimate"
    exact = "exact"


class Precision(StrEnum):
    """What a total says."""

    exact = "exact"
    at_least = "at_least"
    """Counting stopped there: there are more rows, or more to examine for a filter without an index."""
    estimate = "estimate"


class Total(BaseModel):
    """How many rows match the filters. `precision` says whether that is exact, a lower bound, or an estimate."""

    value: int
    precision: Precision


def counted(examined: int, found: int) -> Total:
    """The total if `found` of the first `examined` rows match, of which there are at most `MAX_COUNTED + 1`."""
    if examined > MAX_COUNTED:
        return Total(value=min(found, MAX_COUNTED), precision=Precision.at_least)
    return Total(value=found, precision=Precision.exact)


async def estimated(session: AsyncSession, statement: "Select[Any]") -> Total:
    """The number of rows that the statement selects, by the planner's estimate.

    It reads no rows: the planner makes it from statistics, which may be minutes old, and it may be far off if filters
    depend on each other.
    """
    plan = (await session.exec(_Plan(statement))).scalar_one()  # type: ignore[call-overload]
    return Total(value=int(plan[0]["Plan"]["Plan Rows"]), precision=Precision.estimate)


class _Plan(Executable, ClauseElement):
    """The plan of a statement as JSON; the statement is not run."""

    inherit_cache = False

    def __init__(self, statement: "Select[Any]") -> None:
        self.statement = statement


@compiles(_Plan)
def _explain(plan: _Plan, compiler: SQLCompiler, **more: Any) -> str:
    return f"EXPLAIN (FORMAT JSON) {compiler.process(plan.statement, **more)}"
