"""The configured selectors over the stream of predictions, each within its quotas."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from logging import getLogger
from threading import Lock
from typing import Any, Protocol

from loopcore.abc import Selector
from loopcore.errors import PluginError
from loopcore.types import Frame, FrameInfo, Prediction, merged

_log = getLogger(__name__)
_HOUR_S = 3600.0
_SPAN_S = 60.0
_MAX_SPANS = 240
_MAX_CAMERAS = 512
_PAUSE_S = 60.0


class Terms(Protocol):
    """What the core's keys in a selector's table say; `config.SelectorTable` is one."""

    @property
    def name(self) -> str: ...
    @property
    def driver(self) -> str: ...
    @property
    def per_hour(self) -> int | None: ...
    @property
    def per_hour_per_camera(self) -> int | None: ...


class Selection:
    """All selectors of a node, asked in the order of the TOML.

    The reasons of a frame are what its selectors say, without repetition. A reason that is the driver's own name is
    given as the table's `name`, so that two tables of one driver can be told apart in `when`.

    A selector that breaks its contract is logged, counted, and left out for a minute; the others go on.

    Args:
        selectors: Each selector with its table, entered by whoever made it.
        clock: Seconds that only go forward; pauses are measured by it.
    """

    def __init__(
        self, selectors: Sequence[tuple[Terms, Selector]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seats = [_Seat(terms, selector, clock) for terms, selector in selectors]
        self._lock = Lock()
        self._considered = 0
        self._wanted = 0
        self.needs_image = any(selector.needs_image for _, selector in selectors)

    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> tuple[str, ...]:
        """The reasons to keep a frame; none: nobody wants it.

        May be called from any thread; calls wait for each other. Without `frame`, selectors that need the image do
        not take part.
        """
        with self._lock:
            reasons: tuple[str, ...] = ()
            for seat in self._seats:
                if frame is not None or not seat.selector.needs_image:
                    reasons = merged(reasons, seat.ask(info, prediction, frame))
            self._considered += 1
            self._wanted += bool(reasons)
            return reasons

    def status(self) -> dict[str, Any]:
        """Counts since the start: frames considered and wanted, and the same for each selector.

        Without the lock, so that the event loop never waits for a selector.
        """
        return {
            "considered": self._considered,
            "wanted": self._wanted,
            "selectors": [seat.status() for seat in self._seats],
        }


class _Seat:
    """One selector with its quotas, its guard and its counts."""

    def __init__(self, terms: Terms, selector: Selector, clock: Callable[[], float]) -> None:
        self.selector = selector
        self._terms = terms
        self._clock = clock
        self._quota = _Quota(terms.per_hour, terms.per_hour_per_camera)
        self._wanted = 0
        self._over_quota = 0
        self._errors = 0
        self._error: str | None = None
        self._paused_until: float | None = None

    def ask(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> tuple[str, ...]:
        if self._paused_until is not None:
            if self._clock() < self._paused_until:
                return ()
            self._paused_until = None
        try:
            said = self.selector.consider(info, prediction, frame if self.selector.needs_image else None)
            reasons = self._checked(said)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - the driver's guard: whatever it raises, the node goes on
            self._pause(exc)
            return ()
        if not reasons:
            return ()
        if not self._quota.take(info.camera, info.time.timestamp()):
            self._over_quota += 1
            return ()
        self._wanted += 1
        return reasons

    def status(self) -> dict[str, Any]:
        return {
            "name": self._terms.name,
            "driver": self._terms.driver,
            "wanted": self._wanted,
            "over_quota": self._over_quota,
            "errors": self._errors,
            "last_error": self._error,
            "paused": self._paused_until is not None,
        }

    def _checked(self, said: object) -> tuple[str, ...]:
        if not isinstance(said, (list, tuple)) or not all(isinstance(reason, str) and reason for reason in said):
            raise PluginError(f"consider() must return a sequence of words, not {said!r}", plugin=self._terms.driver)
        return tuple(self._terms.name if reason == self._terms.driver else reason for reason in said)

    def _pause(self, exc: BaseException) -> None:
        self._errors += 1
        self._error = str(exc) if isinstance(exc, PluginError) else f"{type(exc).__name__}: {exc}"
        self._paused_until = self._clock() + _PAUSE_S
        home = type(self.selector)
        _log.error(
            "A selector failed and is left out for %.0f s: name=%s driver=%s class=%s.%s",
            _PAUSE_S,
            self._terms.name,
            self._terms.driver,
            home.__module__,
            home.__qualname__,
            exc_info=exc,
        )


class _Quota:
    """How many frames a selector may still have: in all, and of each camera."""

    def __init__(self, per_hour: int | None, per_hour_per_camera: int | None) -> None:
        self._per_hour = per_hour
        self._per_hour_per_camera = per_hour_per_camera
        self._total = _Hour()
        self._cameras: OrderedDict[str | None, _Hour] = OrderedDict()

    def take(self, camera: str | None, now: float) -> bool:
        """Take one frame out of both quotas, or none out of either."""
        if self._per_hour is not None and self._total.count(now) >= self._per_hour:
            return False
        if self._per_hour_per_camera is not None:
            own = self._camera(camera)
            if own.count(now) >= self._per_hour_per_camera:
                return False
            own.add(now)
        if self._per_hour is not None:
            self._total.add(now)
        return True

    def _camera(self, camera: str | None) -> _Hour:
        if camera in self._cameras:
            self._cameras.move_to_end(camera)
        else:
            self._cameras[camera] = _Hour()
            if len(self._cameras) > _MAX_CAMERAS:
                self._cameras.popitem(last=False)
        return self._cameras[camera]


class _Hour:
    """Counts events less than an hour away from a moment, earlier or later, in frame time.

    Events of one minute share a slot, which counts as long as any of them does: exact for rare events, up to a minute
    strict for frequent ones, and of a size that does not depend on how many there are. Later ones count so that a
    clock that steps back a little opens nothing; those of a clock that was days ahead are out of reach and do not
    block.
    """

    def __init__(self) -> None:
        self._slots: OrderedDict[int, list[float]] = OrderedDict()  # minute → count, earliest, latest

    def count(self, now: float) -> int:
        return int(
            sum(
                count
                for count, earliest, latest in self._slots.values()
                if now - latest < _HOUR_S and earliest - now < _HOUR_S
            )
        )

    def add(self, now: float) -> None:
        minute = int(now // _SPAN_S)
        slot = self._slots.get(minute)
        if slot is not None:
            slot[:] = (slot[0] + 1, min(slot[1], now), max(slot[2], now))
            self._slots.move_to_end(minute)
            return
        self._slots[minute] = [1, now, now]
        if len(self._slots) > _MAX_SPANS:
            self._slots.popitem(last=False)
