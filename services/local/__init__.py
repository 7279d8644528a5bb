"""`waybill up`: everything on one machine, with its own servers. Not needed in production."""
