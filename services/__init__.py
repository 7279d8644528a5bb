"""Waybill's services: the domains, the unit of work, the outbox engine and their two front doors."""
