"""The far side of `call_driver`: finds the class, makes the driver, calls the method and says how it went.

stdout and stderr are the driver's. What is said goes to a socket; its end is what `stop` asks for.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import msgspec

from loopcore.abc import Score
from loopcore.errors import LoopcoreError, PluginError, first
from loopcore.options import decode as decode_options
from loopcore.processes.messages import Progress, Raised, Request, Returned, decode_request, encode

EVERY_S = 0.1
"""Progress is not told more often; a score always is."""


def main() -> None:
    request = decode_request(sys.stdin.buffer.read())
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - the request, with its secrets, is no affair of the driver
        os.dup2(nothing.fileno(), 0)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that the log is in order
    line = socket.socket(fileno=request.line)
    line.set_inheritable(False)
    teller = _Teller(line)
    try:
        answer = encode(_run(request, teller))
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - the driver guard: the other side is told, whatever it is
        answer = encode(_raised(request, first(exc)))
    teller.finish(answer)


def _run(request: Request, teller: _Teller) -> Returned:
    found = _find(request)
    driver = found(decode_options(request.options, found.Options))
    arguments: dict[str, Any] = {**request.values, **{name: Path(path) for name, path in request.paths.items()}}
    method = getattr(driver, request.method)
    offered: dict[str, Any] = {"report": teller.report, "stop": teller.wanted}
    taken = {name: given for name, given in offered.items() if name in inspect.signature(method).parameters}
    value = method(**arguments, **taken)
    return Returned(value=str(value), is_path=True) if isinstance(value, Path) else Returned(value=value)


def _find(request: Request) -> Any:
    try:
        found: Any = importlib.import_module(request.module)
    except ModuleNotFoundError:
        if request.file is None:
            raise
        found = _load(request.module, request.file)
    for name in request.name.split("."):
        found = getattr(found, name)
    return found


def _load(name: str, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"{file} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that the Structs in it can look up their own names
    spec.loader.exec_module(module)
    return module


def _raised(request: Request, error: BaseException) -> Raised:
    if isinstance(error, LoopcoreError):
        return Raised(error=type(error).__name__, message=str(error))
    traceback.print_exception(error)
    return Raised(error="PluginError", message=f"{request.what} failed: {type(error).__name__}: {error}")


class _Teller:
    """Says things to the other side; from any thread of the driver."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._lock = Lock()
        self._last = -math.inf
        self._waiting: Progress | None = None

    def report(self, progress: float, message: str = "", *, score: Score | None = None, **metrics: float) -> None:
        """A `Report`. What comes too often is joined with what comes next."""
        told = Progress(
            progress=min(max(_finite(progress) or 0.0, 0.0), 1.0),
            message=str(message),
            score=_plain(score) if score is not None else None,
            metrics=_figures(metrics),
        )
        with self._lock:
            if self._waiting is not None:
                told = msgspec.structs.replace(told, metrics=self._waiting.metrics | told.metrics)
            self._waiting = told
            if told.score is not None or time.monotonic() - self._last >= EVERY_S:
                self._tell()

    def wanted(self) -> bool:
        """Whether the other side wants the end, or is no more."""
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        return bool(poll.poll(0))

    def finish(self, answer: bytes) -> None:
        """Say the last word."""
        with self._lock:
            self._tell()
            self._line.sendall(answer + b"\n")

    def _tell(self) -> None:
        if self._waiting is not None:
            self._line.sendall(encode(self._waiting) + b"\n")
            self._waiting, self._last = None, time.monotonic()


def _plain(score: Score) -> Score:
    """Without numpy's numbers, and checked."""
    confusion = {str(label): tuple(int(one) for one in counts) for label, counts in score.confusion.items()}
    epoch = None if score.epoch is None else int(score.epoch)
    return msgspec.convert({"confusion": confusion, "epoch": epoch, "metrics": _figures(score.metrics)}, Score)


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {str(name): _finite(value) for name, value in metrics.items()}
    return {name: value for name, value in found.items() if value is not None}


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
