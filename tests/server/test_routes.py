"""The neutral HTTP API."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import httpx
import pytest
from anyio import create_task_group, fail_after

from loopcore.config import ServerTable
from loopcore.errors import (
    BackendError,
    BusyError,
    FrameError,
    NotReadyError,
    OutboxFullError,
    PluginError,
    StorageError,
)
from loopcore.hookspecs import Mount
from loopcore.options import Secret
from loopcore.server import application, listen
from loopcore.types import Encoded, Keep

from .conftest import Double, Serve

pytestmark = pytest.mark.anyio

JPEG = {"Content-Type": "image/jpeg"}


async def test_a_raw_body_is_answered_with_the_neutral_json(serve: Serve, double: Double) -> None:
    async with serve() as client:
        answer = await client.post("/predict", content=b"picture", headers=JPEG)
    assert answer.status_code == 200
    assert answer.json() == {
        "prediction": {
            "detections": [{"kind": "box", "label": "cup", "confidence": 0.5, "x": 1, "y": 2, "width": 3, "height": 4}],
            "model": "",
            "model_version": "",
            "infer_ms": None,
            "extra": {},
        },
        "width": 640,
        "height": 480,
        "sample_id": "ab",
        "reasons": ["why"],
    }
    assert double.asked[0]["image"] == Encoded(b"picture", "image/jpeg")


async def test_parameters_come_in_the_query(serve: Serve, double: Double) -> None:
    query = "camera=c1&captured=2026-01-02T03:04:05%2B01:00&tags=a,b&tags=c&source=gate&keep=all"
    async with serve() as client:
        assert (await client.post(f"/predict?{query}", content=b"x", headers=JPEG)).status_code == 200
    asked = double.asked[0]
    assert asked["camera"] == "c1"
    assert asked["captured"].astimezone(UTC) == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)
    assert asked["captured"].utcoffset() == timedelta(hours=1)
    assert asked["tags"] == ("a", "b", "c")
    assert asked["source"] == "gate"
    assert asked["keep"] is Keep.ALL


async def test_a_form_carries_image_and_parameters(serve: Serve, double: Double) -> None:
    async with serve() as client:
        answer = await client.post(
            "/predict", files={"image": ("x.png", b"png", "image/png")}, data={"camera": "c2", "keep": "none"}
        )
    assert answer.status_code == 200
    assert double.asked[0]["image"] == Encoded(b"png", "image/png")
    assert double.asked[0]["camera"] == "c2"
    assert double.asked[0]["keep"] is Keep.NONE


@pytest.mark.parametrize("query", ["keep=maybe", "captured=yesterday", "colour=red", "captured=2026-99-01T00:00:00Z"])
async def test_a_wrong_parameter_is_400_and_says_which(serve: Serve, query: str) -> None:
    async with serve() as client:
        answer = await client.post(f"/predict?{query}", content=b"x", headers=JPEG)
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["message"]


async def test_an_empty_body_and_a_form_without_image_are_400(serve: Serve) -> None:
    async with serve() as client:
        assert (await client.post("/predict", headers=JPEG)).status_code == 400
        assert (await client.post("/predict", files={"picture": b"x"})).status_code == 400


@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [
        (FrameError("not a picture"), 422, None),
        (FrameError("too large", status=413), 413, None),
        (NotReadyError("no model", retry_after_s=3), 503, "3"),
        (BusyError("full"), 429, "1"),
        (BackendError("nan"), 500, None),
        (PluginError("broken"), 500, None),
        (OutboxFullError("full"), 507, None),
        (StorageError("disk"), 507, None),
    ],
)
async def test_each_error_has_its_status_and_a_json_sentence(
    serve: Serve, double: Double, failure: Exception, status: int, retry_after: str | None
) -> None:
    double.failure = failure
    async with serve() as client:
        answer = await client.post("/predict", content=b"x", headers=JPEG)
    assert answer.status_code == status
    assert answer.headers.get("Retry-After") == retry_after
    assert answer.json() == {"error": type(failure).__name__, "message": str(failure)}


async def test_a_body_over_the_limit_is_413_before_it_is_read(serve: Serve, double: Double) -> None:
    async with serve(max_body=1000) as client:
        answer = await client.post("/predict", content=b"x" * 2000, headers=JPEG)
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["message"]
    assert not double.asked


async def test_a_body_that_does_not_say_its_size_is_413_all_the_same(serve: Serve, double: Double) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    async with serve(max_body=1000) as client:
        answer = await client.post("/predict", content=endless(), headers=JPEG)
    assert answer.status_code == 413
    assert answer.json()["error"] == "Refused"
    assert not double.asked


async def test_a_client_that_has_gone_cancels_its_work(serve: Serve, double: Double) -> None:
    double.gate = anyio.Event()
    with fail_after(10):
        async with serve() as client:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: client.post("/predict", content=b"x", headers=JPEG))
                await double.begun.wait()
                group.cancel_scope.cancel()
            await double.cancelled.wait()


async def test_health_answers_and_ready_follows_the_model(serve: Serve, double: Double) -> None:
    async with serve() as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        double.ready = False
        answer = await client.get("/ready")
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers


async def test_metrics_are_prometheus_text(serve: Serve) -> None:
    async with serve() as client:
        answer = await client.get("/metrics")
    lines = answer.text.splitlines()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "loopcore_frames_total 12345678" in lines
    assert 'loopcore_frames_failed_total{error="BusyError"} 2' in lines
    assert 'loopcore_model_info{name="a \\"model\\"",version="1"} 1' in lines
    assert 'loopcore_outbox_dropped_total{rule="max_age"} 1' in lines
    assert 'loopcore_sink_waiting{sink="folder"} 2' in lines


async def test_an_unknown_path_and_a_wrong_verb_are_json_errors(serve: Serve) -> None:
    async with serve() as client:
        assert (await client.get("/nothing")).json()["error"] == "Refused"
        assert (await client.get("/predict")).status_code == 405


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


async def test_a_mount_sees_the_whole_path(serve: Serve) -> None:
    async with serve(mounts=[Mount(path="/detect", app=echo)]) as client:
        assert (await client.get("/detect")).text == "/detect"
        assert (await client.get("/detect/more")).text == "/detect/more"
        assert (await client.get("/detector")).status_code == 404


async def test_a_token_is_asked_for_everywhere_but_health_and_ready(serve: Serve) -> None:
    async with serve(token=Secret("open sesame"), mounts=[Mount(path="/detect", app=echo)]) as client:
        for path in ("/status", "/metrics", "/detect"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/predict", content=b"x", headers=JPEG)).status_code == 401
        assert (await client.get("/status", headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (await client.get("/status", headers={"Authorization": "Bearer open sesame"})).status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200


@pytest.mark.parametrize("verb", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_a_page_from_elsewhere_is_refused_for_every_verb(serve: Serve, verb: str) -> None:
    async with serve() as client:
        foreign = await client.request(verb, "/predict", headers={"Origin": "https://evil.example"})
        rebound = await client.request(verb, "/predict", headers={"Host": "evil.example"})
        null = await client.request(verb, "/predict", headers={"Origin": "null"})
    assert {foreign.status_code, rebound.status_code, null.status_code} == {403}


async def test_the_nodes_own_page_and_allowed_names_may_call(serve: Serve) -> None:
    async with serve(allowed_hosts=("gate.local",)) as client:
        own = {"Origin": str(client.base_url).rstrip("/")}
        assert (await client.get("/health", headers=own)).status_code == 200
        assert (await client.get("/health", headers={"Host": "gate.local:8004"})).status_code == 200
        assert (await client.get("/health", headers={"Origin": "http://gate.local"})).status_code == 200
        assert (await client.get("/health", headers={"Host": "localhost"})).status_code == 200


async def test_a_node_for_any_name_still_refuses_pages_from_elsewhere(serve: Serve) -> None:
    async with serve(allowed_hosts=("*",), allow_anonymous=True) as client:
        assert (await client.get("/health", headers={"Host": "detector.lan:8004"})).status_code == 200
        for origin in ("https://evil.example", "http://*", "null"):
            headers = {"Host": "detector.lan", "Origin": origin}
            assert (await client.get("/health", headers=headers)).status_code == 403


async def test_a_node_for_any_name_still_asks_for_its_token(serve: Serve) -> None:
    async with serve(allowed_hosts=("*",), token=Secret("open sesame")) as client:
        assert (await client.get("/status", headers={"Host": "detector.lan"})).status_code == 401


async def test_no_answer_allows_other_origins_to_read_it(serve: Serve) -> None:
    async with serve() as client:
        answer = await client.get("/health")
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "multipart/form-data"}, b"x"),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"-" * 100_000),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b\r\n" + b"a: b\r\n" * 100_000),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b\r\nContent-Disposition: form-data\r\n\r\nx"),
    ],
)
async def test_a_hostile_form_is_4xx(serve: Serve, headers: dict[str, str], body: bytes) -> None:
    async with serve() as client:
        answer = await client.post("/predict", headers=headers, content=body)
    assert 400 <= answer.status_code < 500
    assert json.loads(answer.text)["message"]


async def test_a_running_request_may_end_when_the_node_stops(serve: Serve, double: Double) -> None:
    double.gate = anyio.Event()
    answers: list[httpx.Response] = []

    async def ask(client: httpx.AsyncClient) -> None:
        answers.append(await client.post("/predict", content=b"x", headers=JPEG))

    with fail_after(10):
        async with serve() as client, anyio.create_task_group() as group:
            group.start_soon(ask, client)
            await double.begun.wait()
            double.gate.set()
    assert answers[0].status_code == 200


async def test_ready_costs_no_status(serve: Serve, double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    async def status() -> dict[str, Any]:
        raise AssertionError

    monkeypatch.setattr(double, "status", status)
    async with serve() as client:
        assert (await client.get("/ready")).status_code == 200
        double.ready = False
        assert (await client.get("/ready")).status_code == 503


async def test_a_request_that_outlasts_the_node_ends_with_it(double: Double) -> None:
    table = ServerTable(port=0)
    listener = listen(table.host, table.port)
    double.gate = anyio.Event()
    app = application(double, table, is_ready=lambda: True)  # type: ignore[arg-type]
    answers: list[httpx.Response] = []

    async def ask(client: httpx.AsyncClient) -> None:
        answers.append(await client.post("/predict", content=b"x", headers=JPEG))

    with fail_after(10):
        async with httpx.AsyncClient(base_url=listener.url, timeout=10) as client, create_task_group() as asking:
            async with create_task_group() as serving:
                await serving.start(listener.serve, app)
                asking.start_soon(ask, client)
                await double.begun.wait()
                serving.cancel_scope.cancel()
            assert double.cancelled.is_set()
    assert [answer.status_code for answer in answers] == [503]
    assert answers[0].headers["Retry-After"]


async def test_work_in_a_thread_is_waited_for_when_the_node_ends(double: Double) -> None:
    """uvicorn by itself cancels the request's task, and a thread would go on for a request that has ended."""
    table = ServerTable(port=0)
    listener = listen(table.host, table.port)
    release = threading.Event()
    done: list[str] = []

    def work() -> None:
        release.wait(10)
        done.append("thread")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with create_task_group() as group:
            group.start_soon(hear_of_the_end)
            double.begun.set()
            try:
                await anyio.to_thread.run_sync(work)
            finally:
                done.append("request")

    async def hear_of_the_end() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            release.set()

    async def ask(client: httpx.AsyncClient) -> None:
        await client.get("/slow")

    mounted = application(double, table, [Mount(path="/slow", app=app)], is_ready=lambda: True)  # type: ignore[arg-type]
    with fail_after(10):
        async with httpx.AsyncClient(base_url=listener.url, timeout=10) as client, create_task_group() as asking:
            async with create_task_group() as serving:
                await serving.start(listener.serve, mounted)
                asking.start_soon(ask, client)
                await double.begun.wait()
                serving.cancel_scope.cancel()
            done.append("server")
    assert done == ["thread", "request", "server"]


async def test_metrics_say_that_the_outbox_fails(serve: Serve, double: Double) -> None:
    whole = await double.status()
    failing = whole | {"outbox": {"error": "no disk"}, "sinks": {"folder": {"state": "retrying"}}}

    async def status() -> dict[str, Any]:
        return failing

    double.status = status  # type: ignore[method-assign]
    async with serve() as client:
        lines = (await client.get("/metrics")).text.splitlines()
    assert "loopcore_outbox_failing 1" in lines
    assert "loopcore_frames_total 12345678" in lines
