"""The converter `format_a-to-format_b`: each file of the model, with its bytes turned round."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from loopcore.abc import Converter, Report
from loopcore.errors import ConversionError
from loopcore.package import open_folder, write_package


class MockConverter(Converter):
    """Stands where a real one would call the tools of its formats."""

    source = "format_a"
    target = "format_b"

    def convert(self, source: Path, into: Path, calibration: Path | None, report: Report) -> None:  # noqa: ARG002
        model = open_folder(source)
        for number, file in enumerate(model.info.files):
            report(number / len(model.info.files), f"converting {file.name}")
            data = (source / file.name).read_bytes()
            if not data:
                raise ConversionError(f"{file.name} is empty: there is nothing to convert")
            written = into / file.name
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_bytes(data[::-1])
        write_package(into, replace(model.info, format=self.target))
        report(1, "converted")
