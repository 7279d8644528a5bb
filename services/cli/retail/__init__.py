"""`waybill replay`: a real shop's trading, placed as orders through the HTTP API."""
