"""What a person has set is kept, whatever else is set in the same moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from anyio import create_task_group

from loopcore.node.state import Settings, load_state

pytestmark = pytest.mark.anyio


async def test_two_changes_at_the_same_time_are_both_kept(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    async with create_task_group() as tasks:

        async def stop_sending() -> None:
            await settings.change(sending=False)

        tasks.start_soon(stop_sending)
        await settings.change(model="pause", configured_model="follow")
    assert (settings.state.sending, settings.state.model) == (False, "pause")
    assert load_state(tmp_path) == settings.state
