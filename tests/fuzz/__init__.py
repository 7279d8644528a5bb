"""Generated requests, good and bad, to every operation of the OpenAPI document, as each role and as nobody.

None may end in a 5xx, and each reply must be documented, with its status, headers, type and shape. `python -m
tests.fuzz` sends as many of them as there is time for; `tests/api/test_schemathesis.py` sends a few.
"""
