"""Every public exception of loopcore. The class says what to do about it.

```
LoopcoreError
├── ConfigError            the operator mends it; the start ends with exit code 2
│   └── UnknownDriverError   names what is installed and the nearest match
├── PluginError            a plugin breaks its contract
├── FrameError             this input is bad: 4xx to the caller, the node goes on
├── BackendError           inference failed for this frame: 500
│   └── NotReadyError        no model is serving yet: 503 with Retry-After
├── BusyError              a bounded queue is full: 429 with Retry-After
├── StorageError           what was handed in could not be made durable: 507, nothing was accepted
│   └── OutboxFullError      the outbox is full and its rule is to reject
├── ModelError             the artefact is unusable: refuse it, keep the old one
│   ├── IntegrityError       size or hash differ
│   └── ConversionError      no path between two formats, or a step failed
├── DatasetError           a data set is unusable: incomplete, damaged, or of an unknown form
├── RemoteError            an exchange with a platform or a sink went wrong
│   ├── RetryableError       try again; the outcome is unknown
│   ├── RejectedError        refused for good
│   └── AuthError            stop this sink or platform, report, keep the queue
└── TrainingError          the job failed; the platform is told
```

Attributes are for programs; the message is one sentence for people: what, which, what to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import overload


class LoopcoreError(Exception):
    """The root of all errors that loopcore raises on purpose."""


class ConfigError(LoopcoreError):
    """The configuration is wrong; the operator mends it.

    Args:
        message: What is wrong, what was expected and, where there is one, the nearest valid name.
        file: The TOML file.
        line: The line in it, counted from 1.
        key: The dotted path of the key, such as `sinks[0].driver`.
    """

    def __init__(
        self, message: str, *, file: Path | None = None, line: int | None = None, key: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line
        self.key = key

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        return ": ".join(part for part in (place, self.key, self.message) if part)


class UnknownDriverError(ConfigError):
    """A table names a driver that is not installed.

    Args:
        kind: The kind of driver, such as `sink`.
        name: The name that was asked for.
        installed: The names of this kind that are installed, sorted.
        nearest: The most similar of them, if any is similar.
    """

    def __init__(self, kind: str, name: str, installed: tuple[str, ...], nearest: str | None = None) -> None:
        hint = f"; did you mean {nearest!r}?" if nearest else ""
        names = ", ".join(installed) or "none"
        super().__init__(f"no {kind} {name!r} is installed{hint} (installed: {names})", key="driver")
        self.kind = kind
        self.name = name
        self.installed = installed
        self.nearest = nearest


class PluginError(LoopcoreError):
    """A plugin breaks its contract: it cannot be imported, is of the wrong class, or raised what it may not raise.

    Args:
        message: What is wrong.
        plugin: The name of the driver or hook module.
        package: The distribution that it came with.
        version: That distribution's version.
    """

    def __init__(
        self, message: str, *, plugin: str | None = None, package: str | None = None, version: str | None = None
    ) -> None:
        super().__init__(message)
        self.plugin = plugin
        self.package = package
        self.version = version


class FrameError(LoopcoreError):
    """This picture cannot be used: not a picture, damaged, or over a limit.

    Args:
        message: What is wrong with it.
        status: The HTTP status that says the same: 400, 413, 415 or 422.
    """

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class BackendError(LoopcoreError):
    """Inference failed for this frame; others may succeed."""


class NotReadyError(BackendError):
    """No model is serving yet.

    Args:
        message: Why.
        retry_after_s: When to ask again, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BusyError(LoopcoreError):
    """A bounded queue is full; nothing was taken.

    Args:
        message: Which queue.
        retry_after_s: When to ask again, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StorageError(LoopcoreError):
    """The disk refused; what was to be stored was not accepted."""


class OutboxFullError(StorageError):
    """The outbox has reached a bound and `when_full` is `reject`; nothing was accepted."""


class ModelError(LoopcoreError):
    """A model cannot be used: unreadable, incomplete, of an unknown format, or its head is not understood.

    Args:
        message: Which model, and what is wrong with it.
        rule: The rule of the gate that refuses it, if one does.
    """

    def __init__(self, message: str, *, rule: str | None = None) -> None:
        super().__init__(message)
        self.rule = rule


class IntegrityError(ModelError):
    """A file is not the one that was promised: its size or its hash differ."""


class ConversionError(ModelError):
    """No installed chain of converters leads from one format to the other, or a step of it failed."""


class DatasetError(LoopcoreError):
    """A data set cannot be used: incomplete, damaged, or of an unknown form."""


class RemoteError(LoopcoreError):
    """An exchange with a platform or a sink went wrong.

    Args:
        message: What was tried with whom, and what came back.
        status: The HTTP status, if there was an answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RetryableError(RemoteError):
    """Try again later. Whether the peer acted on the request is not known.

    Args:
        message: What was tried with whom, and what came back.
        status: The HTTP status, if there was an answer.
        retry_after_s: The peer's own wish, in seconds, if it had one.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class RejectedError(RemoteError):
    """The peer refused for good; sending the same again is useless."""


class AuthError(RemoteError):
    """The peer does not accept our credentials; nothing more is sent until a person mends them."""


class TrainingError(LoopcoreError):
    """A training job failed."""


def revived(kind: str, message: str) -> LoopcoreError:
    """An error that was raised in another process: of the same class where a sentence is enough to make one."""
    found = globals().get(kind)
    if not isinstance(found, type) or not issubclass(found, LoopcoreError):
        return LoopcoreError(message)
    try:
        return found(message)
    except TypeError:
        return LoopcoreError(message)


@overload
def first(error: Exception) -> Exception: ...
@overload
def first(error: BaseException) -> BaseException: ...
def first(error: BaseException) -> BaseException:
    """The error to tell of: of a task group's errors the first one, however deep; of any other error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
