"""A platform says which model is to be live; a rollout sees to it, in one place, again and again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from anyio import Event, move_on_after
from msgspec import Struct

from loopcore.abc import DeploymentTarget
from loopcore.deploy.bringing import Doing, Told
from loopcore.deploy.exchange import Patience
from loopcore.deploy.identity import same_model, shown
from loopcore.deploy.notes import Notes
from loopcore.deploy.offers import wanted_of
from loopcore.deploy.resting import Resting
from loopcore.errors import ConversionError, LoopcoreError, ModelError, RemoteError, RetryableError
from loopcore.types import ModelInfo

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

_log = logging.getLogger(__name__)

State: TypeAlias = Literal[
    "waiting", "paused", "held", "fetching", "converting", "checking", "current", "refused", "failed"
]
"""`waiting`: nobody has chosen a model yet, or nobody was asked yet. `paused`: a person has chosen otherwise here."""

CHANGES = 3
"""A platform that changes its mind so often while models are being fetched is left alone for a while."""


class Place(Protocol):
    """Where the models of a rollout go: this node, or another platform."""

    @property
    def name(self) -> str:
        """`self`, or the name of the platform."""
        ...

    @property
    def conditions(self) -> str:
        """All that decides, besides the model, whether it is refused: when this changes, it is tried again."""
        ...

    def closed(self) -> Literal["paused", "held"] | None:
        """Why no model may come now; `None` if one may."""
        ...

    async def has(self, wanted: ModelInfo) -> bool:
        """Whether this model is live there."""
        ...

    async def bring(self, wanted: ModelInfo, told: Told) -> None:
        """Have all at hand that it takes to make it live; quick if it is."""
        ...

    async def activate(self, wanted: ModelInfo, told: Told) -> bool:
        """Make it live, unless the place has been closed meanwhile; whether it is live now.

        Raises:
            ModelError: It may not be, and `rule` says why; or it is gone.
        """
        ...


class Showing(Struct, frozen=True, kw_only=True):
    """What a rollout shows of itself."""

    state: State = "waiting"
    target: ModelInfo | None = None
    error: str | None = None


class Rollout:
    """One `[[rollouts]]` table.

    Args:
        source: The name of the platform that says which model is to be live.
        target: Says so.
        place: Where it is to be live.
        every_s: How often the platform is asked.
        notes: Which models were refused.
        changed: Called whenever `showing` has changed.
        random: For the jitter.
    """

    def __init__(
        self,
        source: str,
        target: DeploymentTarget,
        place: Place,
        *,
        every_s: float,
        notes: Notes,
        changed: Callable[[], None] = lambda: None,
        random: Random | None = None,
    ) -> None:
        self.showing = Showing()
        self._source = source
        self._target = target
        self._place = place
        self._every_s = every_s
        self._notes = notes
        self._changed = changed
        self._random = random or Random()
        self._patience = Patience(first_s=max(every_s, 1.0))
        self._resting = Resting(max(every_s, 5.0), self._random)
        self._woken = Event()
        self._away = False
        self._wanted: ModelInfo | None = None

    def wake(self) -> None:
        """Look at once, and try again what has failed: a person has changed what may come."""
        self._resting.clear()
        self._patience.failures = 0
        self._woken.set()

    def status(self) -> dict[str, Any]:
        """As in the node's status."""
        wanted = self.showing.target
        return {
            "from": self._source,
            "to": self._place.name,
            "target": shown(wanted) if wanted else None,
            "state": self.showing.state,
            "error": self.showing.error,
        }

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Ask and act until cancelled."""
        task_status.started()
        while True:
            self._woken = Event()
            wait_s = await self._attempt()
            with move_on_after(wait_s):
                await self._woken.wait()

    async def _attempt(self) -> float:
        """One turn; how long to wait for the next one."""
        try:
            await self._turn()
        except LoopcoreError as exc:
            wait_s = self._patience.wait_s(exc, self._random)
            self._fail(exc, self._patience.failures)
            self._away = True
            return wait_s
        if self._away:
            _log.info("The platform of a rollout answers again from=%s to=%s", self._source, self._place.name)
        self._away = False
        self._patience.failures = 0
        return self._every_s

    async def _turn(self) -> None:
        """Ask, and act on the answer.

        Raises:
            LoopcoreError: The platform could not be asked, or has not given what it has.
        """
        brought: ModelInfo | None = None
        for _ in range(CHANGES):
            wanted = await self._ask()
            if wanted is None:
                return self._show("waiting")
            if closed := self._place.closed():
                return self._show(closed)
            if await self._place.has(wanted):
                return self._show("current")
            if refusal := self._notes.refusal(wanted, self._place.conditions):
                return self._show("refused", error=refusal.why)
            if resting := self._resting.error(wanted):
                return self._show_failure(resting)
            try:
                if brought is not None and same_model(brought, wanted):
                    return await self._activate(wanted)
                await self._place.bring(wanted, self._told)
            except RemoteError:
                raise
            except LoopcoreError as exc:
                return await self._failed(wanted, exc)
            brought = wanted  # that took its time: is it still what is wanted?
        raise RetryableError(f"the platform {self._source!r} wants another model whenever one has come")

    async def _activate(self, wanted: ModelInfo) -> None:
        is_live = await self._place.activate(wanted, self._told)
        self._show("current" if is_live else self._place.closed() or "waiting")

    async def _ask(self) -> ModelInfo | None:
        self._wanted = await wanted_of(self._source, self._target)
        return self._wanted  # shown together with what is found out about it

    async def _failed(self, wanted: ModelInfo, error: LoopcoreError) -> None:
        """A refusal is for good; all else is tried again, and the platform may want another model meanwhile.

        A model that cannot be converted may come in another format some day, so it rests and is looked for again.
        """
        if _refuses(error) and not isinstance(error, ConversionError):
            await self._notes.refuse(wanted, self._place.conditions, error)
            return self._show_failure(error)
        failures = self._resting.failed(wanted, error)
        return self._show_failure(error) if _refuses(error) else self._fail(error, failures)

    def _fail(self, error: LoopcoreError, failures: int) -> None:
        level = logging.DEBUG if failures > 1 else logging.WARNING
        to = self._place.name
        _log.log(level, "A rollout failed and goes on later from=%s to=%s error=%s", self._source, to, error)
        self._show_failure(error)

    def _show_failure(self, error: LoopcoreError) -> None:
        self._show("refused" if _refuses(error) else "failed", error=str(error))

    def _told(self, doing: Doing) -> None:
        self._show(doing)

    def _show(self, state: State, *, error: str | None = None) -> None:
        showing = Showing(state=state, target=self._wanted, error=error)
        if showing != self.showing:
            self.showing = showing
            self._changed()


def _refuses(error: LoopcoreError) -> bool:
    return isinstance(error, ModelError) and error.rule is not None
