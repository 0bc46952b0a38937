"""When two descriptions of a model mean the same model: by more than its version, which a maker may use twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import replace

from loopcore.types import ModelInfo

ORIGIN = "origin"
"""In `ModelInfo.extra` of a package that was fetched or converted: the ids of the packages that it was made from."""


def same_model(one: ModelInfo, other: ModelInfo) -> bool:
    """Whether both are the same model, be it in different formats.

    What a platform calls a model decides: `extra[…]["id"]`, under a key that both have. Without that, the files do:
    those of either, or those that it was made from. Where nothing is known of them, name and version do.
    """
    ours, theirs = _platform_ids(one), _platform_ids(other)
    if shared := ours.keys() & theirs.keys():
        return all(ours[key] == theirs[key] for key in shared)
    if (one.id and one.id in _file_ids(other)) or (other.id and other.id in _file_ids(one)):
        return True
    if one.id and other.id and (one.format == other.format or _origin(one) or _origin(other)):
        return False
    return (one.name, one.version) == (other.name, other.version)


def contradicts(promised: ModelInfo, found: ModelInfo) -> bool:
    """Whether what was fetched calls itself another model than the one that was asked for."""
    ours, theirs = _platform_ids(promised), _platform_ids(found)
    if any(ours[key] != theirs[key] for key in ours.keys() & theirs.keys()):
        return True
    return promised.format == found.format and bool(promised.id and found.id) and promised.id != found.id


def key_of(info: ModelInfo) -> str:
    """What to remember a model by: the same for all that a platform says of the same model."""
    ids = _platform_ids(info)
    parts: Any = sorted(ids.items()) if ids else [info.id] if info.id else [info.name, info.version]
    return sha256(msgspec.json.encode(parts)).hexdigest()


def shown(info: ModelInfo) -> dict[str, str]:
    """A model for people and platforms: name, version, and the id that tells it from all others."""
    return {"name": info.name, "version": info.version, "id": next(iter(_platform_ids(info).values()), info.id)}


def ids_of(info: ModelInfo) -> set[str]:
    """All that a person may call it by, besides its version: the platform's ids and that of its files."""
    return {*_platform_ids(info).values(), info.id} - {""}


def made_from(info: ModelInfo, sources: Iterable[ModelInfo]) -> ModelInfo:
    """What is said of a package that is the model of `sources`, in one of their formats or another."""
    extra, ids = dict(info.extra), _origin(info)
    for source in sources:
        extra = {**source.extra, **extra}
        ids |= _file_ids(source)
    return replace(info, extra={**extra, ORIGIN: sorted(ids - {info.id})})


def _platform_ids(info: ModelInfo) -> dict[str, str]:
    found = {key: value.get("id") for key, value in info.extra.items() if isinstance(value, Mapping)}
    return {key: str(value) for key, value in found.items() if value}


def _file_ids(info: ModelInfo) -> set[str]:
    return _origin(info) | ({info.id} if info.id else set())


def _origin(info: ModelInfo) -> set[str]:
    found = info.extra.get(ORIGIN)
    return {str(one) for one in found} if isinstance(found, list | tuple) else set()
