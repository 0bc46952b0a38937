"""One project of a Loop: where its calls go, and its categories."""

from __future__ import annotations

from urllib.parse import quote

import anyio
from msgspec import Struct, field

from loopcore.errors import RejectedError, RemoteError
from loopcore_learningloop import wire
from loopcore_learningloop.client import Loop
from loopcore_learningloop.translation import Categories

REFRESH_S = 60.0
"""A name that nobody knows makes the Loop be asked again, so often at most."""

_GONE = frozenset({404, 405})


class _Categories(Struct):
    categories: list[wire.Category] = field(default_factory=list)


class Project:
    """A project, by the ids of its organization and itself; the Loop has both in lower case."""

    def __init__(self, loop: Loop, organization: str, project: str) -> None:
        self.loop = loop
        self.organization = organization.lower()
        self.id = project.lower()
        self._known: Categories | None = None
        self._asked = float("-inf")
        self._asking = anyio.Lock()

    def __str__(self) -> str:
        return f"{self.organization}/{self.id}"

    def path(self, *steps: str) -> str:
        """The path of a call below `/api`; what stands between the slashes is quoted.

        Raises:
            RejectedError: A name would lead elsewhere.
        """
        names = (self.organization, "projects", self.id, *steps)
        if wrong := {"", ".", ".."}.intersection(names):
            raise RejectedError(f"{wrong.pop()!r} is no name of a project, an image or a model: {self}")
        return "/".join(quote(name, safe="") for name in names)

    async def categories(self, names: frozenset[str] = frozenset()) -> Categories:
        """The project's categories, as they were when last asked; asked anew where one of these names is missing.

        Raises:
            RemoteError: They are not known, and could not be had.
        """
        if self._known is not None and (self._known.knows(names) or self._is_fresh()):
            return self._known
        async with self._asking:
            if self._known is None or not (self._known.knows(names) or self._is_fresh()):
                self._known = await self._ask()
                self._asked = anyio.current_time()
            return self._known

    def _is_fresh(self) -> bool:
        return anyio.current_time() < self._asked + REFRESH_S

    async def _ask(self) -> Categories:
        try:
            answer = await self.loop.get(self.path(), _Categories)
        except RemoteError as exc:
            if exc.status not in _GONE:
                raise
            # The call above is the converter's (11); where it is not offered, each trainer's is.
            data = await self.loop.get(self.path("data"), wire.ProjectData, params={"state": "trash"})
            return Categories(data.categories)
        return Categories(answer.categories)
