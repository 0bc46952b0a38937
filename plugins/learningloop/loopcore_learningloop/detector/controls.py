"""The model and the modes of a detector, in the words of the reference's clients (`learning-loop.md` 4, 8)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import asdict

from loopcore.abc import Service
from loopcore.errors import LoopcoreError, ModelError, RemoteError
from loopcore_learningloop import packages, wire
from loopcore_learningloop.detector.refusal import Refusal
from loopcore_learningloop.platform import Platform

_log = logging.getLogger(__name__)

FOLLOW, PAUSE = "follow", "pause"
NONE = "None"
"""How the reference tells a version that there is not."""

OPERATION_MODES = ("startup", "idle", "detecting")
OUTBOX_MODES = {"continuous_upload": True, "stopped": False}
_VERSION_CONTROL = {FOLLOW: "follow_loop", PAUSE: "pause"}
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")
_UPDATING = frozenset({"fetching", "converting", "checking"})
_LOGGERS = ("loopcore", "loopcore_learningloop")


class Controls:
    """What clients ask of the node besides looking at images.

    Args:
        service: The node.
        platforms: Its Loops.
    """

    def __init__(self, service: Service, platforms: Sequence[Platform]) -> None:
        self._service = service
        self._platforms = platforms
        self._mode = "idle"

    def information(self) -> wire.ModelInformation | None:
        """The model that serves, in the Loop's words; one from elsewhere has categories without ids."""
        info = self._service.model()
        if info is None:
            return None
        home = next((platform.options for platform in self._platforms), None)
        return packages.told_of(info) or wire.ModelInformation(
            id=info.id,
            organization=home.organization if home else "",
            project=home.project if home else "",
            version=info.version,
            categories=[wire.Category(id="", name=label) for label in info.labels],
        )

    async def info(self) -> dict[str, Any]:
        """The model that serves, or why there is none, as the event `info` has it."""
        if model := self.information():
            return told(model)
        rollout = _rollout(await self._service.status())
        if rollout.get("state") in _UPDATING:
            return {"status": f"Updating model to version {_target(rollout)}"}
        return {"status": "No model loaded"}

    async def about(self) -> dict[str, Any]:
        """As `GET /about` has it."""
        status = await self._service.status()
        model = self.information()
        return {
            "operation_mode": self._operation_mode(status),
            "state": "online",
            "model_info": told(model) if model else None,
            "target_model": _wanted(status),
            "version_control": _version_control(status),
        }

    async def model_version(self) -> dict[str, Any]:
        """As `GET /model_version` has it."""
        status = await self._service.status()
        model = self._service.model()
        return {
            "current_version": model.version if model else NONE,
            "target_version": _wanted(status) or NONE,
            "loop_version": _target(_rollout(status)) or NONE,
            "local_versions": list(status.get("models", [])),
            "version_control": _version_control(status),
        }

    async def set_model_version(self, wish: str) -> None:
        """Choose what serves: `follow_loop`, `pause` or a version. It serves, or nothing has changed.

        Raises:
            Refusal: There is no such version, or the Loop cannot be asked.
            LoopcoreError: As `Service.set_model`.
        """
        choices = {theirs: ours for ours, theirs in _VERSION_CONTROL.items()}
        if wish not in choices and not _VERSION.fullmatch(wish):
            raise Refusal("Invalid version number")
        try:
            await self._service.set_model(choices.get(wish, wish))
        except ModelError as exc:
            raise Refusal(str(exc)) from exc
        except RemoteError as exc:
            raise Refusal(f"Failed to load models from learning loop: {exc}") from exc

    async def reload(self) -> None:
        """Load the model anew.

        Raises:
            LoopcoreError: As `Service.reload`.
        """
        await self._service.reload()

    # Modes

    async def operation_mode(self) -> str:
        """`startup`, `idle` or `detecting`; only in `idle` does the Loop change the model."""
        return self._operation_mode(await self._service.status())

    async def set_operation_mode(self, mode: str) -> None:
        """Let the Loop change the model, or not.

        Raises:
            Refusal: There is no such mode (422).
        """
        if mode not in OPERATION_MODES:
            raise Refusal(f"{mode!r} is not a valid OperationMode", status=422)
        await self._service.hold_updates(mode != "idle")
        self._mode = mode

    def _operation_mode(self, status: Mapping[str, Any]) -> str:
        if not status.get("updates_held"):
            return "idle"
        return "detecting" if self._mode == "idle" else self._mode

    async def outbox_mode(self) -> str:
        """`continuous_upload` or `stopped`."""
        status = await self._service.status()
        return "continuous_upload" if status.get("sending", True) else "stopped"

    async def set_outbox_mode(self, mode: str) -> None:
        """Send what is kept, or keep it only.

        Raises:
            Refusal: There is no such mode (422).
            StorageError: The choice could not be noted.
        """
        if mode not in OUTBOX_MODES:
            raise Refusal(f"{mode!r} is not a valid OutboxMode", status=422)
        await self._service.set_outbox(OUTBOX_MODES[mode])

    # For tests and repairs

    def set_debug_logging(self, on: bool) -> None:
        """Log every step, or as much as before."""
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.DEBUG if on else logging.NOTSET)

    def set_connected(self, on: bool) -> None:
        """Exchange models and status with the Loop, or do not."""
        for platform in self._platforms:
            platform.mute(not on)

    async def reset(self) -> bool:
        """Forget what people have set here since the start, and load the model anew. What was accepted is not lost."""
        self._mode = "idle"
        self.set_debug_logging(False)
        self.set_connected(True)
        try:
            for platform in self._platforms:
                await platform.reset()
            await self._service.hold_updates(False)
            await self._service.set_outbox(True)
            await self._service.set_model(FOLLOW)
            if self._service.model() is not None:
                await self._service.reload()
        except LoopcoreError as exc:
            _log.warning("The detector is not quite as after its start: %s", exc)
            return False
        return True


def told(model: wire.ModelInformation) -> dict[str, Any]:
    """With all fields, as the reference's clients have them."""
    return {**asdict(model), "categories": [asdict(category) for category in model.categories]}


def _rollout(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rollout to this node, as far as the status tells of one."""
    return next((one for one in status.get("rollouts", ()) if one.get("to") == "self"), {})


def _target(rollout: Mapping[str, Any]) -> str | None:
    target = rollout.get("target") or {}
    version: str | None = target.get("version")
    return version


def _wanted(status: Mapping[str, Any]) -> str | None:
    """The version that is to serve: the one that a person has named, else the Loop's."""
    choice = status.get("model_choice") or FOLLOW
    if _is_path(choice):
        model = status.get("model") or {}
        version: str | None = model.get("version")
        return version
    return _target(_rollout(status)) if choice in _VERSION_CONTROL else str(choice)


def _version_control(status: Mapping[str, Any]) -> str:
    choice = status.get("model_choice") or FOLLOW
    return _VERSION_CONTROL.get(choice, _VERSION_CONTROL[PAUSE] if _is_path(choice) else "specific_version")


def _is_path(choice: str) -> bool:
    """The operator has named a file: there is nothing to follow, and no version that a client could know."""
    return "/" in choice or choice.endswith((".onnx", ".zip"))
