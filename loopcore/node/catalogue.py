"""The models of a node as people and programs see them."""

from __future__ import annotations

from typing import Any

from loopcore.deploy.identity import shown
from loopcore.deploy.modelstore import ModelStore
from loopcore.types import Model


def listed(store: ModelStore, serving: Model | None) -> list[dict[str, str]]:
    """The models of a store for a person; with the one that serves, wherever it lies. Blocking.

    Raises:
        ModelError: The record of the active model is damaged.
    """
    active, previous = store.marked()
    here = list(store.list())
    if serving is not None and serving.path not in [model.path for model in here]:
        here.insert(0, serving)
    states = {previous: "served before", active: "served last"}
    if serving is not None:
        states = {(active if active != serving.path else previous): "served before", serving.path: "serves"}
    return [{**shown(model.info), "format": model.info.format, "state": states.get(model.path, "")} for model in here]


def summary(model: Model) -> dict[str, Any]:
    """The model that serves, for the status."""
    info = model.info
    return {"name": info.name, "version": info.version, "format": info.format, "id": info.id, "labels": info.labels}
