"""The sink `learningloop`: images with all that is known of them, many in one request (`learning-loop.md` 7.4).

A sample's files are named by its id, so that a Loop that gets it again knows it. The reference sends no cookie here; a
sink with an account logs in like everybody else, and one without sends what an old node would.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Self

import anyio
import msgspec

from loopcore import abc
from loopcore.errors import AuthError, RejectedError, RemoteError, RetryableError
from loopcore.http import Part, multipart
from loopcore.types import Delivered, Problem, Receipt, Sample
from loopcore_learningloop.client import Loop
from loopcore_learningloop.options import SinkOptions
from loopcore_learningloop.projects import Project
from loopcore_learningloop.reaching import problems
from loopcore_learningloop.translation import Categories, metadata

_log = logging.getLogger(__name__)

_CONFLICT = 409
_NO_SUCH_CALL = frozenset({404, 405})
_NAMELESS_S = 600.0
"""How long a Loop that does not tell its categories is left alone."""


class Sink(abc.Sink):
    """Delivers to one project of a Loop."""

    Options = SinkOptions
    options: SinkOptions
    media = ("image/jpeg",)

    def __init__(self, options: SinkOptions) -> None:
        super().__init__(options)
        self.max_batch = options.batch
        self.in_flight = options.in_flight
        self.timeout_s = 3 * options.timeout + 1.0  # for categories, a login and the images; each has its own limit
        self._loop = Loop(options, connections=options.in_flight + 1, tries=1)
        self._nameless_until = float("-inf")

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._loop:
            self._project = Project(self._loop, self.options.organization, self.options.project)
            yield self

    async def check(self) -> Sequence[Problem]:
        return await problems(self._loop, self._project)

    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        categories = await self._categories(samples)
        body = multipart([part for sample in samples for part in _parts(sample, categories)])
        alone = len(samples) == 1
        answer = await self._loop.call(
            "POST", self._project.path("images"), content=body, expect={_CONFLICT} if alone else ()
        )
        if "html" in answer.headers.get("content-type", ""):
            raise RetryableError(f"{self._project} answered an upload with a web page; is the URL right?")
        # A conflict about one image can only be with itself; where there are several, the core asks one by one.
        return [Delivered(duplicate=answer.status_code == _CONFLICT) for _ in samples]

    async def _categories(self, samples: Sequence[Sample]) -> Categories:
        """Where the ids come from. Where the Loop takes images and tells nobody its categories, names must do."""
        names = frozenset(_labels(samples))
        if not names or anyio.current_time() < self._nameless_until:
            return Categories()
        try:
            return await self._project.categories(names)
        except RemoteError as exc:
            final = isinstance(exc, RejectedError) or exc.status in _NO_SUCH_CALL
            if not final and not (isinstance(exc, AuthError) and not self.options.username):
                raise
            _log.warning("Images go without the ids of their categories project=%s error=%s", self._project, exc)
            self._nameless_until = anyio.current_time() + _NAMELESS_S
            return Categories()


def _parts(sample: Sample, categories: Categories) -> list[Part]:
    stem = f"image_{sample.info.id}"
    told = msgspec.json.encode(metadata(sample.info, categories))
    return [
        Part(name="files", filename=f"{stem}.json", content=told, media="text/plain; charset=utf-8"),
        Part(name="files", filename=f"{stem}.jpg", content=sample.image, media="image/jpeg"),
    ]


def _labels(samples: Sequence[Sample]) -> Iterable[str]:
    for sample in samples:
        if sample.info.prediction is not None:
            yield from (one.label for one in sample.info.prediction.detections)
        yield from (one.label for one in sample.info.annotations or ())
