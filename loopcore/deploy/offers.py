"""What a platform says of its models, taken with care: nothing of it is so long that it fills logs, notes or pages."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from loopcore.abc import DeploymentTarget, ModelRegistry
from loopcore.deploy.exchange import FETCH_S, exchange
from loopcore.errors import ModelError
from loopcore.types import Model, ModelInfo

_log = logging.getLogger(__name__)

MOST_CHARACTERS = 300
"""Of a name, a version, a format or an id."""

MOST_EXTRA_BYTES = 100_000
"""Of all else, as JSON."""


async def offers(platform: str, registry: ModelRegistry) -> Sequence[ModelInfo]:
    """The models of a platform; what cannot be right is left out.

    Raises:
        RemoteError: It could not be asked.
        PluginError: It raised what it may not raise.
    """
    with exchange(platform):
        listed = await registry.list()
    wrong = {id(info): problem for info in listed if (problem := _problem(info))}
    if wrong:
        _log.warning("A platform lists models that cannot be right platform=%s why=%s", platform, [*wrong.values()][:3])
    return [info for info in listed if id(info) not in wrong]


async def wanted_of(platform: str, target: DeploymentTarget) -> ModelInfo | None:
    """The model that is to be live.

    Raises:
        ModelError: What it says cannot be right.
        LoopcoreError: As `offers`.
    """
    with exchange(platform):
        wanted = await target.target()
    return None if wanted is None else _checked(platform, wanted)


async def publish(platform: str, registry: ModelRegistry, model: Model) -> ModelInfo:
    """Upload a model; what the platform says of it.

    Raises:
        ModelError: What it says cannot be right.
        LoopcoreError: As `ModelRegistry.publish`.
    """
    with exchange(platform, FETCH_S):
        there = await registry.publish(model)
    return _checked(platform, there)


def _checked(platform: str, info: ModelInfo) -> ModelInfo:
    if problem := _problem(info):
        raise ModelError(f"the platform {platform!r} speaks of a model that cannot be right: {problem}")
    return info


def _problem(info: ModelInfo) -> str | None:
    for what in ("name", "version", "format", "id"):
        if (length := len(getattr(info, what))) > MOST_CHARACTERS:
            return f"its {what} has {length} characters, more than {MOST_CHARACTERS}"
    rest = msgspec.json.encode((info.labels, info.spec, info.extra), enc_hook=str)
    if len(rest) > MOST_EXTRA_BYTES:
        return f"its description has {len(rest)} bytes, more than {MOST_EXTRA_BYTES}"
    return None
