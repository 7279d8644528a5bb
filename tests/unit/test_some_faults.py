"""A list with many faults: the first ones are found as always, and the others are not looked for."""

from typing import Annotated

import pytest
from pydantic import BaseModel, ValidationError

from services.catalog.schemas import ProductsUpsert
from services.credits.schemas import TransferBatchCreate
from services.errors import MOST_FAULTS
from services.fields import SOME_FAULTS
from services.orders.schemas import OrderCreate, RefundCreate


class Some(BaseModel):
    numbers: Annotated[list[int], SOME_FAULTS]


class Every(BaseModel):
    numbers: list[int]


def faults_of(model: type[BaseModel], numbers: list[object]) -> list[tuple[object, ...]]:
    with pytest.raises(ValidationError) as refused:
        model.model_validate({"numbers": numbers})
    return [(fault["loc"], fault["msg"]) for fault in refused.value.errors()]


@pytest.mark.parametrize(
    "wrong", [range(1), range(30, 31), range(15, 40), range(20), range(100), range(50, 300), range(0, 1000, 2)]
)
def test_the_faults_that_a_reply_lists_are_found(wrong: range) -> None:
    numbers: list[object] = ["x" if number in wrong else number for number in range(1000)]
    some, every = faults_of(Some, numbers), faults_of(Every, numbers)
    assert some[:MOST_FAULTS] == every[:MOST_FAULTS]
    assert len(some) == (len(every) if len(every) <= 10 * MOST_FAULTS else MOST_FAULTS)


def test_a_good_list_is_taken_as_it_is() -> None:
    assert Some.model_validate({"numbers": list(range(100))}).numbers == list(range(100))
    assert Some.model_validate({"numbers": [str(number) for number in range(100)]}).numbers == list(range(100))


@pytest.mark.parametrize(
    ("model", "field", "more"),
    [
        (ProductsUpsert, "products", {}),
        (TransferBatchCreate, "transfers", {"mode": "independent"}),
        (OrderCreate, "items", {}),
        (RefundCreate, "lines", {}),
    ],
)
@pytest.mark.parametrize("first", [[], [{}], [{}] * 3])
@pytest.mark.parametrize("unknown", [3, 400])
def test_no_list_of_a_request_makes_a_list_of_all_faults(
    model: type[BaseModel], field: str, more: dict[str, str], first: list[dict[str, int]], unknown: int
) -> None:
    element = {f"unknown{number}": 1 for number in range(unknown)}
    with pytest.raises(ValidationError) as refused:
        model.model_validate({field: [*first, *[element] * 490], **more})
    # Those of one element, and fewer than twenty before it.
    assert MOST_FAULTS <= refused.value.error_count() <= unknown + 2 * MOST_FAULTS
