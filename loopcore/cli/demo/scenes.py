"""Scenes: real handwriting (scikit-learn's digits) on paper slips, pasted into real photographs (scikit-image's).

The pictures ship inside the installed packages; nothing is downloaded. The same seed gives the same scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec

import cv2
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from loopcore.errors import ConfigError
from loopcore.imaging import decode
from loopcore.types import RGB

WIDTH, HEIGHT = 480, 320
SLIP = 48
"""The usual side of a paper slip, in pixels of the scene."""
PHOTOS = (
    "astronaut.png", "brick.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
COMMON = ("0", "1", "2", "3", "4")
RARE = ("5", "6", "7", "8", "9")
LABELS = COMMON + RARE
_PAPER = ((250, 247, 236), (253, 236, 148), (208, 232, 250), (250, 214, 222), (214, 243, 206))
_INK = ((28, 30, 38), (24, 42, 110), (92, 26, 30), (20, 66, 44))


class Slip(Struct, frozen=True, kw_only=True):
    """One digit in a scene, as it truly is; `hard` says what makes it difficult to read."""

    label: str
    x: float
    y: float
    width: float
    height: float
    hard: str | None = None


class Scene(Struct, frozen=True, kw_only=True, eq=False):
    """A picture and what is in it."""

    pixels: RGB
    photo: str
    slips: tuple[Slip, ...]


class Material(Struct, frozen=True, eq=False):
    """What scenes are made of: photographs by name, and for each label its handwriting, `(n, 8, 8)`, 0 to 1."""

    photos: dict[str, RGB]
    digits: dict[str, NDArray[np.float32]]


def load_material() -> tuple[Material, Material]:
    """The material to fit a model on and the material to try it on: the same photographs, different handwriting.

    Raises:
        ConfigError: The extra `demo` is not installed, or this scikit-image came without its photographs.
    """
    require_extra()
    from sklearn.datasets import load_digits

    folder = files("skimage") / "data"
    try:
        photos = {name: decode((folder / name).read_bytes()) for name in PHOTOS}
    except FileNotFoundError as exc:
        raise ConfigError(f"this scikit-image ships without its photographs: {exc}") from exc
    data = load_digits()
    images = (data.images / 16).astype(np.float32)
    by_label = {label: images[data.target == int(label)] for label in LABELS}
    learned = {label: stack[::2] for label, stack in by_label.items()}
    unseen = {label: stack[1::2] for label, stack in by_label.items()}
    return Material(photos, learned), Material(photos, unseen)


def require_extra() -> None:
    """Say now what would be missing later.

    Raises:
        ConfigError: The extra `demo` is not installed.
    """
    missing = [name for name in ("onnx", "skimage", "sklearn") if find_spec(name) is None]
    if missing:
        raise ConfigError(f'the demo needs {", ".join(missing)}: pip install "loopcore[demo]"')


def make_scene(
    material: Material, rng: np.random.Generator, *, count: int, hard: float, weights: Sequence[float] | None = None
) -> Scene:
    """Compose a scene.

    Args:
        material: Photographs and handwriting.
        rng: The only source of chance.
        count: How many slips; fewer if there is no room.
        hard: The share of slips that are turned, faint or blurred.
        weights: How often each of `LABELS` comes, summing to 1; all the same by default.
    """
    photo = str(rng.choice(sorted(material.photos)))
    pixels = _background(material.photos[photo], rng)
    slips: list[Slip] = []
    for _ in range(count):
        label = str(rng.choice(LABELS, p=weights))
        stack = material.digits[label]
        digit = stack[int(rng.integers(len(stack)))]
        kind = str(rng.choice(("turned", "faint", "blurred"))) if rng.random() < hard else None
        side = round(SLIP * float(rng.uniform(0.9, 1.1)))
        place = _free_place(slips, side, rng)
        if place is None:
            continue
        _paste(pixels, digit, place, side, kind, rng)
        slips.append(Slip(label=label, x=place[0], y=place[1], width=side, height=side, hard=kind))
    noise = rng.normal(0, 3, pixels.shape)
    return Scene(pixels=np.clip(pixels + noise, 0, 255).astype(np.uint8), photo=photo, slips=tuple(slips))


def _background(photo: RGB, rng: np.random.Generator) -> NDArray[np.float32]:
    height, width = photo.shape[:2]
    across = float(rng.uniform(0.6, 1.0)) * min(width, height * WIDTH / HEIGHT)
    w, h = int(across), int(across * HEIGHT / WIDTH)
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    crop = cv2.resize(photo[y : y + h, x : x + w], (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    light = np.float32(rng.uniform(0.7, 1.1))
    return np.multiply(crop, light, dtype=np.float32)


def _free_place(slips: Sequence[Slip], side: int, rng: np.random.Generator) -> tuple[int, int] | None:
    for _ in range(20):
        x, y = int(rng.integers(4, WIDTH - side - 4)), int(rng.integers(4, HEIGHT - side - 4))
        if all(abs(x - slip.x) > 1.5 * SLIP or abs(y - slip.y) > 1.5 * SLIP for slip in slips):
            return x, y
    return None


def _paste(
    pixels: NDArray[np.float32],
    digit: NDArray[np.float32],
    place: tuple[int, int],
    side: int,
    hard: str | None,
    rng: np.random.Generator,
) -> None:
    """Lay a slip with its shadow on the picture, in place."""
    paper = np.array(_PAPER[int(rng.integers(len(_PAPER)))], np.float32) * np.float32(rng.uniform(0.85, 1.0))
    ink = np.array(_INK[int(rng.integers(len(_INK)))], np.float32)
    strength = float(rng.uniform(0.18, 0.4)) if hard == "faint" else float(rng.uniform(0.8, 1.0))
    angle = float(rng.choice((-1, 1)) * rng.uniform(20, 50)) if hard == "turned" else float(rng.uniform(-7, 7))
    margin = side // 7
    strokes = cv2.resize(digit, (side - 2 * margin, side - 2 * margin), interpolation=cv2.INTER_CUBIC)
    strokes = np.pad(np.clip(strokes, 0, 1), margin)[..., None] * strength
    face = paper * (1 - strokes) + ink * strokes

    room = side // 4
    mask = np.pad(np.ones((side, side), np.float32), room)
    face = np.pad(face, ((room, room), (room, room), (0, 0)), mode="edge")
    middle = (mask.shape[1] - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), angle, 1.0)
    mask = np.asarray(cv2.warpAffine(mask, turn, mask.shape[::-1]), np.float32)[..., None]
    face = np.asarray(cv2.warpAffine(face, turn, face.shape[1::-1], borderMode=cv2.BORDER_REPLICATE), np.float32)
    if hard == "blurred":
        face = np.asarray(cv2.GaussianBlur(face, (0, 0), float(rng.uniform(2.2, 3.6))), np.float32)
    shadow = cv2.GaussianBlur(np.roll(mask[..., 0], (3, 2), (0, 1)), (0, 0), 3)[..., None] * 0.45

    x, y = place[0] - room, place[1] - room
    left, top = max(0, -x), max(0, -y)
    right, bottom = min(mask.shape[1], WIDTH - x), min(mask.shape[0], HEIGHT - y)
    inside = np.s_[top:bottom, left:right]
    target = pixels[y + top : y + bottom, x + left : x + right]
    target *= 1 - shadow[inside]
    target += mask[inside] * (face[inside] - target)
