"""Whatever is done to credits, orders and stock, in whatever order, the tables agree with the model."""

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, Phase, seed
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test

from services.database import open_database
from services.settings import Settings
from tests.machines.ledger import LedgerMachine


def test_the_ledger_agrees_with_its_model_after_every_step(settings: Settings, pytestconfig: pytest.Config) -> None:
    wanted: int = pytestconfig.getoption("--ledger-steps")
    with asyncio.Runner() as runner:
        context = open_database(settings, "machine")
        LedgerMachine.runner, LedgerMachine.database = runner, runner.run(context.__aenter__())
        LedgerMachine.steps = 0
        try:
            # Examples end early now and then. The seeds make the steps the same in each CI run.
            for number in itertools.count():
                if LedgerMachine.steps >= wanted:
                    break
                run_state_machine_as_test(
                    seed(number)(LedgerMachine),
                    settings=hypothesis_settings(
                        max_examples=max(1, (wanted - LedgerMachine.steps) // 35),
                        database=None,
                        deadline=None,
                        suppress_health_check=list(HealthCheck),
                        # A failure is shown with its shortest sequence of steps.
                        phases=[Phase.explicit, Phase.generate, Phase.shrink],
                    ),
                )
        finally:
            runner.run(context.__aexit__(None, None, None))
    assert LedgerMachine.steps >= wanted
