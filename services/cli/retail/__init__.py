"""`waybill import-retail`: a real shop's trading, placed as orders through the HTTP API."""
