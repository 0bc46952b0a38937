"""What a trainer leaves: a package, or a folder of packages of one model in several formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loopcore.errors import ModelError
from loopcore.package import MANIFEST, open_folder
from loopcore.types import Model


def open_packages(folder: Path, formats: Sequence[str]) -> tuple[Model, ...]:
    """Open all packages that a trainer has left, and check their files.

    Args:
        folder: A package, or a folder whose folders are packages.
        formats: What the trainer makes, best first; the packages come in this order.

    Raises:
        ModelError: There is none, one is damaged or in a format that the trainer does not make, or they do not belong
            together.
    """
    alone = (folder / MANIFEST).is_file()
    places = [folder] if alone else sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not places:
        raise ModelError(f"there is no package in {folder}")
    models = [open_folder(place) for place in places]
    for model in models:
        if model.info.format not in formats:
            raise ModelError(f"the package in {model.path} is {model.info.format!r}, expected {' or '.join(formats)}")
    if len({(model.info.name, model.info.version) for model in models}) > 1:
        raise ModelError(f"the packages in {folder} are of different models")
    if len({model.info.format for model in models}) < len(models):
        raise ModelError(f"two of the packages in {folder} have one format")
    return tuple(sorted(models, key=lambda model: formats.index(model.info.format)))
