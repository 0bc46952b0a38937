"""Log lines as a person reads them: what a peer, a file name or a label brings cannot pass for a line of its own."""

from __future__ import annotations

import logging
from textwrap import indent
from typing import Any

from loopcore.cli.text import visible


class VisibleFormatter(logging.Formatter):
    """One record, one line; a traceback below it is set in."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return indent(visible(super().formatException(ei), lines=True), "  ", lambda _: True)
