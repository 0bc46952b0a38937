"""What a platform promises, capability by capability; those that it lacks are skipped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import anyio
import pytest
from anyio import to_thread
from msgspec import structs

from loopcore.abc import DeploymentTarget, Driver, ModelRegistry, Platform
from loopcore.deploy.identity import contradicts, same_model
from loopcore.errors import ModelError, RejectedError
from loopcore.package import open_folder
from loopcore.testing.platform import make_model
from loopcore.testing.suites.driver import LIMIT_S, DriverSuite
from loopcore.types import Model, ModelInfo

CapabilityT = TypeVar("CapabilityT")

_UNKNOWN = ModelInfo(name="no-such-model", version="0.0.1", format="null", id="0" * 64)


class PlatformSuite(DriverSuite):
    """What a platform lists can be fetched, what is published is listed, and what is assigned is the target.

    ```python
    class TestAcmePlatform(PlatformSuite):
        driver = AcmePlatform

        @pytest.fixture
        def table(self, acme_server):
            return {"url": acme_server.url}
    ```

    The platform has a model already, or takes one.

    Attributes:
        publishes: Models can be published there.
        assigns: A target can be assigned there.
    """

    driver: ClassVar[type[Driver]]
    publishes: ClassVar[bool] = True
    assigns: ClassVar[bool] = True

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        """A model that the platform takes. Override it where it must be of a certain format."""
        return make_model(tmp_path / "published", version="9.1")

    async def test_a_capability_is_the_same_object_every_time(self, make: Callable[[], Platform]) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                for kind in (ModelRegistry, DeploymentTarget):
                    assert await platform.capability(kind) is await platform.capability(kind)

    async def test_what_no_platform_has_is_none(self, make: Callable[[], Platform]) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                assert await platform.capability(_Nothing) is None

    async def test_what_is_listed_can_be_fetched(
        self, make: Callable[[], Platform], model: Model, tmp_path: Path
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                registry = await self._stocked(platform, model)
                for index, info in enumerate((await registry.list())[:3]):
                    found = await _fetched(registry, info, tmp_path / str(index))
                    assert found.info.format == info.format
                    assert not contradicts(info, found.info)

    async def test_a_fetch_goes_on_from_the_parts_of_another(
        self, make: Callable[[], Platform], model: Model, tmp_path: Path
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                registry = await self._stocked(platform, model)
                info = (await registry.list())[0]
                whole = await _fetched(registry, info, tmp_path / "into")
                for file in whole.info.files:
                    (whole.path / file.name).write_bytes((whole.path / file.name).read_bytes()[: file.size // 2])
                again = await _fetched(registry, info, tmp_path / "into")
        assert again.info.files == whole.info.files

    async def test_a_model_that_is_not_there_is_a_model_error(
        self, make: Callable[[], Platform], model: Model, tmp_path: Path
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                registry = await self._stocked(platform, model)
                with pytest.raises(ModelError):
                    await _fetched(registry, _UNKNOWN, tmp_path / "unknown")

    async def test_a_format_that_is_not_there_is_a_model_error(
        self, make: Callable[[], Platform], model: Model, tmp_path: Path
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                registry = await self._stocked(platform, model)
                info = (await registry.list())[0]
                with pytest.raises(ModelError):
                    await _fetched(registry, structs.replace(info, format="no_such_format"), tmp_path / "other")

    async def test_what_is_published_is_listed_once_however_often_it_comes(
        self, make: Callable[[], Platform], model: Model
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                registry = await self._publishing(platform)
                first, again = [await registry.publish(model) for _ in range(2)]
                listed = [info for info in await registry.list() if same_model(first, info)]
        assert same_model(first, again)
        assert [info.format for info in listed] == [model.info.format]

    async def test_what_is_published_comes_back_as_it_was(
        self, make: Callable[[], Platform], model: Model, tmp_path: Path
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                registry = await self._publishing(platform)
                found = await _fetched(registry, await registry.publish(model), tmp_path / "back")
        assert {file.name: file.sha256 for file in model.info.files}.items() <= {
            file.name: file.sha256 for file in found.info.files
        }.items()
        assert found.info.labels == model.info.labels

    async def test_what_is_assigned_is_the_target(self, make: Callable[[], Platform], model: Model) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                target = await self._assigning(platform)
                wanted = await (await self._publishing(platform)).publish(model)
                await target.assign(wanted)
                now = await target.target()
        assert now is not None
        assert same_model(wanted, now)

    async def test_what_is_not_there_cannot_be_assigned(self, make: Callable[[], Platform]) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                with pytest.raises(RejectedError):
                    await (await self._assigning(platform)).assign(_UNKNOWN)

    async def test_a_target_is_a_model_that_can_be_fetched_or_none(
        self, make: Callable[[], Platform], tmp_path: Path
    ) -> None:
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                wanted = await (await _having(platform, DeploymentTarget)).target()
                if wanted is not None:
                    registry = await _having(platform, ModelRegistry)
                    listed = [info for info in await registry.list() if same_model(wanted, info)]
                    await _fetched(registry, listed[0], tmp_path / "target")

    async def test_a_report_is_taken(self, make: Callable[[], Platform]) -> None:
        status = {"node": "suite", "ready": False, "uptime_s": 1.0, "model": None, "model_choice": "follow"}
        with anyio.fail_after(LIMIT_S):
            async with make() as platform:
                target = await _having(platform, DeploymentTarget)
                for _ in range(2):
                    await target.report(status)

    async def _stocked(self, platform: Platform, model: Model) -> ModelRegistry:
        """The registry, with at least one model."""
        registry = await _having(platform, ModelRegistry)
        if self.publishes:
            await registry.publish(model)
        return registry

    async def _publishing(self, platform: Platform) -> ModelRegistry:
        if not self.publishes:
            pytest.skip("nothing can be published there")
        return await _having(platform, ModelRegistry)

    async def _assigning(self, platform: Platform) -> DeploymentTarget:
        if not self.assigns:
            pytest.skip("nothing can be assigned there")
        return await _having(platform, DeploymentTarget)


class _Nothing:
    pass


async def _having(platform: Platform, kind: type[CapabilityT]) -> CapabilityT:
    found = await platform.capability(kind)
    if found is None:
        pytest.skip(f"the platform has no {kind.__name__}")
    return found


async def _fetched(registry: ModelRegistry, info: ModelInfo, into: Path) -> Model:
    await to_thread.run_sync(partial(into.mkdir, exist_ok=True))
    await registry.fetch(info, info.format, into)
    return open_folder(into)
