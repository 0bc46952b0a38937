"""Every exchange has a limit and an owner for what goes wrong, and failures are answered with patience."""

from __future__ import annotations

from random import Random

import anyio
import pytest
from anyio import create_task_group

from loopcore.deploy.exchange import Patience, exchange
from loopcore.errors import AuthError, PluginError, RejectedError, RetryableError

pytestmark = pytest.mark.anyio


async def test_a_platform_that_does_not_answer_is_not_waited_for() -> None:
    with pytest.raises(RetryableError, match="'acme' has not answered"), exchange("acme", 0.01):
        await anyio.sleep_forever()


async def test_a_platform_s_own_errors_pass_even_out_of_its_task_groups() -> None:
    with pytest.raises(RejectedError), exchange("acme"):
        async with create_task_group():
            raise RejectedError("no")


@pytest.mark.parametrize("error", [KeyError("x"), TimeoutError(), OSError("gone")])
async def test_what_a_platform_may_not_raise_is_its_own_fault(error: Exception) -> None:
    with pytest.raises(PluginError, match="the platform 'acme' failed"), exchange("acme"):
        raise error


async def test_a_cancelled_exchange_is_no_failure() -> None:
    with anyio.CancelScope() as scope:
        with exchange("acme"):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught


def test_waits_double_up_to_a_ceiling_with_jitter() -> None:
    patience, random = Patience(first_s=5, ceiling_s=300), Random(1)
    waits = [patience.wait_s(RetryableError("x"), random) for _ in range(100)]
    assert all(min(300, 5 * 2**n) / 2 <= wait <= min(300, 5 * 2**n) for n, wait in enumerate(waits))
    assert len(set(waits)) == 100


def test_a_peer_s_wish_for_patience_is_heard_within_reason() -> None:
    assert Patience().wait_s(RetryableError("x", retry_after_s=100), Random()) >= 100
    assert Patience().wait_s(RetryableError("x", retry_after_s=1e9), Random()) == 3600


def test_where_a_person_must_mend_something_the_first_wait_is_long() -> None:
    assert Patience(ceiling_s=300).wait_s(AuthError("x"), Random()) >= 150
