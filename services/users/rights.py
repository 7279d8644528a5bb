"""Roles and scopes: who may do what.

A scope is a right to call certain routes. A user has the scopes of their role; an API key has those of its own that its
owner has as well. Scopes whose names end in `_all` or `manage` reach beyond what belongs to the caller: a route
declares the scope for what is the caller's own, and its service asks for the other one.
"""

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """What a user is to the service. Roles of the staff are given by admins."""

    customer = "customer"
    seller = "seller"
    support = "support"
    """Reads what it needs to help users."""
    operator = "operator"
    """Runs the service and corrects the books."""
    auditor = "auditor"
    """Reads everything, changes nothing."""
    admin = "admin"
    """Decides on roles and keys, and moves no credits but their own."""

    def covers(self, other: "Role") -> bool:
        """Whether a user with this role may see and do all that one with the other role may."""
        return SCOPES[self] >= SCOPES[other]

    @property
    def is_staff(self) -> bool:
        """Whether the role reaches beyond what belongs to its user."""
        return not Role.customer.covers(self)


class Scope(StrEnum):
    """A right, which every route declares and an API key lists. Those to change something include no right to read."""

    meaning: str
    """What a caller with this scope may do."""

    def __new__(cls, value: str, meaning: str) -> "Scope":
        scope = str.__new__(cls, value)
        scope._value_ = value
        scope.meaning = meaning
        return scope

    profile_read = "profile:read", "Read the own profile and sessions."
    profile_write = "profile:write", "Change the own profile, end own sessions, delete oneself."
    keys_read = "keys:read", "List the own API keys."
    keys_write = "keys:write", "Make, rotate and revoke own API keys."
    keys_rotate = "keys:rotate", "Replace the API key that makes the request."
    orders_read = "orders:read", "Read the own orders and sales, and export them."
    orders_write = "orders:write", "Place, pay and cancel own orders."
    sales_write = "sales:write", "Fulfil, cancel and refund what the caller sold."
    credits_read = "credits:read", "Read the own account, statement and transfers."
    credits_write = "credits:write", "Move own credits, and post and void holds for the caller."
    catalog_read = "catalog:read", "Read the caller's own products, on sale or not, and their stock."
    catalog_write = "catalog:write", "Sell products: create and change them, and their stock."
    reports_read = "reports:read", "Read reports of the own sales."
    orders_read_all = "orders:read_all", "Read anyone's orders; extends `orders:read`."
    credits_read_all = "credits:read_all", "Read anyone's account, statement and transfers; extends `credits:read`."
    catalog_read_all = "catalog:read_all", "Read anyone's products, on sale or not, and their stock."
    users_read = "users:read", "Read other users."
    users_write = "users:write", "Change, deactivate, delete and restore other users."
    reports_read_all = "reports:read_all", "Read reports of all sales; extends `reports:read`."
    orders_manage = (
        "orders:manage",
        "Cancel, fulfil and refund anyone's orders; extends `orders:write` and `sales:write`.",
    )
    catalog_manage = "catalog:manage", "Change categories, and anyone's products; extends `catalog:write`."
    corrections_read = "corrections:read", "Read adjustments."
    corrections_write = (
        "corrections:write",
        "Top up, adjust, close and reopen accounts, reverse transfers, and post and void anyone's holds.",
    )
    operations_read = "operations:read", "Read what waits and what failed, and the workers."
    operations_write = "operations:write", "Pause, limit, replay and discard events."
    audit_read = "audit:read", "Read audits and the audit log, and recount the books."
    users_personal = "users:personal", "Export and erase what is stored about other users."
    roles_write = "roles:write", "Decide on roles, and change, deactivate, delete and restore staff."
    keys_manage = "keys:manage", "List and revoke anyone's API keys."


_PERSON = frozenset({Scope.profile_read, Scope.profile_write, Scope.keys_read, Scope.keys_write, Scope.keys_rotate})
_OWN_READS = frozenset({Scope.orders_read, Scope.credits_read, Scope.catalog_read, Scope.reports_read})
_CUSTOMER = _PERSON | _OWN_READS | {Scope.orders_write, Scope.sales_write, Scope.credits_write, Scope.catalog_write}
_SUPPORT_READS = frozenset({Scope.orders_read_all, Scope.credits_read_all, Scope.catalog_read_all, Scope.users_read})
_READS = _SUPPORT_READS | {Scope.reports_read_all, Scope.corrections_read, Scope.operations_read, Scope.audit_read}

SCOPES: Mapping[Role, frozenset[Scope]] = {
    Role.customer: _CUSTOMER,
    Role.seller: _CUSTOMER,
    Role.support: _CUSTOMER | _SUPPORT_READS,
    Role.operator: _CUSTOMER
    | _READS
    | {
        Scope.users_write,
        Scope.orders_manage,
        Scope.catalog_manage,
        Scope.corrections_write,
        Scope.operations_write,
    },
    Role.auditor: _PERSON | _OWN_READS | _READS,
    Role.admin: _CUSTOMER
    | {
        Scope.users_read,
        Scope.users_write,
        Scope.users_personal,
        Scope.operations_read,
        Scope.audit_read,
        Scope.roles_write,
        Scope.keys_manage,
    },
}
"""The scopes of each role."""

KEPT = (Role.operator, Role.admin)
"""The roles whose last user stays: without an operator or an admin, an installation cannot be run."""

SELLING = frozenset({Role.seller, Role.operator})
"""The roles that can use `catalog:write` even if customers may not sell (`WAYBILL_CUSTOMERS_MAY_SELL`)."""

PROFILE = frozenset({Scope.profile_read, Scope.profile_write})
"""What someone may do who has to set up a second factor first."""

PERSONAL = frozenset({Scope.profile_read, Scope.profile_write, Scope.keys_write, Scope.roles_write})
"""Scopes of people only: with them, anyone who finds a key could take over accounts, or make other keys."""
