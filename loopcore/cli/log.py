"""Log lines as a person reads them: what a peer, a file name or a label brings cannot pass for a line of its own."""

from __future__ import annotations

import logging
import sys
from textwrap import indent
from typing import Any

from loopcore.cli.text import visible

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def log_to_terminal(*, verbose: bool = False) -> None:
    """Let a node's log appear on stderr."""
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(VisibleFormatter(FORMAT))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[terminal])
    for noisy in ("httpcore", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for anyones in ("uvicorn.error", "python_multipart"):  # a warning for each bad request, and anyone can send those
        logging.getLogger(anyones).setLevel(logging.ERROR)


class VisibleFormatter(logging.Formatter):
    """One record, one line; a traceback below it is set in."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return indent(visible(super().formatException(ei), lines=True), "  ", lambda _: True)
