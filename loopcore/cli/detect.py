"""`loopcore detect`: a model, once, over files, folders and clips."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import anyio
import msgspec
import typer
from anyio.to_thread import run_sync

from loopcore import config
from loopcore.abc import Backend
from loopcore.cli.frames import CLIPS, Input, Looked, Looker, find, in_order, is_file, read
from loopcore.cli.tally import Tally, progress_bar
from loopcore.errors import ConfigError, ModelError, first
from loopcore.files import write_atomic
from loopcore.package import open_model, read_labels
from loopcore.registry import Registry
from loopcore.types import Model

_AHEAD = 3
"""How many frames are on their way for each thread: one read, one decoded, one inferred."""


def detect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model package (folder or .zip), or an .onnx file.")],
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT", help="Pictures, clips, folders of them, or quoted globs.")
    ],
    draw: Annotated[Path | None, typer.Option(metavar="DIR", help="Write annotated pictures into this folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One line of JSON for each frame on stdout.")] = False,
    confidence: Annotated[float | None, typer.Option(min=0, max=1, help="Leave out what is less likely.")] = None,
    iou: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of boxes that overlap by more, keep the best.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="FILE|A,B,C", help="Class names: a file, one a line, or a list.")
    ] = None,
    decoder: Annotated[str | None, typer.Option(help="How to read the model's answer, if it is not guessed.")] = None,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Of a clip, take each Nth frame.")] = 1,
) -> None:
    """Run MODEL once over files, folders, globs and clips.

    Exit code 1 if a picture could not be read; the others are done all the same.
    """
    paths, missing = find(inputs)
    if not paths:
        raise ConfigError(f"nothing to look at: found no picture or clip for {', '.join(missing)}")
    if draw is not None:
        _make_folder(draw)
    wishes = {"confidence": confidence, "iou": iou, "decoder": decoder}
    with TemporaryDirectory(prefix="loopcore-") as unpacked:
        opened = open_model(model, Path(unpacked) / "model")
        if labels is not None:
            opened = _relabelled(opened, labels)
        backend = _backend(opened, {key: value for key, value in wishes.items() if value is not None})
        pictures = _Pictures(draw) if draw is not None else None
        with progress_bar(len(paths), json=json) as progress:
            tally = Tally(json=json, progress=progress)
            for name in missing:
                tally.fail(name, "there is no such picture, clip or folder")
            try:
                anyio.run(partial(_detect, backend, paths, every, pictures, tally), backend="asyncio")
            except BaseExceptionGroup as failures:
                raise first(failures) from failures
    if not json:
        tally.print_tables()
    if tally.failed:
        raise typer.Exit(1)


async def _detect(backend: Backend, paths: list[Path], every: int, pictures: _Pictures | None, tally: Tally) -> None:
    threads = os.cpu_count() or 1
    async with backend:
        looker = Looker(backend, threads=threads)

        async def work(item: Input) -> Looked:
            looked = await looker.look(item)
            if pictures is not None and looked.prediction is not None:
                await run_sync(pictures.write, looked)
            return looked

        frames = read(paths, every=every, begun=tally.begin)
        await in_order(frames, work, tally.show, ahead=_AHEAD * threads)


def _backend(model: Model, wishes: dict[str, Any]) -> Backend:
    """A backend for the model's format, not entered; the one that is named like the format is asked first."""
    registry = Registry()
    wanted = model.info.format
    for name in sorted(registry.names("backend"), key=lambda name: not wanted.startswith(name)):
        kind = registry.driver("backend", name)
        if issubclass(kind, Backend) and wanted in kind.formats:
            return kind(_options(name, kind, wishes), model)
    raise ModelError(f"no installed backend runs the format {wanted!r} of {model.info.name}")


def _options(name: str, kind: type[Backend], wishes: dict[str, Any]) -> Any:
    """The backend's options, checked as those of a TOML are, so that a mistake is told in the same words."""
    loaded = config.parse({"node": {"data_dir": "."}, "backend": {"driver": name, **wishes}})
    assert loaded.backend is not None
    try:
        return loaded.decode(loaded.backend, kind.Options)
    except ConfigError as exc:
        option = (exc.key or "").removeprefix("backend.")
        raise ConfigError(f"--{option}: {exc.message}") from exc


def _relabelled(model: Model, labels: str) -> Model:
    if is_file(labels):
        names = read_labels(Path(labels))
    elif "," not in labels and ("/" in labels or "." in labels):
        raise ConfigError(f"--labels: there is no file {labels}")
    else:
        names = tuple(name.strip() for name in labels.split(","))
    if not names or not all(names):
        raise ConfigError(f"--labels: expected names such as cat,dog or a file of them, got {labels!r}")
    return Model(info=msgspec.structs.replace(model.info, labels=names), path=model.path)


class _Pictures:
    """Writes annotated pictures, each under a name of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[Path, str] = {}

    def name(self, path: Path) -> str:
        taken = self._names
        if path not in taken:
            stem = path.stem
            number = 1
            while stem in taken.values():
                number += 1
                stem = f"{path.stem}-{number}"
            taken[path] = stem
        return taken[path]

    def write(self, looked: Looked) -> None:
        from loopcore import imaging

        item = looked.input
        assert looked.prediction is not None
        pixels = imaging.decode(item.image) if isinstance(item.image, bytes) else item.image
        number = f"-{item.index:06}" if item.path.suffix.lower() in CLIPS else ""
        drawn = imaging.encode_jpeg(imaging.draw(pixels, looked.prediction.detections))
        write_atomic(self._folder / f"{self.name(item.path)}{number}.jpg", drawn)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"--draw: cannot make the folder {folder}: {exc.strerror or exc}") from exc
