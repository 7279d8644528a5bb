"""`waybill import-retail`: a real shop's invoices, placed as orders through the HTTP API."""
