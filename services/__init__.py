"""Waybill's services: the domains, the unit of work, the outbox engine, the HTTP API and the command line."""
