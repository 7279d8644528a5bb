"""`waybill demo`: steady traffic to look at."""
