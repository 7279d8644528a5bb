"""A request's body as a model, for code that reads it before FastAPI does."""

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

ModelT = TypeVar("ModelT", bound=BaseModel)

_JSON = "application/json"


async def read_body(request: Request, model: type[ModelT]) -> ModelT | None:
    """The body as this model: what FastAPI passes to a route whose only body parameter is a `model`.

    None if it is not labelled as JSON, is not JSON, or is not valid. FastAPI, which then gets the request, says what is
    wrong, and accepts the labels that are not recognized here.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        return None
    try:
        # The request keeps what was parsed, so that FastAPI does not parse it again.
        received = await request.json()
        # As FastAPI does. Parsing and validating in one step accepts some values that this does not, and vice versa.
        read: ModelT = model.__pydantic_validator__.validate_python(received, from_attributes=True)
    except (ValidationError, ValueError, RecursionError):
        return None
    return read
