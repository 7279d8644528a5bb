"""How the OpenAPI document describes what callers present."""

from typing import Any

from services.users.rights import PERSONAL

_TOKEN, _KEY = "OAuth2PasswordBearer", "ApiKey"
_DESCRIPTION = (
    "The API key of a program (`POST /v1/api-keys`), sent as `Authorization: Bearer wbk_...`. It needs the operation's "
    "scope. Operations on profiles and sessions, and those that make or revoke keys, are for people only."
)


def describe_keys(document: dict[str, Any]) -> None:
    """Add API keys to the ways to call each operation that programs may call."""
    schemes = document["components"].setdefault("securitySchemes", {})
    schemes[_KEY] = {"type": "http", "scheme": "bearer", "bearerFormat": "wbk_", "description": _DESCRIPTION}
    for operations in document["paths"].values():
        for operation in operations.values():
            ways = operation.get("security", [])
            scopes = next((way[_TOKEN] for way in ways if _TOKEN in way), None)
            if scopes is not None and PERSONAL.isdisjoint(scopes):
                ways.append({_KEY: scopes})
