"""The backend `onnx`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Self

import msgspec
import numpy as np
from anyio import to_thread
from msgspec import Meta

from loopcore.abc import Backend
from loopcore.drivers.onnx.decoders import DECODERS, Candidates
from loopcore.drivers.onnx.feeding import Feeder, fit_of
from loopcore.drivers.onnx.guess import HABITS, Graph, Shape, count_classes, guess, parse_names
from loopcore.drivers.onnx.sessions import Sessions, Signature
from loopcore.drivers.onnx.spec import DecoderName, Layout, Recipe, Spec, complete, read_spec
from loopcore.errors import BackendError, ModelError, NotReadyError, StorageError
from loopcore.files import inner_path, read_bounded
from loopcore.geometry import Fit, Indices, nms
from loopcore.options import Options
from loopcore.types import Box, Classification, Confidence, Detection, Frame, Model, Point, Prediction

_log = logging.getLogger(__name__)

_BATCH_CPU = 4
_BATCH_GPU = 16


class OnnxOptions(Options, frozen=True, kw_only=True):
    """What an operator may say; each overrides the model's own `spec`.

    Attributes:
        confidence: What is less likely is left out.
        iou: Of boxes of one label that overlap by more, only the best stays.
        labels: A text file with the class names, one a line, in the order of the model's channels.
        decoder: How to read the graph's answer: `yolox`, `fastestdet`, `ultraface`, `yolo`, `end2end`, `heatmap` or
            `classify`.
        threads: Threads within one run of the graph. By default two for a frame that comes alone and one when several
            overlap.
        providers: onnxruntime's execution providers, best first. By default a GPU where there is one, else the CPU.
    """

    confidence: Confidence | None = None
    iou: Confidence | None = None
    labels: Path | None = None
    decoder: DecoderName | None = None
    threads: Annotated[int, Meta(ge=1, le=256)] | None = None
    providers: tuple[str, ...] | None = None


class OnnxBackend(Backend):
    """Runs an ONNX graph in onnxruntime.

    How to feed it and to read its answer comes from the options, else from the `spec` of its package, else from the
    graph itself. Boxes may reach over the edge of the frame, as the model sees them.
    """

    Options = OnnxOptions
    formats = ("onnx", "onnx_int8", "onnx_fp16", "onnx_slim")
    options: OnnxOptions

    def __init__(self, options: OnnxOptions, model: Model) -> None:
        super().__init__(options, model)
        self._loaded: _Loaded | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        loaded = self._loaded = await to_thread.run_sync(_Loaded, self.model, self.options)
        self.max_batch = loaded.max_batch
        self.max_overlap = loaded.sessions.overlap
        recipe = loaded.recipe
        name, version = self.model.info.name, self.model.info.version
        size = f"{recipe.width}x{recipe.height}"
        _log.info("A model is open name=%s version=%s decoder=%s input=%s", name, version, recipe.decoder, size)
        try:
            yield self
        finally:
            self._loaded = None

    @property
    def recipe(self) -> Recipe:
        """How the model is fed and read; known once entered."""
        return self._open().recipe

    def decode_size(self, width: int, height: int) -> tuple[int, int]:
        fit = fit_of(self._open().recipe, width, height)
        return fit.width, fit.height

    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        return self._open().infer(frames)

    def _open(self) -> _Loaded:
        if self._loaded is None:
            raise BackendError("the model is not open")
        return self._loaded


class _Loaded:
    """A model in memory."""

    def __init__(self, model: Model, options: OnnxOptions) -> None:
        import cv2

        cv2.setNumThreads(1)  # frames are spread over threads already
        spec = _overrides(options).over(read_spec(model.info))
        self._info = model.info
        self.sessions = Sessions(model, _graph_file(model, spec), threads=options.threads, providers=options.providers)
        self._signature = self.sessions.signature()
        self.recipe = self._understand(spec, _labels(options, model, self._signature))
        self._decode = DECODERS[self.recipe.decoder]
        self._classes = np.asarray(self.recipe.classes, np.intp)
        # Some exporters leave the batch open going in and not coming out.
        fixed = 1 if any(shape[0] == 1 for shape in self._signature.outputs) else self._signature.shape[0]
        self.max_batch = fixed or (_BATCH_GPU if self.sessions.on_gpu else _BATCH_CPU)
        self._is_fixed = fixed is not None
        self._feeder = Feeder(self.recipe, self._signature.dtype, self.max_batch)

    def infer(self, frames: Sequence[Frame]) -> list[Prediction]:
        fits = [fit_of(self.recipe, frame.info.width, frame.info.height) for frame in frames]
        rows = self.max_batch if self._is_fixed else len(frames)
        with self._feeder.tensor(frames, fits, rows) as tensor:
            start = perf_counter()
            outputs = self.sessions.run(self._signature.name, tensor)
            infer_ms = (perf_counter() - start) * 1000 / len(frames)
        arrays = [np.asarray(output, np.float32) for output in outputs]
        if any(len(array) < len(frames) for array in arrays):
            raise BackendError(f"the model answered for fewer than {len(frames)} frames")
        return [
            Prediction(
                detections=self._read([array[index] for array in arrays], fit),
                model=self._info.name,
                model_version=self._info.version,
                infer_ms=infer_ms,
            )
            for index, fit in enumerate(fits)
        ]

    def _read(self, outputs: Sequence[Any], fit: Fit) -> tuple[Detection, ...]:
        recipe = self.recipe
        found = self._decode(outputs, recipe)
        if not len(found.scores):
            return ()
        if not np.isfinite(found.scores).all() or not np.isfinite(found.boxes).all():
            raise BackendError("the model's answer has values that are not finite")
        classes = self._classes[found.channels]
        order = _choose(found, classes, recipe)
        boxes = fit.inverse(found.boxes[order])
        scores = np.clip(found.scores[order], 0, 1)
        labels = (recipe.labels[index] for index in classes[order].tolist())
        together = zip(labels, scores.tolist(), boxes.tolist(), strict=True)
        return tuple(_detection(found.kind, label, score, box) for label, score, box in together)

    def _understand(self, spec: Spec, labels: tuple[str, ...]) -> Recipe:
        layout = spec.layout or _layout(self._signature)
        size = _input_size(self._signature, layout, spec)
        depth = self._signature.shape[1 if layout == "nchw" else 3] or (1 if spec.channels == "gray" else 3)
        if depth not in (1, 3):
            raise ModelError(f"the graph's input {self._signature.shape} has {depth} channels, expected 1 or 3")
        shapes = self._output_shapes(size, depth, layout)
        graph = Graph(size=size, outputs=shapes, labels=labels)
        decoder = spec.decoder or guess(graph)
        count = count_classes(decoder, graph)
        habits = HABITS[decoder]
        if depth == 1:
            habits = msgspec.structs.replace(habits, channels=None, mean=None, std=None)
        if self._signature.dtype is np.uint8:
            habits = msgspec.structs.replace(habits, scale=None, mean=None, std=None)
        recipe = complete(
            spec.over(habits), decoder=decoder, size=size, layout=layout, depth=depth, channels=count, labels=labels
        )
        if self._signature.dtype is np.uint8 and (set(recipe.factor) != {1.0} or any(recipe.shift)):
            raise ModelError(
                "the graph takes whole numbers (uint8), so scale, mean and std cannot be applied before it"
            )
        return recipe

    def _output_shapes(self, size: tuple[int, int], depth: int, layout: Layout) -> tuple[Shape, ...]:
        """The outputs without the axis of the batch; tried out on a blank frame where the graph does not say."""
        said = self._signature.outputs
        if not said or any(not shape or None in shape[1:] for shape in said):
            batch = self._signature.shape[0] or 1
            image = (depth, size[1], size[0]) if layout == "nchw" else (size[1], size[0], depth)
            try:
                outputs = self.sessions.run(self._signature.name, np.zeros((batch, *image), self._signature.dtype))
            except NotReadyError:
                raise
            except BackendError as exc:
                raise ModelError(f"the graph does not run with an input of {size[0]} × {size[1]}: {exc}") from exc
            said = tuple(output.shape for output in outputs)
        if any(len(shape) < 2 for shape in said):
            raise ModelError(f"the graph's outputs {said} have no axis for the frames")
        return tuple(tuple(side or 0 for side in shape[1:]) for shape in said)


def _overrides(options: OnnxOptions) -> Spec:
    return Spec(confidence=options.confidence, iou=options.iou, decoder=options.decoder)


def _graph_file(model: Model, spec: Spec) -> Path:
    names = [file.name for file in model.info.files if file.name.endswith(".onnx")]
    if spec.file is not None and spec.file not in names:
        raise ModelError(f"spec.file is {spec.file!r}, but the package's graphs are {', '.join(names) or 'none'}")
    if spec.file is None and len(names) != 1:
        raise ModelError(
            f"the package has {len(names)} .onnx files; name one in spec.file"
            if names
            else "the package has no .onnx file"
        )
    return inner_path(model.path, spec.file or names[0])


def _labels(options: OnnxOptions, model: Model, signature: Signature) -> tuple[str, ...]:
    if options.labels is None:
        return model.info.labels or parse_names(signature.metadata.get("names", ""))
    try:
        lines = read_bounded(options.labels, 1_000_000).decode().splitlines()
    except (StorageError, UnicodeDecodeError) as exc:
        raise ModelError(f"the labels cannot be read: {exc}") from exc
    return tuple(line.strip() for line in lines if line.strip())


def _layout(signature: Signature) -> Layout:
    depths = (1, 3)
    return "nhwc" if signature.shape[3] in depths and signature.shape[1] not in depths else "nchw"


def _input_size(signature: Signature, layout: Layout, spec: Spec) -> tuple[int, int]:
    height, width = signature.shape[2:] if layout == "nchw" else signature.shape[1:3]
    said = spec.input_size()
    if said is None and (sides := parse_names(signature.metadata.get("imgsz", ""))):
        # Ultralytics notes height, width.
        said = (int(sides[-1]), int(sides[0])) if all(side.isdecimal() for side in sides) else None
    if said is None and (width is None or height is None):
        raise ModelError("the graph takes pictures of any size; say in spec.size which to use")
    if said is not None and (width not in (None, said[0]) or height not in (None, said[1])):
        raise ModelError(f"spec.size is {said[0]} × {said[1]}, but the graph takes {width} × {height}")
    return said or (width or 0, height or 0)


def _choose(found: Candidates, classes: Indices, recipe: Recipe) -> Indices:
    """Which candidates stay, best first."""
    if found.kind == "box" and found.rivals != "none":
        order = nms(found.boxes, found.scores, recipe.iou, classes if found.rivals == "within" else None)
    else:
        order = np.argsort(-found.scores, kind="stable")
    return order[classes[order] >= 0][: recipe.max_detections]


def _detection(kind: str, label: str, score: float, box: list[float]) -> Detection:
    if kind == "classification":
        return Classification(label=label, confidence=score)
    if kind == "point":
        return Point(label=label, confidence=score, x=(box[0] + box[2]) / 2, y=(box[1] + box[3]) / 2)
    return Box(label=label, confidence=score, x=box[0], y=box[1], width=box[2] - box[0], height=box[3] - box[1])
