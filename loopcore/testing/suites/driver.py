"""What all kinds of drivers promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import anyio
import msgspec
import pytest

from loopcore.abc import Driver
from loopcore.options import decode
from loopcore.testing.effects import effects
from loopcore.types import Problem

LIMIT_S = 30.0
"""No test of a suite waits longer for a driver."""


class DriverSuite:
    """The suites of the kinds inherit from this one.

    Attributes:
        driver: The class under test.
    """

    driver: ClassVar[type[Driver]]
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def table(self) -> Mapping[str, Any]:
        """The driver's table in the TOML, without the core's keys. Override it where the driver needs options."""
        return {}

    @pytest.fixture
    def make(self, table: Mapping[str, Any]) -> Callable[[], Any]:
        """Makes another instance of the driver, as the node would after a restart."""
        return lambda: self.driver(decode(table, self.driver.Options))

    def test_options_are_frozen_and_know_their_keys(self, table: Mapping[str, Any]) -> None:
        config = self.driver.Options.__struct_config__
        assert config.frozen
        assert config.forbid_unknown_fields
        with pytest.raises(msgspec.ValidationError, match="no_such_option"):
            decode({**table, "no_such_option": 1}, self.driver.Options)

    def test_constructor_does_no_io(self, make: Callable[[], Driver]) -> None:
        make()  # what is imported late is imported now
        with effects() as seen:
            make()
        assert seen == []

    async def test_check_answers_with_problems(self, make: Callable[[], Driver]) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as driver:
                problems = await driver.check()
        assert all(isinstance(problem, Problem) for problem in problems)

    async def test_driver_can_be_made_and_entered_again(self, make: Callable[[], Driver]) -> None:
        with anyio.fail_after(LIMIT_S):
            for _ in range(2):
                async with make() as driver:
                    assert isinstance(driver, self.driver)
