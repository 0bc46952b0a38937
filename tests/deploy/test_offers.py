"""What a platform says of its models is bounded before anything remembers or shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from loopcore.deploy.offers import offers, publish, wanted_of
from loopcore.errors import ModelError
from loopcore.testing import make_model
from loopcore.testing.platform import MemoryDeployment, MemoryModels
from loopcore.types import Model, ModelInfo

pytestmark = pytest.mark.anyio

SOUND = ModelInfo(name="gate", version="1", format="onnx")
LONG = "x" * 10_000_000
MONSTERS = [
    *(replace(SOUND, **{field: LONG}) for field in ("name", "version", "format", "id")),
    replace(SOUND, labels=(LONG,)),
    replace(SOUND, spec={"it": LONG}),
    replace(SOUND, extra={"acme": {"id": LONG}}),
]


@pytest.mark.parametrize("monster", MONSTERS)
async def test_a_target_that_cannot_be_right_is_an_error_of_few_words(monster: ModelInfo) -> None:
    deployment = MemoryDeployment(MemoryModels())
    deployment.wanted = monster
    with pytest.raises(ModelError, match="'acme' speaks of a model that cannot be right") as caught:
        await wanted_of("acme", deployment)
    assert len(str(caught.value)) < 300
    assert caught.value.rule is None


class Listing(MemoryModels):
    async def list(self) -> list[ModelInfo]:
        return [*MONSTERS, SOUND]


async def test_models_that_cannot_be_right_are_left_out_of_the_list() -> None:
    assert await offers("acme", Listing()) == [SOUND]


class Boasting(MemoryModels):
    async def publish(self, package: Model, job: str | None = None) -> ModelInfo:
        return MONSTERS[0]


async def test_a_name_that_a_platform_gives_is_bounded_too(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its name has 10000000 characters, more than 300"):
        await publish("acme", Boasting(), make_model(tmp_path / "model"))
