"""How the staff finds orders. What is searched for is in the body of the request, so that it is in no log."""
