"""`waybill doctor`: check an installation, and say what is wrong and what to do."""
