"""`waybill up`: everything on one machine, with servers of its own. Production needs none of it."""
