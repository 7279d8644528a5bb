"""How many rows a list has altogether: counted up to a bound, or estimated from the planner's statistics."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Executable, Select, func
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

MAX_COUNTED = 10_000
"""Rows are counted up to this number: what a total costs does not grow with the list."""


class Count(StrEnum):
    """How to find the total."""

    estimate = "estimate"
    exact = "exact"


class Precision(StrEnum):
    """What a total says."""

    exact = "exact"
    at_least = "at_least"
    """Counting stopped there: there are more."""
    estimate = "estimate"


class Total(BaseModel):
    """How many rows match the filters. `precision` says whether that is exact, a lower bound, or an estimate."""

    value: int
    precision: Precision


async def total_of(session: AsyncSession, statement: "Select[Any]", how: Count) -> Total:
    """The number of rows that the statement selects.

    An exact count stops at `MAX_COUNTED`. An estimate reads no rows: the planner makes it from statistics, which may be
    minutes old, and it may be far off if filters depend on each other.
    """
    if how is Count.estimate:
        plan = (await session.exec(_Plan(statement))).scalar_one()  # type: ignore[call-overload]
        return Total(value=int(plan[0]["Plan"]["Plan Rows"]), precision=Precision.estimate)
    some = statement.order_by(None).limit(MAX_COUNTED + 1).subquery()
    number = (await session.exec(select(func.count()).select_from(some))).one()
    if number > MAX_COUNTED:
        return Total(value=MAX_COUNTED, precision=Precision.at_least)
    return Total(value=number, precision=Precision.exact)


class _Plan(Executable, ClauseElement):
    """The plan of a statement as JSON; the statement is not run."""

    inherit_cache = False

    def __init__(self, statement: "Select[Any]") -> None:
        self.statement = statement


@compiles(_Plan)
def _explain(plan: _Plan, compiler: SQLCompiler, **more: Any) -> str:
    return f"EXPLAIN (FORMAT JSON) {compiler.process(plan.statement, **more)}"
