"""Converters that a test wants to see from outside. Their processes load this file by its path."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopcore.abc import Converter, Report, Score
from loopcore.errors import ConversionError, UnknownDriverError
from loopcore.options import Duration, Options, Secret


class OddOptions(Options, frozen=True, kw_only=True):
    key: Secret = Secret("none")
    every: Duration = Duration(1)
    folder: Path | None = None


class Odd(Converter):
    source = "odd"
    target = "even"
    Options = OddOptions
    options: OddOptions

    def convert(self, source: Path, into: Path, calibration: Path | None, report: Report) -> None:
        raise NotImplementedError

    def tell_options(self) -> list[Any]:
        return [self.options.key.reveal(), float(self.options.every), str(self.options.folder)]

    def tell_surroundings(self) -> list[Any]:
        seen = Path("/proc/self/cmdline").read_text() if sys.platform == "linux" else ""
        return [seen, dict(os.environ), str(Path.cwd()), sys.stdin.read()]

    def join(self, folder: Path, name: str) -> Path:
        return folder / name

    def report_all(self, report: Report) -> None:
        report(-1, "begun", loss=1)
        report(float("nan"), loss=float("inf"), other=2)
        report(0.5, "half", score=Score(confusion={"cat": (1, 2, 3)}, epoch=4), f1=0.5)
        report(0.75, "nearly")
        report(1.0, loss=0.5)

    def report_much(self, report: Report) -> None:
        threads = [threading.Thread(target=lambda: [report(0.5) for _ in range(20_000)]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def wait(self, report: Report, stop: Callable[[], bool]) -> str:
        report(0.25, "waiting")
        pause = threading.Event()
        while not stop():
            pause.wait(0.01)
        return "stopped"

    def refuse(self) -> None:
        raise ConversionError("the head is not understood")

    def refuse_oddly(self) -> None:
        raise UnknownDriverError("sink", "b", ())

    def fail(self) -> None:
        raise ValueError("seven is odd")

    def leave(self) -> None:
        sys.exit("enough")

    def crash(self) -> None:
        print("about to crash")
        os.kill(os.getpid(), signal.SIGSEGV)

    def vanish(self) -> None:
        os._exit(3)

    def write(self) -> None:
        print("to stdout")
        print("to stderr", file=sys.stderr)

    def chatter(self) -> None:
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, b"{}\n")
            except OSError:
                continue

    def leave_a_thread(self) -> str:
        threading.Thread(target=threading.Event().wait).start()
        return "done"

    def answer_oddly(self) -> object:
        return object()
