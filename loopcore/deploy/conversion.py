"""From one format to another: plan the cheapest chain of converters, and run it step by step in child processes."""

from __future__ import annotations

import heapq
import logging
import shutil
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex

import anyio
from anyio import CancelScope, Lock, to_thread
from msgspec import Struct
from msgspec.structs import replace

from loopcore.abc import Converter, Report
from loopcore.deploy.identity import made_from
from loopcore.errors import ConversionError, LoopcoreError, ModelError, PluginError, StorageError
from loopcore.package import open_folder, write_package
from loopcore.processes import call_driver
from loopcore.registry import Registry
from loopcore.types import Model, ModelInfo

_log = logging.getLogger(__name__)

RULE = "conversion"
"""The name under which a conversion that fails refuses a model."""

STEP_S = 4 * 3600.0
"""How long one step may take: building an engine for a large model takes an hour on a small device."""

LEAST_COST = 1.0


class Step(Struct, frozen=True):
    """One converter of a chain; `version` is that of its distribution, if it has one."""

    name: str
    driver: type[Converter]
    version: str = ""


class Chain(Struct, frozen=True):
    """Converters, one after the other."""

    steps: tuple[Step, ...]

    @property
    def source(self) -> str:
        """The format that it begins with."""
        return self.steps[0].driver.source

    @property
    def target(self) -> str:
        """The format that it ends with."""
        return self.steps[-1].driver.target

    def __str__(self) -> str:
        return ", ".join(f"{step.name} {step.version}".strip() for step in self.steps)


class Converters:
    """The converters that are installed.

    Args:
        registry: Knows them.
        folder: Where conversions work, one at a time; nobody else uses it.
    """

    def __init__(self, registry: Registry, folder: Path) -> None:
        self._registry = registry
        self._folder = folder
        self._lock = Lock()
        self._is_swept = False

    def plan(self, sources: Collection[str], targets: Collection[str]) -> Chain:
        """The cheapest chain that leads from one of the formats to one of the others. Blocking.

        No converter is imported whose cost cannot matter: a cost is `LEAST_COST` until it is known, and the cheapest
        chain is looked for again until all of its costs are.

        Raises:
            ConversionError: There is none.
        """
        edges = _edges(self._registry.names("converter"))
        known: dict[str, type[Converter]] = {}
        while (names := _cheapest(edges, sources, targets, known)) is not None:
            unknown = [name for name in names if name not in known]
            if not unknown:
                return Chain(tuple(self._step(name, known[name]) for name in names))
            for name in unknown:
                if found := self._load(name):
                    known[name] = found
                else:
                    del edges[name]
        installed = ", ".join(self._registry.names("converter")) or "none"
        ways = f"from {' or '.join(map(repr, sorted(sources)))} to {' or '.join(map(repr, sorted(targets)))}"
        raise ConversionError(f"no installed converters lead {ways} (installed: {installed})")

    @asynccontextmanager
    async def converted(
        self, source: Model, chain: Chain, report: Callable[[float, str], None] | None = None
    ) -> AsyncGenerator[Model]:
        """The model in the format that a chain ends with, in a folder that is gone when the block ends.

        Its name and version are those of the source, and its `extra` says what it was made from.

        Args:
            source: A package, checked.
            chain: As planned.
            report: Hears how far it is, 0 to 1, and what is being done.

        Raises:
            ConversionError: A step failed; the message says which and why.
            StorageError: The disk refuses.
        """
        folder = self._folder / token_hex(8)
        try:
            async with self._lock:
                await to_thread.run_sync(self._begin, folder)
                model = await self._run(source, chain, folder, report or _nobody)
            yield model  # what happens to it, such as an upload, holds up no other conversion
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(shutil.rmtree, folder, True)

    async def _run(self, source: Model, chain: Chain, folder: Path, report: Callable[[float, str], None]) -> Model:
        model = source
        for index, step in enumerate(chain.steps):
            into, scratch = folder / f"{index}-{step.driver.target}", folder / f"{index}-scratch"
            await to_thread.run_sync(_make, into, scratch)
            report(index / len(chain.steps), step.name)
            try:
                with anyio.fail_after(STEP_S):
                    await _call(step, model.path, into, scratch, _part(report, index, len(chain.steps)))
                model = await to_thread.run_sync(_taken, into, step, source.info)
            except StorageError:
                raise
            except (LoopcoreError, TimeoutError) as exc:
                why = str(exc) or f"it has taken longer than {STEP_S / 3600:g} hours"
                what = f"{source.info.name} {source.info.version} cannot be converted"
                raise ConversionError(f"{what}: the converter {step.name!r} failed: {why}", rule=RULE) from exc
        return model

    def _begin(self, folder: Path) -> None:
        if not self._is_swept:
            shutil.rmtree(self._folder, ignore_errors=True)  # what a crash has left
            self._is_swept = True
        _make(self._folder, folder)

    def _step(self, name: str, driver: type[Converter]) -> Step:
        return Step(name, driver, self._registry.version("converter", name))

    def _load(self, name: str) -> type[Converter] | None:
        try:
            found = self._registry.driver("converter", name)
        except PluginError as exc:
            _log.warning("A converter cannot be used name=%s error=%s", name, exc)
            return None
        if not issubclass(found, Converter) or found.subject != "model":
            return None
        if f"{found.source}-to-{found.target}" != name:
            _log.warning("A converter has another edge than its name says name=%s", name)
            return None
        return found


def leads(names: Iterable[str], source: str, target: str) -> bool:
    """Whether converters of these names lead from one format to the other."""
    return _cheapest(_edges(names), [source], [target], {}) is not None


def _edges(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    found = {name: name.split("-to-") for name in names}
    return {name: (ends[0], ends[1]) for name, ends in found.items() if len(ends) == 2}


def _cheapest(
    edges: Mapping[str, tuple[str, str]],
    sources: Collection[str],
    targets: Collection[str],
    known: Mapping[str, type[Converter]],
) -> Sequence[str] | None:
    """The names along the cheapest way (Dijkstra); of several, the one with the fewest steps, then by name."""
    waiting: list[tuple[float, int, tuple[str, ...], str]] = [(0.0, 0, (), source) for source in sources]
    heapq.heapify(waiting)
    seen: set[str] = set()
    while waiting:
        cost, length, names, place = heapq.heappop(waiting)
        if place in targets and names:
            return names
        if place in seen:
            continue
        seen.add(place)
        for name, (source, target) in edges.items():
            if source == place:
                more = max(LEAST_COST, known[name].cost) if name in known else LEAST_COST
                heapq.heappush(waiting, (cost + more, length + 1, (*names, name), target))
    return None


async def _call(step: Step, source: Path, into: Path, scratch: Path, report: Report) -> None:
    await call_driver(
        step.driver,
        step.driver.Options(),
        "convert",
        {"source": source, "into": into, "calibration": None},
        what=f"the converter {step.name!r}",
        cwd=scratch,
        report=report,
    )


def _taken(folder: Path, step: Step, source: ModelInfo) -> Model:
    """What a step has written, checked; it keeps the model's name and version, and says what it comes from."""
    made = open_folder(folder).info
    if made.format != step.driver.target:
        raise ModelError(f"it wrote a package in the format {made.format!r}, not {step.driver.target!r}")
    named = replace(made, name=source.name, version=source.version, labels=made.labels or source.labels)
    return write_package(folder, made_from(named, [source]))


def _part(report: Callable[[float, str], None], index: int, count: int) -> Report:
    def told(progress: float, message: str = "", **_: object) -> None:
        report((index + min(max(progress, 0.0), 1.0)) / count, message)

    return told


def _nobody(progress: float, message: str) -> None:
    del progress, message


def _make(*folders: Path) -> None:
    try:
        for folder in folders:
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"cannot make a folder for conversions: {exc}") from exc
