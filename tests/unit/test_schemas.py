"""The rule of decision 0026: SQLModel unless there is a reason, and each field defined once for table and schemas."""

import importlib
import pkgutil
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter
from sqlmodel import SQLModel
from sqlmodel.main import default_registry

import services
from services.database import DeclarativeTable
from services.fields import Changes, RequestBody, Schema, SoftDeletable, Versioned
from services.models import Category, Product, User

PLAIN = {"EventRow", "LogConsumer", "OutboxRow"}
"""The tables of the engine's hot paths, with columns that have no Python type."""

REDEFINED = {
    "UserPublic.email": "an address that was valid once is shown whatever is valid today",
    "ActPublic.id": "the row of a database has one",
    "ActPublic.at": "the row of a database has one",
}
"""Fields of a base that a schema defines again, with the reason."""


def everything() -> list[type[Any]]:
    """Every class of the services that is a SQLModel or a Pydantic model, after all modules are loaded."""
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    pending: list[type[Any]] = [BaseModel]
    found: dict[type[Any], None] = {}
    while pending:
        for kind in pending.pop().__subclasses__():
            pending.append(kind)
            if kind.__module__.startswith("services."):
                found[kind] = None
    return list(found)


def is_table(kind: type[Any]) -> bool:
    return "__table__" in vars(kind)


def bases() -> list[type[Any]]:
    """What tables and schemas share."""
    return [
        kind
        for kind in everything()
        if kind.__module__.endswith(".models")
        and issubclass(kind, SQLModel)
        and not is_table(kind)
        and kind.model_fields
    ]


def test_only_tables_of_the_engines_hot_paths_are_plain_sqlalchemy() -> None:
    mapped = {mapper.class_ for mapper in default_registry.mappers}
    assert {kind.__name__ for kind in mapped if issubclass(kind, DeclarativeTable)} == PLAIN
    assert {kind.__name__ for kind in mapped if not issubclass(kind, SQLModel)} == PLAIN
    assert len(mapped) >= 28


def test_every_schema_is_a_sqlmodel_that_shares_its_fields_and_is_not_a_table() -> None:
    schemas = [kind for kind in everything() if kind.__module__.endswith(".schemas")]
    assert len(schemas) >= 50
    assert [kind.__name__ for kind in schemas if not issubclass(kind, Schema) or is_table(kind)] == []


def test_each_base_has_one_table_and_at_least_one_schema() -> None:
    wrong = {}
    for base in bases():
        children = base.__subclasses__()
        tables = [kind.__name__ for kind in children if is_table(kind)]
        if len(tables) != 1 or len(children) < 2:
            wrong[base.__name__] = [kind.__name__ for kind in children]
    assert wrong == {}, "a base is what a table and its schemas share; otherwise remove it"
    assert len(bases()) >= 15


def test_no_table_or_schema_defines_a_field_of_its_base_again() -> None:
    shared: list[type[SQLModel]] = [*bases(), Versioned, SoftDeletable]
    again = {
        f"{kind.__name__}.{name}"
        for kind in everything()
        for base in shared
        if kind is not base and issubclass(kind, base)
        for name in vars(kind).get("__annotations__", {}).keys() & base.model_fields.keys()
    }
    assert again == REDEFINED.keys()


def test_each_field_of_an_update_has_the_type_of_the_tables_field() -> None:
    tables = {"User": User, "Category": Category, "Product": Product}
    compared = 0
    for kind in everything():
        if not issubclass(kind, Changes) or kind is Changes:
            continue
        table = next(table for name, table in tables.items() if kind.__name__.startswith(name))
        for name, field in kind.model_fields.items():
            if name not in table.model_fields:
                continue
            (changed,) = (one for one in get_args(field.annotation) if one is not type(None))
            if name in ("category_id", "is_active", "role"):
                continue
            stored = table.model_fields[name].rebuild_annotation()
            assert TypeAdapter(changed).json_schema() == TypeAdapter(stored).json_schema(), f"{kind.__name__}.{name}"
            compared += 1
    assert compared >= 8


def test_a_request_body_refuses_unknown_fields_and_a_schema_is_made_by_pydantic_alone() -> None:
    for kind in everything():
        if issubclass(kind, Schema):
            assert kind.__init__ is BaseModel.__init__, kind
        if issubclass(kind, RequestBody):
            assert kind.model_config["extra"] == "forbid", kind
