"""The checks by name: `uvx nox` for the quick ones, `uvx nox -l` for a list, `uvx nox -s tests -- -k outbox` for some.

Each is a command that uv can run by itself; nothing here knows more than `.ci/run` does.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.error_on_external_run = False
nox.options.sessions = ["lint", "types", "imports", "docs", "tests"]


@nox.session
def tests(session: nox.Session) -> None:
    """All tests but those of the long campaigns."""
    session.run("uv", "run", "pytest", "-m", "not long", *session.posargs)


@nox.session
@nox.parametrize("version", ["3.11", "3.12", "3.13"])
def versions(session: nox.Session, version: str) -> None:
    """All tests, on one version of Python in an environment of its own."""
    session.run("uv", "run", "--isolated", "--python", version, "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, form and spelling."""
    session.run("uv", "run", "ruff", "check", ".")
    session.run("uv", "run", "ruff", "format", "--check", ".")
    session.run("uv", "run", "codespell")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict."""
    session.run("uv", "run", "mypy", *session.posargs)


@nox.session
def imports(session: nox.Session) -> None:
    """Who may import whom."""
    session.run("uv", "run", "lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """The pages, with everything that they show run."""
    session.run("uv", "run", "pytest", "tests/test_docs.py", *session.posargs)


@nox.session
def long(session: nox.Session) -> None:
    """The campaigns of minutes or hours, `loopcore torture --long` among them."""
    session.run("uv", "run", "pytest", "-m", "long", "--timeout", "0", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """All figures, on this machine, one script after the other."""
    for script in sorted(Path("benchmarks").glob("*.py")):
        if "def main" in script.read_text(encoding="utf-8"):
            session.run("uv", "run", "python", "-m", f"benchmarks.{script.stem}", *session.posargs)
