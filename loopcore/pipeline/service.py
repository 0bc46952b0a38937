"""What stands behind every source and every route, as `Service`.

One frame is one hop to a worker thread; what is kept then waits for the outbox, and for nothing else.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from anyio import to_thread
from msgspec import Struct

from loopcore.abc import Backend
from loopcore.collect.owed import Owed
from loopcore.errors import FrameError, LoopcoreError, PluginError, StorageError
from loopcore.infer.batching import Batcher
from loopcore.infer.serving import Serving
from loopcore.infer.threads import Threads
from loopcore.pipeline.looking import Call, Looker, Seen, make_call, make_sample
from loopcore.types import Annotation, Answer, FrameInfo, Image, Keep, ModelInfo, Prediction, SampleInfo, merged

if TYPE_CHECKING:
    from loopcore.collect.outbox import Outbox
    from loopcore.collect.selection import Selection
    from loopcore.hooks import Hooks

_log = logging.getLogger(__name__)

_JSON = msgspec.json.Encoder()
_SAMPLE = msgspec.json.Decoder(SampleInfo)


class Controls(Struct, frozen=True):
    """What the node can be told, handed to the pipeline so that `Service` is complete."""

    set_model: Callable[[str], Awaitable[None]]
    reload: Callable[[], Awaitable[None]]
    hold_updates: Callable[[bool], Awaitable[None]]
    set_outbox: Callable[[bool], Awaitable[None]]
    status: Callable[[], Awaitable[dict[str, Any]]]


class Pipeline:
    """The node's `Service`.

    Args:
        serving: The model.
        selection: The selectors.
        outbox: Where samples go.
        hooks: Who else wants to know.
        controls: What the node does when it is told to.
        max_waiting: How many frames may wait for the model; one more is a `BusyError`.
        max_pixels: Larger pictures are refused before they are decoded.
        threads: Where frames are worked on.
        at_once: How many calls of the backend may run at a time, at most.
    """

    def __init__(
        self,
        *,
        serving: Serving,
        selection: Selection,
        outbox: Outbox,
        hooks: Hooks,
        controls: Controls,
        threads: Threads,
        max_waiting: int = 64,
        max_pixels: int = 100_000_000,
        at_once: int = 2,
    ) -> None:
        self._serving = serving
        self._selection = selection
        self._outbox = outbox
        self._hooks = hooks
        self._controls = controls
        self._owed = Owed()
        self._looker = Looker(selection, hooks, self._owed, max_pixels)
        self._at_once = at_once
        self._batcher: Batcher[Backend, Call, Seen] = Batcher(
            serving.borrow, self._looker.look, threads=threads, max_waiting=max_waiting
        )
        self._counts: Counter[str] = Counter()
        self._fault = ""

    def fit(self, backend: Backend) -> None:
        """Take note of how much the backend that serves now can do at a time."""
        overlap = min(backend.max_overlap, self._at_once)
        self._batcher.set_capacity(max_batch=max(1, backend.max_batch), overlap=max(1, overlap))

    async def predict(
        self,
        image: Image,
        *,
        camera: str | None = None,
        captured: datetime | None = None,
        tags: Sequence[str] = (),
        source: str | None = None,
        keep: Keep = Keep.SELECTED,
    ) -> Answer:
        self._counts["frames"] += 1
        self._owed.forget_old()
        try:
            call = make_call(image, camera, captured, tags, source, keep)
            seen = await self._batcher.submit(call)
            sample = await self._accept_wanted(*seen.sample) if seen.sample else None
        except LoopcoreError as exc:
            self._note(exc)
            raise
        self._hooks.prediction_made(seen.info, seen.prediction)
        return Answer(
            prediction=seen.prediction,
            width=seen.info.width,
            height=seen.info.height,
            sample_id=sample.id if sample else None,
            reasons=sample.reasons if sample else (),
        )

    def select(self, info: FrameInfo, prediction: Prediction) -> tuple[str, ...]:
        return self._selection.consider(info, prediction, None)

    async def keep(
        self,
        image: Image,
        *,
        camera: str | None = None,
        captured: datetime | None = None,
        tags: Sequence[str] = (),
        source: str | None = None,
        prediction: Prediction | None = None,
        annotations: Sequence[Annotation] | None = None,
        reasons: Sequence[str] = (),
        state: str | None = None,
        urgent: bool = False,
    ) -> str:
        call = make_call(image, camera, captured, tags, source, Keep.ALL)
        info, encoded = await to_thread.run_sync(self._looker.stored, call)
        sample = make_sample(
            info,
            encoded,
            prediction,
            merged((), tuple(reasons)),
            annotations=None if annotations is None else tuple(annotations),
            state=state,
            urgent=urgent,
        )
        try:
            _SAMPLE.decode(_JSON.encode(sample))
        except (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise FrameError(f"what is said of the picture cannot be written down: {exc}", status=400) from exc
        return (await self._accept(sample, encoded.data)).id

    def model(self) -> ModelInfo | None:
        model = self._serving.model
        return model.info if model else None

    async def set_model(self, choice: str) -> None:
        await self._controls.set_model(choice)

    async def reload(self) -> None:
        await self._controls.reload()

    async def hold_updates(self, hold: bool) -> None:
        await self._controls.hold_updates(hold)

    async def set_outbox(self, sending: bool) -> None:
        await self._controls.set_outbox(sending)

    async def status(self) -> dict[str, Any]:
        return await self._controls.status()

    def report(self) -> dict[str, Any]:
        """The pipeline's own part of the status: frames since the start, by what became of them."""
        counts = dict(self._counts)
        return {
            "frames": counts.pop("frames", 0),
            "kept": counts.pop("kept", 0),
            "unwanted": counts.pop("unwanted", 0),
            "failed": counts,
            "waiting": self._batcher.waiting,
            "running": self._batcher.running,
        }

    def _note(self, exc: LoopcoreError) -> None:
        self._counts[type(exc).__name__] += 1
        if isinstance(exc, PluginError) and str(exc) != self._fault:
            self._fault = str(exc)
            _log.error("A plugin broke its contract on a frame: %s", exc, exc_info=exc)

    async def _accept_wanted(self, sample: SampleInfo, data: bytes) -> SampleInfo | None:
        if not self._outbox.wanted(sample):
            self._counts["unwanted"] += 1
            return None
        try:
            accepted = await self._accept(sample, data)
        except StorageError:
            self._owed.add(sample)
            raise
        self._owed.settle(sample.id)
        return accepted

    async def _accept(self, sample: SampleInfo, data: bytes) -> SampleInfo:
        accepted = await self._outbox.accept(sample, data)
        self._counts["kept"] += 1
        self._hooks.sample_kept(accepted)
        return accepted
