"""From a platform into the store: in the best format that can be had, once, and never half."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from loopcore.abc import Converter
from loopcore.deploy.bringing import Bringer, Doing
from loopcore.deploy.conversion import Converters
from loopcore.deploy.identity import same_model
from loopcore.deploy.modelstore import ModelStore
from loopcore.deploy.notes import Notes
from loopcore.errors import ConversionError, IntegrityError, ModelError, RetryableError
from loopcore.package import write_package
from loopcore.registry import Registry
from loopcore.testing import make_model
from loopcore.testing.platform import MemoryModels
from loopcore.types import Model, ModelInfo

from .converters import NullToBest, PtToRaw, RawToNull, Refusing

pytestmark = pytest.mark.anyio

ACME = {"acme": {"id": "6f0e17aa-90"}}


class Bench:
    """A bringer, the platform's models, and the store."""

    def __init__(self, folder: Path, *converters: type[Converter], models: MemoryModels | None = None) -> None:
        self.folder = folder
        self.models = models or MemoryModels()
        self.store = ModelStore(folder / "models")
        self.heard: list[Doing] = []
        self.refused: list[str] = []
        named = {f"{one.source}-to-{one.target}": one for one in converters}
        notes = Notes(folder / "notes.json")
        notes.load()
        chains = Converters(Registry({"converter": named}, installed=False), folder / "converting")
        self.bringer = Bringer("acme", self.models, self.store, chains, notes, self._refuse)

    async def _refuse(self, model: ModelInfo, why: str) -> None:
        self.refused.append(f"{model.version}: {why}")

    async def publish(self, **fields: object) -> ModelInfo:
        count = len(await self.models.list())
        return await self.models.publish(make_model(self.folder / f"p{count}", **fields))  # type: ignore[arg-type]

    async def bring(self, wanted: ModelInfo, *formats: str) -> Model:
        return await self.bringer.bring(wanted, formats, self.heard.append)

    @property
    def left(self) -> list[str]:
        """Folders that nobody needs any more."""
        return [path.name for path in self.store.folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_a_model_comes_whole_and_only_once(bench: Bench) -> None:
    wanted = await bench.publish()
    model = await bench.bring(wanted, "null")
    assert model.info.files == wanted.files
    assert model.path.parent == bench.store.folder
    assert await bench.bring(wanted, "null") == model
    assert (bench.models.fetched, bench.heard, bench.left) == ([("1", "null")], ["fetching"], [])


async def test_the_first_format_that_is_wanted_and_there_is_fetched(bench: Bench) -> None:
    for name in ("a", "b"):
        wanted = await bench.publish(format=name, extra=ACME, content=name.encode())
    model = await bench.bring(replace(wanted, format="", id=""), "c", "b", "a")
    assert model.info.format == "b"


async def test_what_the_platform_says_of_a_model_goes_along(bench: Bench) -> None:
    wanted = await bench.publish()
    model = await bench.bring(replace(wanted, extra=ACME), "null")
    assert model.info.extra["acme"] == {"id": "6f0e17aa-90"}
    assert same_model(model.info, ModelInfo(name="?", version="?", format="", extra=ACME))


async def test_a_model_trained_anew_under_the_same_version_is_fetched(bench: Bench) -> None:
    first = await bench.bring(await bench.publish(content=b"old"), "null")
    second = await bench.bring(await bench.publish(content=b"new"), "null")
    assert first.path != second.path
    assert [version for version, _ in bench.models.fetched] == ["1", "1"]


async def test_a_damaged_model_is_fetched_again(bench: Bench) -> None:
    wanted = await bench.publish()
    model = await bench.bring(wanted, "null")
    (model.path / "weights.bin").write_bytes(b"rot")
    assert (await bench.bring(wanted, "null")).info == model.info
    assert len(bench.models.fetched) == 2


class Torn(MemoryModels):
    """Breaks off after a part, and goes on behind it."""

    attempts = 0
    seen: str | None = None

    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
        self.attempts += 1
        if self.attempts == 1:
            (into / "weights.bin.part").write_text("half")
            raise RetryableError("reset")
        self.seen = (into / "weights.bin.part").read_text()
        await super().fetch(info, format, into)


async def test_a_download_that_breaks_off_goes_on_with_the_next_attempt_even_after_a_restart(tmp_path: Path) -> None:
    models = Torn()
    bench = Bench(tmp_path, models=models)
    wanted = await bench.publish()
    with pytest.raises(RetryableError):
        await bench.bring(wanted, "null")
    again = Bench(tmp_path, models=models)
    await again.bring(wanted, "null")
    assert models.seen == "half"
    assert again.left == []


class Wrong(MemoryModels):
    """Sends another model than was asked for."""

    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
        (into / "weights.bin").write_bytes(b"other")
        write_package(into, replace(info, extra={}))


class Damaged(MemoryModels):
    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
        await super().fetch(info, format, into)
        (into / "weights.bin").write_bytes(b"rot")


class Disguised(MemoryModels):
    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:
        await super().fetch(info, format, into)
        write_package(into, replace(info, format="pickle"))


@pytest.mark.parametrize(
    ("models", "error", "why"),
    [
        (Wrong, IntegrityError, "sent another model"),
        (Damaged, IntegrityError, "another size"),
        (Disguised, ModelError, "'pickle' in place of 'null'"),
    ],
)
async def test_what_is_not_what_was_promised_never_reaches_the_store(
    tmp_path: Path, models: type[MemoryModels], error: type[Exception], why: str
) -> None:
    bench = Bench(tmp_path, models=models())
    wanted = await bench.publish()
    with pytest.raises(error, match=why):
        await bench.bring(wanted, "null")
    assert bench.store.list() == ()
    assert bench.left == []


async def test_a_model_that_the_platform_does_not_list_is_an_error(bench: Bench) -> None:
    with pytest.raises(ModelError, match="'acme' does not list gate 9"):
        await bench.bring(ModelInfo(name="gate", version="9", format=""), "null")


async def test_what_is_there_in_another_format_is_converted_and_known_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PtToRaw, RawToNull)
    wanted = await bench.publish(format="pt", version="7")
    model = await bench.bring(wanted, "null")
    assert (model.info.name, model.info.version, model.info.format) == ("made", "7", "null")
    assert await bench.bring(wanted, "null") == model
    assert (bench.models.fetched, bench.heard, bench.left) == ([("7", "pt")], ["fetching", "converting"], [])


async def test_a_format_that_is_there_goes_before_a_conversion(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NullToBest)
    await bench.publish(extra=ACME)
    wanted = await bench.publish(format="other", content=b"o", extra=ACME)
    assert (await bench.bring(wanted, "best", "other")).info.format == "other"
    assert bench.heard == ["fetching"]


async def test_a_conversion_that_fails_is_not_tried_again_even_after_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Refusing)
    wanted = await bench.publish(format="raw")
    for attempt in range(3):
        each = bench if attempt < 2 else Bench(tmp_path, Refusing, models=bench.models)
        with pytest.raises(ConversionError, match="the head is not understood") as caught:
            await each.bring(wanted, "null")
        assert caught.value.rule == "conversion"
        assert each.left == []
    assert len(bench.models.fetched) == 1
    assert [why.partition(":")[0] for why in bench.refused] == ["1"]


async def test_a_model_that_could_not_be_converted_is_fetched_when_its_format_comes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Refusing)
    wanted = await bench.publish(format="raw", extra=ACME)
    with pytest.raises(ConversionError):
        await bench.bring(wanted, "null")
    await bench.publish(format="null", content=b"by others", extra=ACME)
    assert (await bench.bring(wanted, "null")).info.format == "null"


async def test_without_a_way_to_convert_the_error_says_so_and_refuses_nothing(bench: Bench) -> None:
    wanted = await bench.publish(format="raw")
    with pytest.raises(ConversionError, match="from 'raw' to 'null'") as caught:
        await bench.bring(wanted, "null")
    assert caught.value.rule is None


async def test_a_version_means_the_platform_s_model(bench: Bench) -> None:
    one = await bench.publish(version="1")
    two = await bench.publish(version="2", content=b"2", extra=ACME)
    assert await bench.bringer.meant("1") == one
    assert await bench.bringer.meant("6f0e17aa-90") == await bench.bringer.meant(two.id[:10]) == two
    with pytest.raises(ModelError, match=r"has no model '3' \(there: made 2, made 1\)"):
        await bench.bringer.meant("3")


async def test_a_version_that_two_models_have_is_no_choice(bench: Bench) -> None:
    await bench.publish(content=b"old")
    await bench.publish(content=b"new")
    with pytest.raises(ModelError, match="say the id"):
        await bench.bringer.meant("1")


async def test_a_model_in_two_formats_is_one_choice(bench: Bench) -> None:
    for name in ("a", "b"):
        await bench.publish(format=name, content=name.encode(), extra=ACME)
    assert (await bench.bringer.meant("1")).version == "1"


async def test_models_that_never_serve_do_not_pile_up(bench: Bench) -> None:
    for number in range(6):
        await bench.bring(await bench.publish(version=str(number), content=str(number).encode()), "null")
    assert [model.info.version for model in bench.store.list()] == ["5", "4", "3"]


async def test_what_a_crash_has_left_of_a_model_that_is_here_is_cleared_away(bench: Bench) -> None:
    wanted = await bench.publish()
    model = await bench.bring(wanted, "null")
    (bench.store.arrival("0" * 32) / "weights.bin").write_bytes(b"weights")
    assert await bench.bring(wanted, "null") == model
    assert bench.left == []
