"""What stands in the way of working with a Loop, for `loopcore check --online`."""

from __future__ import annotations

from collections.abc import Sequence

from loopcore.errors import RemoteError
from loopcore.types import Problem
from loopcore_learningloop.client import Loop
from loopcore_learningloop.projects import Project

_NOT_FOUND = 404


async def problems(loop: Loop, project: Project | None) -> Sequence[Problem]:
    """Ask the Loop whether it is ready, lets us in, and has the project; the first of these that fails is told."""
    try:
        await loop.ready()
    except RemoteError as exc:
        return [Problem(message=f"the Learning Loop is not ready; is the url right? ({exc})")]
    try:
        await loop.login()
        if project is not None:
            await project.categories()
    except RemoteError as exc:
        if project is not None and exc.status == _NOT_FOUND:
            return [Problem(message=f"the Learning Loop has no project {project}; are both ids right? ({exc})")]
        return [Problem(message=str(exc))]
    return []
