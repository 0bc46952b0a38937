"""Call hooks: each implementation by itself, guarded, with a limit. The only module with a pluggy manager.

pluggy knows who implements what; its own way to call ends at the first implementation that raises, so it is not used.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import anyio
import pluggy
from anyio import TASK_STATUS_IGNORED
from anyio.lowlevel import checkpoint
from msgspec import Struct

from loopcore import hookspecs
from loopcore.errors import PluginError
from loopcore.hookspecs import NAMESPACE, Mount

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from loopcore.abc import Driver, Service
    from loopcore.types import RGB, FrameInfo, Model, ModelInfo, Prediction, SampleInfo

logger = logging.getLogger(__name__)

KEPT = "loopcore_sample_kept"
MADE = "loopcore_prediction_made"
RESERVED = ("/health", "/metrics", "/predict", "/ready", "/status")
"""The core's own paths; no plugin may answer under them."""


class _Implementation(Struct):
    plugin: str
    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    failures: int = 0
    failing: bool = False

    def pick(self, arguments: Mapping[str, object]) -> dict[str, object]:
        return {name: arguments[name] for name in self.arguments}

    def failed(self, problem: BaseException) -> None:
        """The first failure in a row is an error for a person; those that follow would only fill the log."""
        level = logging.DEBUG if self.failing else logging.ERROR
        what = "took too long" if isinstance(problem, TimeoutError) else "raised an error"
        logger.log(level, "A hook %s: plugin=%s hook=%s", what, self.plugin, self.hook, exc_info=problem)
        self.failures += 1
        self.failing = True


class Hooks:
    """The hooks of all enabled plugins.

    What happens for every frame or sample (`prediction_made`, `sample_kept`) waits in a bounded queue for `run`, so
    that no plugin delays an answer; beyond the bound the oldest is left out and counted. Other events are awaited.

    Args:
        plugins: Modules (or objects) that hold implementations, by the name of the plugin.
        limit_s: How long one implementation of an event may take.
        queue: How many events of one kind may wait.

    Raises:
        PluginError: An implementation does not match its spec, or there is no such hook.

    Attributes:
        left_out: How many events no implementation has seen because their queue was full.
    """

    def __init__(
        self, plugins: Mapping[str, object] | None = None, *, limit_s: float = 10.0, queue: int = 1000
    ) -> None:
        self.left_out = 0
        self._limit_s = limit_s
        self._size = queue
        self._wake = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()
        self._implementations = _implementations(plugins or {})
        self._waiting: dict[str, deque[dict[str, object]]] = {
            hook: deque() for hook in (KEPT, MADE) if hook in self._implementations
        }

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Hand what waits to the implementations, until cancelled."""
        task_status.started()
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            while hook := next((hook for hook, waiting in self._waiting.items() if waiting), None):
                await checkpoint()  # an implementation need not wait for anything
                await self._tell(hook, **self._waiting[hook].popleft())
            self._idle.set()

    async def drained(self) -> None:
        """Return when `run` has handed over all that waits."""
        await self._idle.wait()

    def prediction_made(self, info: FrameInfo, prediction: Prediction) -> None:
        """Queue the event; never waits. In the event loop's thread."""
        if self._waiting:
            self._queue(MADE, info=info, prediction=prediction)

    def sample_kept(self, sample: SampleInfo) -> None:
        """Queue the event; never waits. In the event loop's thread."""
        if self._waiting:
            self._queue(KEPT, sample=sample)

    def mounts(self, service: Service, drivers: Sequence[Driver] = ()) -> list[Mount]:
        """The applications of all plugins, those with the longest path first.

        Raises:
            PluginError: Two want one path, a path is the core's, or is none.
        """
        taken: dict[str, str] = {}
        mounts: list[Mount] = []
        for plugin, answer in self._ask("loopcore_mounts", service=service, drivers=drivers):
            for mount in answer if isinstance(answer, Sequence) else [answer]:
                mounts.append(_check_mount(plugin, mount, taken))
                taken[mount.path] = f"the plugin {plugin!r}"
        return sorted(mounts, key=lambda mount: -len(mount.path))

    def decode_frame(self, data: bytes, media: str) -> RGB | None:
        """The first plugin's picture, or `None` if no plugin reads this. Blocking: call it in a worker thread."""
        for plugin, answer in self._ask("loopcore_decode_frame", data=data, media=media):
            if getattr(answer, "dtype", None) == "uint8" and len(answer.shape) == 3 and answer.shape[2] == 3:
                picture: RGB = answer
                return picture
            logger.error("A picture of a plugin is not uint8 (height, width, 3), so it is left out: plugin=%s", plugin)
        return None

    async def node_started(self, name: str, service: Service) -> None:
        await self._tell("loopcore_node_started", name=name, service=service)

    async def sample_delivered(self, sample: SampleInfo, sink: str, remote_id: str | None) -> None:
        await self._tell("loopcore_sample_delivered", sample=sample, sink=sink, remote_id=remote_id)

    async def sample_rejected(self, sample: SampleInfo, sink: str, why: str) -> None:
        await self._tell("loopcore_sample_rejected", sample=sample, sink=sink, why=why)

    async def model_activated(self, model: Model, previous: Model | None) -> None:
        await self._tell("loopcore_model_activated", model=model, previous=previous)

    async def model_refused(self, model: ModelInfo, why: str) -> None:
        await self._tell("loopcore_model_refused", model=model, why=why)

    async def job_progressed(self, job: str, state: str, progress: float, metrics: dict[str, float]) -> None:
        await self._tell("loopcore_job_progressed", job=job, state=state, progress=progress, metrics=metrics)

    def status(self) -> dict[str, Any]:
        """Plain data for `/status`."""
        failures = {f"{one.plugin}:{one.hook}": one.failures for all_ in self._implementations.values() for one in all_}
        return {
            "waiting": sum(map(len, self._waiting.values())),
            "left_out": self.left_out,
            "failures": {name: count for name, count in failures.items() if count},
        }

    def _queue(self, hook: str, **arguments: object) -> None:
        waiting = self._waiting.get(hook)
        if waiting is None:
            return
        if len(waiting) >= self._size:
            waiting.popleft()
            self.left_out += 1
        waiting.append(arguments)
        self._wake.set()
        if self._idle.is_set():
            self._idle = anyio.Event()

    def _ask(self, hook: str, **arguments: object) -> Iterator[tuple[str, Any]]:
        """The answers of all implementations of a contribution, without `None`."""
        for one in self._implementations.get(hook, ()):
            try:
                answer = one.function(**one.pick(arguments))
            except (Exception, SystemExit) as exc:  # noqa: BLE001 - the hook guard: it must not hide another's answer
                one.failed(exc)
                continue
            one.failing = False
            if answer is not None:
                yield one.plugin, answer

    async def _tell(self, hook: str, **arguments: object) -> None:
        implementations = self._implementations.get(hook, ())
        if not implementations:
            return
        if len(implementations) == 1:
            await self._guarded(implementations[0], arguments)
            return
        async with anyio.create_task_group() as tasks:
            for one in implementations:
                tasks.start_soon(self._guarded, one, arguments, name=f"{one.plugin}:{hook}")

    async def _guarded(self, one: _Implementation, arguments: Mapping[str, object]) -> None:
        try:
            with anyio.fail_after(self._limit_s):
                await one.function(**one.pick(arguments))
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - the hook guard: an event cannot change what has happened
            one.failed(exc)
        else:
            one.failing = False


def _implementations(plugins: Mapping[str, object]) -> dict[str, list[_Implementation]]:
    """Check all implementations and sort them by hook, in the order in which they are called."""
    manager = pluggy.PluginManager(NAMESPACE)
    manager.add_hookspecs(hookspecs)
    specs = {name: function for name, function in vars(hookspecs).items() if hasattr(function, f"{NAMESPACE}_spec")}
    for name, plugin in plugins.items():
        for attribute in dir(plugin):
            options = manager.parse_hookimpl_opts(plugin, attribute)
            if options is not None:
                _check(name, options.get("specname") or attribute, getattr(plugin, attribute), dict(options), specs)
            elif attribute in specs and inspect.isroutine(getattr(plugin, attribute)):
                raise PluginError(f"{attribute} of the plugin {name!r} is not marked with @hookimpl", plugin=name)
        try:
            manager.register(plugin, name)
        except ValueError as exc:
            raise PluginError(f"the plugin {name!r} is registered twice", plugin=name) from exc
    found: dict[str, list[_Implementation]] = {}
    for hook in specs:
        for one in reversed(getattr(manager.hook, hook).get_hookimpls()):
            arguments = tuple(inspect.signature(one.function).parameters)
            found.setdefault(hook, []).append(_Implementation(one.plugin_name, hook, one.function, arguments))
    return found


def _check(
    plugin: str,
    hook: str,
    function: Callable[..., Any],
    options: Mapping[str, Any],
    specs: Mapping[str, Callable[..., Any]],
) -> None:
    def wrong(message: str) -> PluginError:
        return PluginError(f"{hook} of the plugin {plugin!r} {message}", plugin=plugin)

    if hook not in specs:
        near = next(iter(get_close_matches(hook, specs, 1)), None)
        raise wrong(f"is no hook{f'; did you mean {near!r}?' if near else ''} (there are: {', '.join(sorted(specs))})")
    if options.get("wrapper") or options.get("hookwrapper"):
        raise wrong("is a wrapper, and wrappers are not supported")
    event = inspect.iscoroutinefunction(specs[hook])
    if event != inspect.iscoroutinefunction(function):
        raise wrong("must be 'async def': it is an event" if event else "must be 'def': it is a contribution")
    if inspect.isgeneratorfunction(function):
        raise wrong("must return its answer, not yield it")
    known = tuple(inspect.signature(specs[hook]).parameters)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise wrong(f"must take its arguments by name ({', '.join(known)}), not {parameter.name!r} as it does")
        if parameter.name not in known:
            near = next(iter(get_close_matches(parameter.name, known, 1)), None)
            hint = f"; did you mean {near!r}?" if near else ""
            raise wrong(f"has the argument {parameter.name!r}{hint} (there are: {', '.join(known) or 'none'})")


def _check_mount(plugin: str, mount: object, taken: Mapping[str, str]) -> Mount:
    if not isinstance(mount, Mount):
        found = type(mount).__name__
        raise PluginError(f"loopcore_mounts of the plugin {plugin!r} answers {found}, expected Mount", plugin=plugin)
    path = mount.path
    if not path.startswith("/") or (path.endswith("/") and path != "/") or "//" in path:
        raise PluginError(f"the plugin {plugin!r} mounts {path!r}, expected a path such as '/detect'", plugin=plugin)
    core = next((own for own in RESERVED if path == own or path.startswith(f"{own}/")), None)
    if owner := "the core" if core else taken.get(path):
        raise PluginError(f"the plugin {plugin!r} mounts {path!r}, which belongs to {owner}", plugin=plugin)
    return mount
