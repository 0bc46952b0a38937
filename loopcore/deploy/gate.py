"""The rules that a model must pass before it serves.

A rule looks at the package, or at the model once it is loaded. The first that refuses ends it: what served before
still serves.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from msgspec import Struct

from loopcore.abc import Backend
from loopcore.config import GateTable
from loopcore.errors import BackendError, IntegrityError, ModelError, NotReadyError, PluginError
from loopcore.package import check_files
from loopcore.types import Box, Classification, Detection, Frame, FrameInfo, Model, Point, Segmentation

_log = logging.getLogger(__name__)

Run = Callable[..., Awaitable[Any]]
"""Runs a function that blocks in a thread, with its arguments."""


class Candidate(Struct, frozen=True, kw_only=True, eq=False):
    """A model before the gate; `backend` runs it, entered, and is `None` until it is loaded."""

    model: Model
    backend: Backend | None = None


class Verdict(Struct, frozen=True):
    """What a rule says of a model; `why` is the reason of a refusal, in one sentence."""

    rule: str
    passed: bool
    why: str = ""


class Rule(ABC):
    """One thing that a model must show. Blocking; called in a thread.

    Attributes:
        name: As people read it.
        loaded: It needs the model loaded; the others are asked before.
    """

    name: ClassVar[str]
    loaded: ClassVar[bool] = False

    @abstractmethod
    def judge(self, candidate: Candidate) -> str | None:
        """Why this model may not serve; `None` if it may.

        Raises:
            ModelError: It may not; the message says why.
            IntegrityError: What lies here is damaged, which says nothing of the model.
            NotReadyError: The device has no room for it now, likewise.
            PluginError: Its backend breaks its contract.
        """


class Files(Rule):
    """The files of the package are those that its `model.json` promises, by size and hash."""

    name = "files"

    def judge(self, candidate: Candidate) -> str | None:
        check_files(candidate.model)
        return None


class Labels(Rule):
    """The model knows the labels that the operator needs."""

    name = "labels"

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels

    def judge(self, candidate: Candidate) -> str | None:
        missing = [label for label in self._labels if label not in candidate.model.info.labels]
        return f"it lacks the labels {', '.join(map(repr, missing))}" if missing else None


class WarmUp(Rule):
    """The model answers one grey picture, with finite numbers. What it needs for that is made then and not later."""

    name = "warm-up"
    loaded = True

    def judge(self, candidate: Candidate) -> str | None:
        import numpy as np

        if candidate.backend is None:
            return None
        info = FrameInfo(width=640, height=480, time=datetime.now(UTC))
        frame = Frame(info=info, pixels=np.full((480, 640, 3), 127, np.uint8))
        predictions = candidate.backend.infer([frame])
        if len(predictions) != 1:
            raise PluginError(f"the backend gave {len(predictions)} predictions for one frame")
        if not all(_is_finite(found) for found in predictions[0].detections):
            return "it gives boxes that are not finite"
        return None


class Gate:
    """A list of rules, asked in their order.

    Args:
        rules: Those that every model must pass come first.
        run: Runs what blocks in a thread: for rules about a loaded model, in one of those that run models.
    """

    def __init__(self, rules: Sequence[Rule], run: Run) -> None:
        self._rules = rules
        self._run = run

    async def look(self, model: Model) -> Sequence[Verdict]:
        """Ask the rules about the package.

        Raises:
            IntegrityError: It is damaged; no rule refuses it.
            ModelError: A rule refuses it; `rule` is its name.
        """
        return await self._ask(Candidate(model=model), loaded=False)

    async def test(self, backend: Backend) -> Sequence[Verdict]:
        """Ask the rules about the loaded model.

        Raises:
            NotReadyError: The device has no room for it now; no rule refuses it.
            ModelError: A rule refuses it; `rule` is its name.
            PluginError: The backend breaks its contract.
        """
        return await self._ask(Candidate(model=backend.model, backend=backend), loaded=True)

    async def _ask(self, candidate: Candidate, *, loaded: bool) -> Sequence[Verdict]:
        verdicts = []
        for rule in self._rules:
            if rule.loaded is loaded:
                verdicts.append(verdict := await self._run(_judge, rule, candidate))
                _log.debug("rule=%s passed=%s why=%s", verdict.rule, verdict.passed, verdict.why)
                if not verdict.passed:
                    raise refusal(candidate.model, verdict)
        return verdicts


def gate_for(table: GateTable, run: Run) -> Gate:
    """The gate of a rollout: what every model must show, and what its table wants."""
    wanted: list[Rule] = [Labels(table.labels)] if table.labels else []
    return Gate([Files(), *wanted, WarmUp()], run)


def refusal(model: Model, verdict: Verdict) -> ModelError:
    """The error that says so."""
    info = model.info
    return ModelError(f"the rule {verdict.rule!r} refuses {info.name} {info.version}: {verdict.why}", rule=verdict.rule)


def _judge(rule: Rule, candidate: Candidate) -> Verdict:
    try:
        why = rule.judge(candidate)
    except (IntegrityError, NotReadyError):
        raise
    except (ModelError, BackendError) as exc:
        return Verdict(rule.name, passed=False, why=str(exc))
    return Verdict(rule.name, passed=why is None, why=why or "")


def _is_finite(found: Detection) -> bool:
    return math.isfinite(found.confidence) and all(map(math.isfinite, _coordinates(found)))


def _coordinates(found: Detection) -> tuple[float, ...]:
    match found:
        case Box():
            return (found.x, found.y, found.width, found.height)
        case Point():
            return (found.x, found.y)
        case Segmentation():
            return tuple(value for point in found.points for value in point)
        case Classification():
            return ()
