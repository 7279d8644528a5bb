"""The operators' console: web pages at `/console`, in the API's process.

A page is a module in `pages/` with a template in `templates/`. Its data comes from the same services as the HTTP API's.
"""
