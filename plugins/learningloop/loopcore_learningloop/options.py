"""What `driver = "learningloop"` takes, in `[[platforms]]` and in `[[sinks]]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from loopcore import Duration, Options, Secret


class LoopOptions(Options, frozen=True, kw_only=True):
    """How to reach a Loop.

    Attributes:
        url: The Loop, with `https://` or `http://` and without `/api`.
        username: The account; without one nobody logs in, and the Loop must allow that.
        password: Its password.
        ca: A file of certificates (PEM) that are trusted instead of the public ones.
        insecure: Send the password over plain http to another machine.
        timeout: How long one request may take; the download or upload of a model may take longer.
    """

    url: str = "https://learning-loop.ai"
    username: str | None = None
    password: Secret | None = None
    ca: Path | None = None
    insecure: bool = False
    timeout: Duration = Duration(30)


class PlatformOptions(LoopOptions, frozen=True, kw_only=True):
    """Options of the platform `learningloop`.

    Attributes:
        organization: The organization's id; the Loop knows ids in lower case only. A trainer or annotator needs none.
        project: The project's id, likewise. Without one, a converter sees to all projects that the account can see.
        model_timeout: How long the download or upload of one model may take.
        node_id: The id under which the Loop lists this node; by default one that is made of its name and the project.
        node_version: What the Loop shows as this node's version; by default that of loopcore.
        muted: Tell the Loop nothing, and ask it for no model to run, until a client says otherwise (`PUT /socketio`).
        backdoor: Whoever reaches this node may reset it (`POST /reset`, `POST /force_status_update`); for tests.
    """

    organization: str = ""
    project: str = ""
    model_timeout: Duration = Duration(600)
    node_id: str | None = None
    node_version: str | None = None
    muted: bool = False
    backdoor: bool = False


class SinkOptions(LoopOptions, frozen=True, kw_only=True):
    """Options of the sink `learningloop`.

    Attributes:
        organization: The organization's id.
        project: The project's id.
        batch: How many images one request may carry.
        in_flight: How many requests are under way at a time.
    """

    organization: Annotated[str, Meta(min_length=1)]
    project: Annotated[str, Meta(min_length=1)]
    batch: Annotated[int, Meta(ge=1, le=100)] = 20
    in_flight: Annotated[int, Meta(ge=1, le=16)] = 4
