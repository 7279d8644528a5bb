"""Why a line or an invoice of the file does not become part of an order."""

from enum import StrEnum


class LineReason(StrEnum):
    blank = "blank"
    malformed = "malformed"
    cancelled_invoice = "cancelled_invoice"
    adjustment = "adjustment"
    quantity_not_positive = "quantity_not_positive"
    quantity_too_large = "quantity_too_large"
    price_negative = "price_negative"
    price_zero = "price_zero"
    price_not_in_cents = "price_not_in_cents"
    other_customer_in_invoice = "other_customer_in_invoice"
    invoice_has_too_many_lines = "invoice_has_too_many_lines"
    invoice_amounts_too_large = "invoice_amounts_too_large"
    invoice_beyond_limit = "invoice_beyond_limit"
    invoice_refused_by_service = "invoice_refused_by_service"


class InvoiceReason(StrEnum):
    cancelled = "cancelled"
    adjustment = "adjustment"
    no_sellable_line = "no_sellable_line"
    too_many_lines = "too_many_lines"
    amounts_too_large = "amounts_too_large"
    beyond_limit = "beyond_limit"
    refused_by_service = "refused_by_service"
