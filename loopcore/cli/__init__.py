"""The command line: `loopcore`."""

from loopcore.cli.app import app, main

__all__ = ["app", "main"]
