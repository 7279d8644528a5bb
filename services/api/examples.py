"""An example of each body in the OpenAPI document: that of its model, or one made from the schemas of its fields."""

from collections.abc import Iterator, Mapping
from typing import Any

_BY_NAME: Mapping[str, Any] = {
    "access_token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI3In0.c2lnbmF0dXJl",
    "action": "user.role_changed",
    "actor": "user:7",
    "address": "203.0.113.7",
    "aggregate": "order/01890a5d-ac96-774b-bcce-b302099a8057",
    "amount": "12.50",
    "code": "insufficient_credits",
    "current_password": "correct horse battery",
    "description": "A lamp of brass, with a dimmer.",
    "detail": "the available credits do not cover the amount",
    "email": "ada@example.com",
    "fingerprint": "9f86d081884c7d65",
    "full_name": "Ada Lovelace",
    "host": "worker-1",
    "key": "wbk_4Fh2kPq8sXw1nRt6vYz3bCd5gJm7LaEo",
    "name": "Brass lamp",
    "next_cursor": "eyJpZCI6NDJ9",
    "note": "thank you",
    "otp": "492039",
    "otpauth_uri": "otpauth://totp/Waybill:ada@example.com?secret=JBSWY3DPEHPK3PXP&issuer=Waybill",
    "password": "correct horse battery",
    "pointer": "#/items/0",
    "price": "12.50",
    "reason": "damaged on the way",
    "recovery_codes": ["k7xw-2mpq-9trd", "b3hn-8vcz-4ysf"],
    "reference": "PO-2026-0042",
    "refresh_token": "wbr_8sXw1nRt6vYz3bCd5gJm7LaEo4Fh2kPq",
    "request_id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "secret": "JBSWY3DPEHPK3PXP",
    "sku": "LAMP-BRASS-1",
    "title": "Payment Required",
    "token": "Zk1nB0mYf3vQ8sXw1nRt6vYz3bCd5gJm",
    "type": "order.placed",
    "user_agent": "curl/8.5.0",
    "username": "ada@example.com",
}
"""Values of fields that say more than any text would."""

_BY_FORMAT = {
    "date": "2026-03-14",
    "date-time": "2026-03-14T09:26:53.589793Z",
    "email": "ada@example.com",
    "password": "correct horse battery",
    "uuid": "01890a5d-ac96-774b-bcce-b302099a8057",
}
_AMOUNT = "12.50"
_DEEPEST = 6


def describe_examples(document: dict[str, Any]) -> None:
    """Give every JSON or form body of the document an example."""
    maker = _Maker(document["components"]["schemas"])
    for medium, is_request in _media(document):
        medium["example"] = maker.make(medium["schema"], is_request=is_request)


def _media(document: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    for operations in document["paths"].values():
        for operation in operations.values():
            for medium in operation.get("requestBody", {}).get("content", {}).values():
                yield medium, True
            for status, reply in operation["responses"].items():
                for media_type, medium in reply.get("content", {}).items():
                    # A problem's example is that of its schema.
                    if media_type == "application/json" and status < "4" and medium.get("schema"):
                        yield medium, False


class _Maker:
    """Makes values that are valid against a schema of the document."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas

    def make(self, schema: Mapping[str, Any], *, is_request: bool, name: str = "", depth: int = 0) -> Any:
        if "$ref" in schema:
            schema = {**self._schemas[schema["$ref"].rpartition("/")[2]], **schema}
        if "examples" in schema:
            return schema["examples"][0]
        for kind in ("anyOf", "oneOf", "allOf"):
            if kind in schema:
                choice = next((one for one in schema[kind] if one.get("type") != "null"), schema[kind][0])
                return None if depth > _DEEPEST else self.make(choice, is_request=is_request, name=name, depth=depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["default"] if "default" in schema else schema["enum"][0]
        match schema.get("type"):
            case "object":
                return self._object(schema, is_request, depth)
            case "array":
                if name in _BY_NAME:
                    return _BY_NAME[name]
                return [self.make(schema["items"], is_request=is_request, name=name, depth=depth + 1)]
            case "string":
                return _text(schema, name)
            case "integer" | "number":
                return _number(schema)
            case "boolean":
                return schema.get("default", False)
        return None

    def _object(self, schema: Mapping[str, Any], is_request: bool, depth: int) -> dict[str, Any]:
        hidden = "readOnly" if is_request else "writeOnly"
        made = {}
        for field, inner in schema.get("properties", {}).items():
            if not inner.get(hidden):
                made[field] = self.make(inner, is_request=is_request, name=field, depth=depth + 1)
        return made


def _text(schema: Mapping[str, Any], name: str) -> str:
    if schema.get("format") in _BY_FORMAT and name not in _BY_NAME:
        return _BY_FORMAT[schema["format"]]
    if name in _BY_NAME:
        return str(_BY_NAME[name])
    if "[0-9]" in schema.get("pattern", ""):
        return _AMOUNT
    return str(schema.get("default") or name.replace("_", " ") or "text")


def _number(schema: Mapping[str, Any]) -> int:
    default = schema.get("default")
    return int(default or max(1, schema.get("minimum", 1)))
