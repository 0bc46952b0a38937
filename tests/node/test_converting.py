"""Models of a platform that lack a format get it, one by one, and what cannot be converted is remembered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after

from loopcore import config
from loopcore.abc import Converter, ModelRegistry
from loopcore.deploy.conversion import Chain, Converters, Step
from loopcore.errors import ConfigError, RejectedError, RetryableError
from loopcore.node.converting import Converting, lacking
from loopcore.options import Options
from loopcore.plan import resolve
from loopcore.registry import Registry
from loopcore.testing import MemoryPlatform, make_model
from loopcore.testing.platform import MemoryModels
from loopcore.types import Model, ModelInfo

from ..deploy.converters import NullToBest, RawToNull, Refusing  # noqa: TID252 - the tests are no package with a name

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The role needs no server."""
    name: str = request.param
    return name


class Shelf(MemoryModels):
    """A platform's models; whatever happens to them can be waited for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.listed = anyio.Event()
        self.published = anyio.Event()
        self.refuses = False
        self.damages = 0
        self.breaks = 0
        self.broke = anyio.Event()

    async def list(self) -> Any:
        try:
            return await super().list()
        finally:
            self.listed.set()

    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
        await super().fetch(info, format, into)
        if self.damages:
            self.damages -= 1
            (into / "weights.bin").write_bytes(b"rot")

    async def publish(self, package: Model, job: str | None = None) -> ModelInfo:
        if self.refuses:
            raise RejectedError("no such format")
        if self.breaks:
            self.breaks -= 1
            self.broke.set()
            raise RetryableError("reset")
        info = await super().publish(package, job)
        self.published.set()
        return info

    async def put(self, version: str, format: str = "raw", **fields: Any) -> ModelInfo:
        folder = self.folder / f"{version}-{format}"
        extra = {"acme": {"id": f"id-{version}"}}
        return await super().publish(make_model(folder, version=version, format=format, extra=extra, **fields))

    async def formats(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for info in await super().list():
            found.setdefault(info.version, set()).add(info.format)
        return found


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


class Work:
    """The role at work."""

    def __init__(self, role: Converting, shelf: Shelf) -> None:
        self.role = role
        self.shelf = shelf

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.role.status()["conversions"][0]
        return found

    async def look(self) -> None:
        """Have it look again, and wait until it has nothing more to do."""
        for _ in range(2):  # the second look begins when the first one has ended
            self.shelf.listed = anyio.Event()
            self.role._conversions[0].wake()
            await self.shelf.listed.wait()


Working = Callable[..., Any]


@pytest.fixture
def work(tmp_path: Path, shelf: Shelf) -> Working:
    @asynccontextmanager
    async def working(*converters: type[Converter], **table: str) -> AsyncIterator[Work]:
        class Platform(MemoryPlatform):
            def __init__(self, options: Options) -> None:
                super().__init__(options)
                self.capabilities = {ModelRegistry: shelf}

        named = {f"{one.source}-to-{one.target}": one for one in converters}
        registry = Registry({"platform": {"acme": Platform}, "converter": named}, installed=False)
        conversion = {"platform": "acme", "from": "raw", "to": "null", "every": "1 h", **table}
        tables = {"node": {"data_dir": str(tmp_path)}, "platforms": [{"driver": "acme"}], "conversions": [conversion]}
        plan = resolve(config.parse(tables), registry)
        role = Converting(plan, Converters(registry, tmp_path / "converting"))
        with fail_after(30):
            async with create_task_group() as tasks:
                await tasks.start(role.run)
                yield Work(role, shelf)
                tasks.cancel_scope.cancel()

    return working


async def test_a_model_that_lacks_the_format_gets_it(work: Working, shelf: Shelf) -> None:
    await shelf.put("1")
    async with work(RawToNull):
        await shelf.published.wait()
    assert await shelf.formats() == {"1": {"raw", "null"}}
    made = next(info for info in await shelf.list() if info.format == "null")
    assert (made.version, made.labels, made.extra["acme"]) == ("1", ("cat", "dog"), {"id": "id-1"})


async def test_all_models_come_one_by_one_by_a_chain(work: Working, shelf: Shelf) -> None:
    for version in ("1", "2", "3"):
        await shelf.put(version, content=version.encode())
    async with work(RawToNull, NullToBest, to="best") as at_work:
        await at_work.look()
    assert await shelf.formats() == {version: {"raw", "best"} for version in "123"}


async def test_a_model_that_has_the_format_is_left_alone(work: Working, shelf: Shelf) -> None:
    await shelf.put("1")
    await shelf.put("1", "null")
    async with work(RawToNull) as at_work:
        await at_work.look()
        assert shelf.fetched == []


async def test_a_model_that_cannot_be_converted_holds_up_no_other_and_is_not_tried_again_after_a_restart(
    work: Working, shelf: Shelf
) -> None:
    await shelf.put("1")
    for _ in range(2):
        async with work(Refusing) as at_work:
            await at_work.look()
            (refused,) = at_work.status["refused"]
            assert refused["model"] == {"name": "made", "version": "1", "id": "id-1"}
            assert "the converter 'raw-to-null' failed: the head is not understood" in refused["why"]
    assert shelf.fetched == [("1", "raw")]


async def test_what_was_refused_is_tried_again_when_a_person_says_so(work: Working, shelf: Shelf) -> None:
    await shelf.put("1")
    async with work(Refusing) as at_work:
        await at_work.look()
        assert await at_work.role.operations()["forget_conversions"]() == 1
        await at_work.look()
        assert len(at_work.status["refused"]) == 1
    assert shelf.fetched == [("1", "raw")] * 2


async def test_a_model_that_the_platform_does_not_take_is_refused_and_not_tried_again(
    work: Working, shelf: Shelf
) -> None:
    await shelf.put("1")
    shelf.refuses = True
    async with work(RawToNull) as at_work:
        await at_work.look()
        await at_work.look()
        assert [one["why"] for one in at_work.status["refused"]] == ["no such format"]
    assert len(shelf.fetched) == 1


async def test_a_platform_that_is_away_is_shown_and_asked_again(work: Working, shelf: Shelf) -> None:
    shelf.errors.extend([RetryableError("no route")] * 2)
    async with work(RawToNull) as at_work:
        await at_work.look()
        assert (at_work.status["state"], at_work.status["error"]) == ("failed", "no route")
        await shelf.put("1")
        at_work.role._conversions[0].wake()
        await shelf.published.wait()


async def test_what_was_made_is_not_made_again_because_an_upload_breaks_off(work: Working, shelf: Shelf) -> None:
    await shelf.put("1")
    shelf.breaks = 1
    async with work(RawToNull) as at_work:
        await shelf.broke.wait()
        at_work.role._conversions[0].wake()
        await shelf.published.wait()
    assert shelf.fetched == [("1", "raw")]


async def test_nothing_is_left_on_the_disk(work: Working, shelf: Shelf, tmp_path: Path) -> None:
    await shelf.put("1")
    async with work(RawToNull) as at_work:
        await at_work.look()
    assert list((tmp_path / "passing" / "conversions-0").iterdir()) == []
    assert list((tmp_path / "converting").iterdir()) == []


async def test_a_platform_without_models_ends_the_start(tmp_path: Path) -> None:
    class Mute(MemoryPlatform):
        def __init__(self, options: Options) -> None:
            super().__init__(options)
            self.capabilities = {}

    registry = Registry({"platform": {"acme": Mute}, "converter": {"raw-to-null": RawToNull}}, installed=False)
    conversions = [{"platform": "acme", "from": "raw", "to": "null"}]
    tables = {"node": {"data_dir": str(tmp_path)}, "platforms": [{"driver": "acme"}], "conversions": conversions}
    role = Converting(resolve(config.parse(tables), registry), Converters(registry, tmp_path))
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="no ModelRegistry"), flatten_subgroups=True):
        async with create_task_group() as tasks:
            await tasks.start(role.run)


def test_a_model_without_a_version_is_nobody_s_to_choose() -> None:
    models = [ModelInfo(name="m", version=version, format="raw") for version in ("", "1")]
    assert lacking(models, "raw", "null") == models[1:]


async def test_a_download_that_comes_damaged_is_no_refusal_and_comes_again(work: Working, shelf: Shelf) -> None:
    await shelf.put("1")
    shelf.damages = 1
    async with work(RawToNull) as at_work:
        await at_work.look()
        assert at_work.status["refused"] == []
        await at_work.look()
    assert await shelf.formats() == {"1": {"raw", "null"}}


async def test_an_upload_that_fails_holds_up_no_other_conversion(tmp_path: Path, shelf: Shelf) -> None:
    converters = Converters(Registry(installed=False), tmp_path / "converting")
    source = make_model(tmp_path / "raw", format="raw")
    chain = Chain((Step("raw-to-null", RawToNull),))
    with fail_after(30):
        async with converters.converted(source, chain) as made, converters.converted(source, chain) as another:
            assert made.path != another.path
            assert (made.path / "weights.bin").read_bytes() == (another.path / "weights.bin").read_bytes()
