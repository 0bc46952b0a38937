"""What hooks may implement. Mark an implementation with `@hookimpl`.

A hook is a verb: nobody names it in the TOML, and every enabled plugin may answer. `def` is a contribution, quick and
without I/O; `async def` is an event, a fact in the past tense that cannot change the outcome. An implementation takes
the arguments of its spec, or fewer of them by name, and is `async` where the spec is. Each is called by itself: one
that raises, or takes longer than its limit, is logged with the plugin's name and left out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import pluggy
from anyio import CancelScope
from msgspec import Struct

from loopcore.abc import Driver, Service
from loopcore.types import RGB, FrameInfo, Model, ModelInfo, Prediction, SampleInfo

NAMESPACE = "loopcore"

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


class Mount(Struct, frozen=True, kw_only=True):
    """An ASGI application and the path it answers under, such as `/detect`.

    The application sees the whole path. `/predict`, `/health`, `/ready`, `/status` and `/metrics` are the core's own;
    two mounts with one path are a `PluginError` at start.

    Attributes:
        path: Where it answers, and below.
        app: The ASGI application. There are no `lifespan` events.
        run: `async def run(*, task_status)`, for what outlives a request: it calls `task_status.started()` before the
            first request comes, and is cancelled after the last one.
    """

    path: str
    app: Any
    run: Callable[..., Awaitable[None]] | None = None


LIMIT = "loopcore.limit"
GONE = "loopcore.gone"
"""The ASGI extensions behind `until_gone`: a request's cancel scope, and those of its connection that end with it."""


class until_gone:  # noqa: N801 - it reads as a statement
    """`with until_gone(scope):` a block of a mounted application that ends when the client of a request goes away.

    Then the whole request is cancelled, since nobody reads an answer. Under another server than the node's own the
    block is as any other.
    """

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        extensions = scope.get("extensions") or {}
        self._limit: CancelScope | None = extensions.get(LIMIT)
        self._gone: set[CancelScope] | None = extensions.get(GONE)

    def __enter__(self) -> None:
        if self._gone is not None and self._limit is not None:
            self._gone.add(self._limit)

    def __exit__(self, *_: object) -> None:
        if self._gone is not None and self._limit is not None:
            self._gone.discard(self._limit)


@hookspec
def loopcore_drivers() -> Sequence[type[Driver]]:  # type: ignore[empty-body]
    """The drivers of a single-file plugin, named in `[plugins] files = ["./my_sink.py"]`.

    Called once, at start. The name of each driver is its class attribute `name`; its kind follows from its base class.
    """


@hookspec(firstresult=True)
def loopcore_decode_frame(data: bytes, media: str) -> RGB | None:
    """Decode an image of a media type that the core does not read.

    Called in a worker thread for what is neither JPEG nor PNG; the first answer wins.

    Args:
        data: The bytes as they came; not longer than the server's limit.
        media: The media type as the caller said it, or `application/octet-stream`.

    Returns:
        `uint8` `(height, width, 3)`, RGB; `None` if this is not yours.
    """


@hookspec
def loopcore_mounts(service: Service, drivers: Sequence[Driver]) -> Sequence[Mount]:  # type: ignore[empty-body]
    """Applications to serve beside the core's own API.

    Called once, when the server is built and before a model is loaded.

    Args:
        service: The node; valid as long as the applications are.
        drivers: What the TOML names, backends apart, as constructed: a plugin finds its own by their class, and with
            them the options that an operator wrote.
    """


@hookspec
async def loopcore_node_started(name: str, service: Service) -> None:
    """The node is up: its server listens and its sources run.

    Called once.

    Args:
        name: `[node] name`.
        service: The node.
    """


@hookspec
async def loopcore_prediction_made(info: FrameInfo, prediction: Prediction) -> None:
    """A frame was answered.

    Called for every frame, after the answer and behind a bounded queue: when implementations cannot keep up, the oldest
    waiting ones are left out and counted.

    Args:
        info: The frame.
        prediction: What was found.
    """


@hookspec
async def loopcore_sample_kept(sample: SampleInfo) -> None:
    """A sample was accepted and is durable.

    Called once for each acceptance, merged ones included, behind a bounded queue: when implementations cannot keep up,
    the oldest waiting ones are left out and counted.

    Args:
        sample: As it is now in the outbox.
    """


@hookspec
async def loopcore_sample_delivered(sample: SampleInfo, sink: str, remote_id: str | None) -> None:
    """A sink's peer has the sample for good.

    Called once for each sink, after the outbox has noted it.

    Args:
        sample: The sample.
        sink: The name of the sink's table.
        remote_id: The peer's name for it, if it gave one.
    """


@hookspec
async def loopcore_sample_rejected(sample: SampleInfo, sink: str, why: str) -> None:
    """A sink's peer has refused the sample for good; it lies in `rejected/`.

    Args:
        sample: The sample.
        sink: The name of the sink's table.
        why: The peer's answer.
    """


@hookspec
async def loopcore_model_activated(model: Model, previous: Model | None) -> None:
    """A new model has passed its warm-up and serves from now on.

    Called once for each activation, after the swap and before the old backend closes; an exclusive backend has closed
    it before.

    Args:
        model: The model now serving.
        previous: The model it replaced; `None` at first start.
    """


@hookspec
async def loopcore_model_refused(model: ModelInfo, why: str) -> None:
    """A model was refused; what served before still serves.

    Args:
        model: The model that was to serve.
        why: The rule that it failed, in one sentence.
    """


@hookspec
async def loopcore_job_progressed(job: str, state: str, progress: float, metrics: dict[str, float]) -> None:
    """A training has come further.

    Args:
        job: The job's id.
        state: The step it is in.
        progress: 0 to 1 within the whole job.
        metrics: The newest figures, by name.
    """
