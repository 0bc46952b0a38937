"""From a picture to the model's input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from loopcore.drivers.onnx.spec import Recipe
from loopcore.geometry import Fit, letterbox, resample, resize, squash
from loopcore.types import RGB, Frame

Array: TypeAlias = NDArray[Any]


def fit_of(recipe: Recipe, width: int, height: int) -> Fit:
    """How a picture of this original size lies in the input, however small it was decoded."""
    target = (recipe.width, recipe.height)
    if recipe.letterbox:
        return letterbox((width, height), target, recipe.placement)
    return squash((width, height), target)


class Feeder:
    """Fills input tensors. Its buffers are kept from call to call: what is freed in a worker thread goes back to the
    kernel, and is faulted in again the next time.
    """

    def __init__(self, recipe: Recipe, dtype: type[Any], batch: int) -> None:
        self._recipe = recipe
        self._dtype = dtype
        self._batch = batch
        self._free: list[_Buffers] = []

    @contextmanager
    def tensor(self, frames: Sequence[Frame], fits: Sequence[Fit], rows: int) -> Iterator[Array]:
        """The input for these frames with `rows` rows, the last ones blank if there are fewer frames."""
        try:
            buffers = self._free.pop()
        except IndexError:
            buffers = _Buffers(self._recipe, self._dtype, self._batch)
        try:
            for index, (frame, fit) in enumerate(zip(frames, fits, strict=True)):
                buffers.fill(index, frame.pixels, fit)
            yield buffers.tensor[:rows]
        finally:
            self._free.append(buffers)


class _Buffers:
    def __init__(self, recipe: Recipe, dtype: type[Any], batch: int) -> None:
        depth = len(recipe.factor)
        self._recipe = recipe
        self._canvas = np.full((recipe.height, recipe.width, 3), recipe.pad, np.uint8)
        self._margins: Fit | None = None
        self._planes = [np.empty((recipe.height, recipe.width), np.uint8) for _ in range(3)]
        is_planar = recipe.layout == "nchw"
        shape = (depth, recipe.height, recipe.width) if is_planar else (recipe.height, recipe.width, depth)
        self.tensor = np.zeros((batch, *shape), dtype)
        # The same memory with the channels in front, whatever the layout; a plane of it may then be strided.
        self._channels = self.tensor if is_planar else self.tensor.transpose(0, 3, 1, 2)

    def fill(self, index: int, pixels: RGB, fit: Fit) -> None:
        import cv2

        recipe = self._recipe
        placed = self._place(pixels, fit)
        target = self._channels[index]
        if recipe.channels == "gray":
            planes = self._planes[:1]
            cv2.cvtColor(placed, cv2.COLOR_RGB2GRAY, dst=planes[0])
        else:
            # By planes: numpy takes twice as long to convert every third byte, and far longer where they are reversed.
            cv2.split(placed, self._planes)
            planes = self._planes[::-1] if recipe.channels == "bgr" else self._planes
        for plane, channel, factor, shift in zip(planes, target, recipe.factor, recipe.shift, strict=True):
            np.copyto(channel, plane, casting="unsafe")
            if factor != 1:
                np.multiply(channel, channel.dtype.type(factor), out=channel)
            if shift:
                np.add(channel, channel.dtype.type(shift), out=channel)

    def _place(self, pixels: RGB, fit: Fit) -> RGB:
        if pixels.shape == self._canvas.shape and (fit.width, fit.height) == pixels.shape[1::-1]:
            return pixels
        if self._margins != fit:
            self._canvas.fill(self._recipe.pad)
            self._margins = fit
        part = self._canvas[fit.top : fit.top + fit.height, fit.left : fit.left + fit.width]
        if self._recipe.exact:
            np.copyto(part, resample(pixels, fit.width, fit.height))
        else:
            resize(pixels, fit.width, fit.height, out=part)
        return self._canvas
