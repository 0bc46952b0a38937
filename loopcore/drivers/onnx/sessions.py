"""One model, open in onnxruntime: as many sessions as its threads need."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from loopcore.drivers.onnx.external import check_external
from loopcore.errors import BackendError, ModelError, NotReadyError
from loopcore.types import Model

Array: TypeAlias = NDArray[Any]

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_GPUS = ("CUDAExecutionProvider", "ROCMExecutionProvider")
_CPU = "CPUExecutionProvider"
_TWIN_BYTES = 64_000_000
"""Up to this size, a model is opened twice: the second session has two threads, for a request that comes alone."""


class Signature(Struct, frozen=True, kw_only=True):
    """The graph's one input, as it is written down; what is not fixed is `None`."""

    name: str
    shape: tuple[int | None, ...]
    dtype: type[Any]
    outputs: tuple[tuple[int | None, ...], ...]
    metadata: dict[str, str]


class Sessions:
    """Runs the graph, from several threads at once.

    A request that is alone gets two threads within the graph; when several overlap, each gets one, which costs less in
    all. Nothing spins while it waits.
    """

    def __init__(self, model: Model, graph: Path, *, threads: int | None, providers: Sequence[str] | None) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        faults = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
        self._faults: tuple[type[Exception], ...] = (*faults, RuntimeError, ValueError, MemoryError)
        self._lock = Lock()
        self._running = 0
        try:
            data = graph.read_bytes()
        except OSError as exc:
            raise ModelError(f"{graph.name} cannot be read: {exc.strerror or exc}") from exc
        # From the bytes that were checked; only a graph with tensors elsewhere has to be opened by its path.
        source = str(graph) if check_external(data, model) else data

        available = onnxruntime.get_available_providers()
        chosen = list(providers) if providers is not None else [gpu for gpu in _GPUS if gpu in available]
        if missing := [name for name in chosen if name not in available]:
            raise ModelError(f"onnxruntime here has no {missing[0]} (it has {', '.join(available)})")
        self.on_gpu = any(name != _CPU for name in chosen)
        self.overlap = 2 if self.on_gpu else _cores()

        _share_memory()

        def open_session(count: int) -> Any:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = count
            options.inter_op_num_threads = 1
            options.log_severity_level = 4  # what goes wrong is raised
            options.enable_mem_pattern = False  # costs memory for each shape and thread, and saves no time here
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.add_session_config_entry("session.inter_op.allow_spinning", "0")
            options.add_session_config_entry("session.load_model_format", "ONNX")
            try:
                return onnxruntime.InferenceSession(source, options, providers=[*dict.fromkeys([*chosen, _CPU])])
            except self._faults as exc:
                if _has_no_room(exc):
                    raise NotReadyError(f"there is no room for {graph.name} now: {_first_line(exc)}") from exc
                raise ModelError(f"onnxruntime cannot open {graph.name}: {_first_line(exc)}") from exc

        self._narrow = open_session(threads or 1)
        is_twin = threads is None and not self.on_gpu and self.overlap > 1 and len(data) <= _TWIN_BYTES
        self._wide = open_session(2) if is_twin else self._narrow

    def signature(self) -> Signature:
        """What goes in and what comes out.

        Raises:
            ModelError: It is not one picture that goes in.
        """
        inputs = self._narrow.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _DTYPES:
            shapes = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
            raise ModelError(
                f"the graph takes {shapes or 'nothing'}; expected one input with four axes of float, float16 or uint8"
            )
        return Signature(
            name=inputs[0].name,
            shape=_fixed(inputs[0].shape),
            dtype=_DTYPES[inputs[0].type],
            outputs=tuple(_fixed(output.shape) for output in self._narrow.get_outputs()),
            metadata=dict(self._narrow.get_modelmeta().custom_metadata_map),
        )

    def run(self, name: str, tensor: Array) -> list[Array]:
        """All outputs of the graph for one input.

        Raises:
            BackendError: It failed.
        """
        with self._session() as session:
            try:
                outputs: list[Array] = session.run(None, {name: tensor})
            except self._faults as exc:
                if _has_no_room(exc):
                    raise NotReadyError(f"there is no room for the model's work now: {_first_line(exc)}") from exc
                raise BackendError(f"the model failed: {_first_line(exc)}") from exc
        return outputs

    @contextmanager
    def _session(self) -> Iterator[Any]:
        with self._lock:
            self._running += 1
            session = self._wide if self._running == 1 else self._narrow
        try:
            yield session
        finally:
            with self._lock:
                self._running -= 1


@cache
def _share_memory() -> None:
    """Let all sessions of the process draw on one arena that grows as asked; each its own cost 20 MB more."""
    import onnxruntime

    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    growth = {"max_mem": 0, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    onnxruntime.create_and_register_allocator(where, onnxruntime.OrtArenaCfg(growth))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fixed(shape: Sequence[object]) -> tuple[int | None, ...]:
    return tuple(side if isinstance(side, int) and side > 0 else None for side in shape)


def _has_no_room(exc: Exception) -> bool:
    """As onnxruntime 1.2x says it: its arenas, CUDA, and C++."""
    said = str(exc).lower()
    return isinstance(exc, MemoryError) or any(
        words in said for words in ("bad_alloc", "failed to allocate memory", "out of memory", "available memory of")
    )


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0][:500]
