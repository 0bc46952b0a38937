"""The annotator at work: people of every platform that has a desk for them get its proposals."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import anyio

from loopcore.abc import AnnotationDesk, AnnotationSession, Annotator, Proposal, Stroke
from loopcore.config import DriverTable
from loopcore.errors import LoopcoreError, PluginError
from loopcore.node.control_socket import Operations
from loopcore.node.enduring import Enduring
from loopcore.plan import Part, Plan
from loopcore.types import RGB

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)


class Annotating:
    """The role of a node with an `[annotator]`.

    Args:
        part: The annotator, not entered.
        plan: Says which platforms there are; they have been entered when `run` is called.
    """

    name = "annotating"

    def __init__(self, part: Part[DriverTable, Annotator], plan: Plan) -> None:
        self._part = part
        self._plan = plan
        self._desks: dict[str, Enduring] = {}

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve people until cancelled, or until a platform asks for the node's restart.

        Raises:
            ConfigError: No platform has a desk.
            LoopcoreError: The annotator, or a desk, could not begin.
        """
        async with AsyncExitStack() as stack:
            with self._plan.starting(self._part):
                annotator = await stack.enter_async_context(self._part.driver)
            self._desks = await self._find_desks(_Guarded(annotator, self._part))
            async with anyio.create_task_group() as tasks:
                for name, desk in self._desks.items():
                    await tasks.start(desk.run, tasks.cancel_scope, name=f"desk {name}")
                task_status.started()

    def operations(self) -> Operations:
        """None: people come by the platforms."""
        return {}

    def status(self) -> Mapping[str, Any]:
        """How the desks are doing, by platform."""
        return {"annotating": {name: desk.status() for name, desk in self._desks.items()}}

    async def _find_desks(self, annotator: Annotator) -> dict[str, Enduring]:
        desks = {}
        for platform in self._plan.platforms:
            desk = await self._plan.capability(platform.table.name, AnnotationDesk)
            if desk is not None:
                desks[platform.table.name] = self._served(platform.table.name, desk, annotator)
        if not desks:
            raise self._plan.config.error(self._part.table.key, "no platform of this file has people who annotate")
        return desks

    def _served(self, name: str, desk: AnnotationDesk, annotator: Annotator) -> Enduring:
        node = self._plan.config.node.name
        return Enduring("annotators", name, lambda task_status: desk.serve(annotator, node, task_status=task_status))


class _Guarded(Annotator):
    """The annotator as desks get it: what it may not raise, or may not propose, is a `PluginError`."""

    def __init__(self, annotator: Annotator, part: Part[DriverTable, Annotator]) -> None:
        super().__init__(annotator.options)
        self._annotator = annotator
        self._part = part

    def open(self, pixels: RGB, label: str) -> AnnotationSession:
        with self._guard():
            return _GuardedSession(self._annotator.open(pixels, label), self._guard)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        name, package = self._part.table.driver, self._part.package
        try:
            yield
        except LoopcoreError:
            raise
        except Exception as exc:
            # The driver guard: the person is told, and everybody else's objects are untouched.
            _log.exception("The annotator failed on a stroke driver=%s", name)
            message = f"the annotator {name!r} failed: {type(exc).__name__}: {exc}"
            raise PluginError(message, plugin=name, package=package) from exc


class _GuardedSession(AnnotationSession):
    def __init__(self, session: AnnotationSession, guard: Callable[[], AbstractContextManager[None]]) -> None:
        self._session = session
        self._guard = guard

    def act(self, stroke: Stroke) -> Proposal:
        with self._guard():
            proposal = self._session.act(stroke)
            outline = proposal.outline
            if len(outline) in (1, 2) or not all(math.isfinite(x) and math.isfinite(y) for x, y in outline):
                raise ValueError(f"an outline of {len(outline)} corners, or one that is nowhere")
            return proposal
