"""Converters of small files. Their processes load this file by its path."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import ClassVar

from loopcore.abc import Converter, Report
from loopcore.errors import ConversionError
from loopcore.package import read_info, write_package
from loopcore.types import ModelInfo


class Appending(Converter):
    """Writes the source's file with the target's name at its end."""

    says: ClassVar[str | None] = None

    def convert(self, source: Path, into: Path, calibration: Path | None, report: Report) -> None:
        old = read_info(source)
        report(0.5, "halfway")
        data = (source / "weights.bin").read_bytes()
        (into / "weights.bin").write_bytes(data + f" {self.target}".encode())
        write_package(into, ModelInfo(name="made-here", version="0", format=self.says or self.target, spec=old.spec))


class NullToBest(Appending):
    source, target = "null", "best"


class RawToNull(Appending):
    source, target = "raw", "null"


class PtToRaw(Appending):
    source, target = "pt", "raw"


class Refusing(RawToNull):
    def convert(self, source: Path, into: Path, calibration: Path | None, report: Report) -> None:
        (into / "half").write_text("done")
        raise ConversionError("the head is not understood")


class Dying(RawToNull):
    def convert(self, source: Path, into: Path, calibration: Path | None, report: Report) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Lying(RawToNull):
    says = "raw"


class Idle(RawToNull):
    def convert(self, source: Path, into: Path, calibration: Path | None, report: Report) -> None:
        report(1.0)


class Waiting(RawToNull):
    """Ends when it is killed."""

    def convert(self, source: Path, into: Path, calibration: Path | None, report: Report) -> None:
        report(0.1, "waiting")
        signal.pause()
