"""The README says of each wart of the reference what is better here, and by which test that is held.

And those tests that nobody else has.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from loopcore_learningloop.client import Loop
from loopcore_learningloop.downloads import Download
from loopcore_learningloop.environment import CYCLE_S, Choices, Role, configure
from loopcore_learningloop.options import LoopOptions

from loopcore import config
from loopcore.config.tables import RolloutTable
from loopcore.errors import RetryableError
from loopcore.options import Duration
from loopcore.plan import resolve
from loopcore.registry import Registry

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "plugins" / "learningloop" / "README.md").read_text(encoding="utf-8")
NUMBERS = range(1, 42)
KEPT = "kept for compatibility"
WHOSE = {"LOOP_ORGANIZATION": "zoo", "LOOP_PROJECT": "penguins"}


def rows() -> dict[int, tuple[str, str]]:
    """What is said of each wart, and by what it is shown."""
    _, _, section = README.partition("## Better than the reference")
    found = re.findall(r"^\| (\d+) \| (.+) \| (.*) \|$", section, re.MULTILINE)
    assert len({number for number, *_ in found}) == len(found)
    return {int(number): (said, shown) for number, said, shown in found}


@cache
def named_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_wart_has_its_row() -> None:
    assert list(rows()) == list(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_wart_is_held_by_tests_that_exist_or_kept_for_a_reason(number: int) -> None:
    said, shown = rows()[number]
    tests = re.findall(r"`([\w/]+\.py)::(test_\w+)`", shown)
    assert tests or said.startswith(KEPT)
    for path, name in tests:
        assert name in named_in(path), f"{path} has no {name} any more; which test holds wart {number} now?"


# 3


def test_without_a_host_rest_sockets_and_uploads_all_mean_the_public_loop() -> None:
    plan = resolve(config.parse(configure(WHOSE, Role.DETECTOR, Choices()).table), Registry())
    (platform,), (sink,) = plan.platforms, plan.sinks
    assert {platform.driver.options.url, sink.driver.options.url} == {"https://learning-loop.ai"}


# 21


async def drip(stream: SocketStream) -> None:
    """Answer with six bytes, each after a tenth of a second."""
    async with stream:
        await stream.receive()
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n")
        for byte in b"slowly":
            await anyio.sleep(0.1)
            await stream.send(bytes([byte]))


@pytest.mark.anyio
async def test_a_model_may_take_longer_than_a_request(tmp_path: Path) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, drip)
        port = listener.extra(SocketAttribute.local_port)
        with anyio.fail_after(10):
            async with Loop(LoopOptions(url=f"http://127.0.0.1:{port}", timeout=Duration(0.3))) as client:
                await Download(client, "file", tmp_path / "model.zip").fetch(10)
                with pytest.raises(RetryableError, match="no answer within"):
                    await client.call("GET", "file")
        tasks.cancel_scope.cancel()
    assert (tmp_path / "model.zip").read_bytes() == b"slowly"


# 25


def test_no_code_here_changes_the_working_folder() -> None:
    sources = [path for folder in ("loopcore", "plugins") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    assert [path for path in sources if re.search(r"\bf?chdir\(", path.read_text(encoding="utf-8"))] == []


# 36


def test_how_often_the_loop_is_asked_and_told_is_what_the_pages_say() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = RolloutTable(source="loop")
    assert table.every == CYCLE_S
    for key, seconds in {"every": table.every, "report": table.report}.items():
        assert f'| `{key}` | duration | `"{seconds:g} s"` |' in page
