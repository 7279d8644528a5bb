"""`python -m services.cli`: how `waybill up` starts the other commands, regardless of the PATH."""

from services.cli.main import app

app(prog_name="waybill")
