"""The tables of the TOML as Structs. Every field is a key that an operator may write.

Whatever is not a field of a driver's table belongs to the driver: it is kept in `options`, undecoded, until the driver
is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import fields

from loopcore.options import Duration, Rate, Secret, Size, Window
from loopcore.types import SampleInfo

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Words = Annotated[tuple[str, ...], Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class NodeTable(_Table, frozen=True):
    """`[node]`: who this node is and where it keeps what must survive.

    Attributes:
        name: Its name, for people and platforms; the host's name if absent.
        data_dir: The folder for outbox, models and state; one node at a time owns it.
    """

    data_dir: Path
    name: str = field(default_factory=lambda: os.uname().nodename or "node")


class ServerTable(_Table, frozen=True):
    """`[server]`: the HTTP API, which is always there.

    Attributes:
        host: The address to listen on. One that other machines reach needs `token` or `allow_anonymous`.
        port: The port; 0 lets the system choose.
        token: What callers send as `Authorization: Bearer …`.
        allow_anonymous: Other machines may call without a token.
        max_body: The largest request.
        max_pixels: The largest picture, width times height.
        allowed_hosts: Further names under which callers may address this node (the `Host` header); `*`: any name, which
            needs `token` or `allow_anonymous`.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8004
    token: Secret | None = None
    allow_anonymous: bool = False
    max_body: Size = Size(64_000_000)
    max_pixels: Count = 100_000_000
    allowed_hosts: tuple[str, ...] = ()


class InferenceTable(_Table, frozen=True):
    """`[inference]`: how frames wait for the model.

    Attributes:
        queue: How many frames may wait; more are refused (HTTP 429) or wait in their source.
        threads: How many calls of the model may run at once; by default as many as the backend allows and the
            machine has cores for.
    """

    queue: Annotated[int, Meta(ge=1, le=10_000)] = 64
    threads: Annotated[int, Meta(ge=1, le=256)] | None = None


class OutboxTable(_Table, frozen=True):
    """`[outbox]`: what the queue of samples may cost, and what happens when it is full.

    Attributes:
        max_bytes: All samples together.
        max_count: How many samples; no bound of its own by default.
        max_age: Older samples are dropped, counted; by default none is too old.
        when_full: `reject` what comes, `drop_oldest`, or `drop_least_valuable`.
        min_free: The disk is left at least so much room.
        rejected_max_bytes: What refused samples may take; the oldest of them give way.
    """

    max_bytes: Size = Size(20_000_000_000)
    max_count: Count | None = None
    max_age: Duration | None = None
    when_full: Literal["reject", "drop_oldest", "drop_least_valuable"] = "reject"
    min_free: Size = Size(500_000_000)
    rejected_max_bytes: Size = Size(1_000_000_000)


class PluginsTable(_Table, frozen=True):
    """`[plugins]`: who takes part besides the distributions whose drivers are named.

    Attributes:
        files: Single-file plugins, relative to the TOML.
        enabled: Distributions whose hooks take part.
    """

    files: tuple[Path, ...] = ()
    enabled: tuple[str, ...] = ()


class GateTable(_Table, frozen=True):
    """`gate` of a rollout: what a model must show besides what every model must.

    Attributes:
        labels: The model must know each of these.
    """

    labels: Words | None = None


class RolloutTable(_Table, frozen=True):
    """`[[rollouts]]`: models travel from a platform to this node or to another platform.

    Attributes:
        source: `from`: the name of a platform.
        target: `to`: the name of a platform, or `self`.
        gate: The rules that a model must pass, besides those that every model must.
        every: How often the platform is asked which model is to be live.
        report: How often it is told how this node is doing when nothing changes.
        format: The format in which the model is wanted; by default the first that the backend runs and that can be had.
        key: Where the table stands, such as `rollouts[0]`.
    """

    source: str = field(name="from")
    target: str = field(name="to", default="self")
    gate: GateTable = GateTable()
    every: Duration = Duration(5.0)
    report: Duration = Duration(30.0)
    format: Name | None = None
    key: str = ""


class ConversionTable(_Table, frozen=True):
    """`[[conversions]]`: models of a platform that lack a format get it.

    Attributes:
        platform: The name of a platform.
        source: `from`: the format that is converted.
        target: `to`: the format that is made.
        every: How often the platform is asked for its models.
        key: Where the table stands, such as `conversions[0]`.
    """

    platform: str
    source: Name = field(name="from")
    target: Name = field(name="to")
    every: Duration = Duration(60.0)
    key: str = ""


class When(_Table, frozen=True):
    """Which samples a sink wants: for every key that is given, one of its words must be the sample's.

    Attributes:
        reasons: Reasons to keep it.
        labels: Labels of what the model found or a human annotated.
        cameras: The camera that took it.
        tags: The caller's tags.
    """

    reasons: Words | None = None
    labels: Words | None = None
    cameras: Words | None = None
    tags: Words | None = None

    def matches(self, sample: SampleInfo) -> bool:
        """Whether the sample is wanted."""
        return (
            (self.reasons is None or not set(self.reasons).isdisjoint(sample.reasons))
            and (self.tags is None or not set(self.tags).isdisjoint(sample.tags))
            and (self.cameras is None or sample.camera in self.cameras)
            and (self.labels is None or not set(self.labels).isdisjoint(_labels(sample)))
        )


def _labels(sample: SampleInfo) -> Iterator[str]:
    if sample.prediction is not None:
        yield from (shape.label for shape in sample.prediction.detections)
    yield from (shape.label for shape in sample.annotations or ())


class DriverTable(_Table, frozen=True):
    """A table that names a driver; all other keys are the driver's.

    Attributes:
        driver: The driver's name.
        name: The table's own name, unique in its kind; the driver's if absent.
        key: Where the table stands, such as `sinks[0]`; not a key of the TOML.
        options: The driver's keys, undecoded; never shown, because secrets may stand in it. Not a key of the TOML.
    """

    driver: str
    name: Name = ""
    key: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(driver={self.driver!r}, name={self.name!r}, key={self.key!r})"

    __str__ = __repr__

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("driver", self.driver), ("name", self.name), ("key", self.key)]


class BackendTable(DriverTable, frozen=True):
    """`[backend]`: what runs the model.

    Attributes:
        model: `follow` the rollout to this node, `pause` with the one that served last, a version, or a path to a
            package or `.onnx` file (it has a `/`, or ends in `.onnx` or `.zip`).
        remember: What a person has chosen to serve stays chosen after a restart; if not, `model` counts at each start.
        exclusive: The old model is released before the new one is loaded, for a device that has no room for both.
    """

    model: Annotated[str, Meta(min_length=1)] = "follow"
    remember: bool = True
    exclusive: bool = False


class PlatformTable(DriverTable, frozen=True):
    """`[[platforms]]`: where models are trained or run by others."""


class SourceTable(DriverTable, frozen=True):
    """`[[sources]]`: what brings frames in."""


class SelectorTable(DriverTable, frozen=True):
    """`[[selectors]]`: what says which frames are worth keeping.

    Attributes:
        per_hour: How many frames it may keep in an hour.
        per_hour_per_camera: How many of each camera.
    """

    per_hour: Count | None = None
    per_hour_per_camera: Count | None = None


class TrainerTable(DriverTable, frozen=True):
    """`[trainer]`: what turns the images of platforms into models, one job at a time.

    Attributes:
        backend: The driver of the backend with which a new model looks at the platform's images; by default that of
            `[backend]` if it runs the trainer's models, else one that does.
        batch: How many images it looks at in one go.
        keep_old: The folders of earlier jobs are kept, not removed when the next one begins.
        exit_after: The node ends, with exit code 0, when a job has ended.
        idle_exit: The node ends likewise after so long without a job.
        slot: A lock file that the trainers of one machine share, so that one of them trains at a time.
    """

    backend: str | None = None
    batch: Count = 10
    keep_old: bool = False
    exit_after: bool = False
    idle_exit: Duration | None = None
    slot: Path | None = None


class SinkTable(DriverTable, frozen=True):
    """`[[sinks]]`: where samples go; `name` is the identity of its cursor in the outbox.

    Attributes:
        like: The platform that fills absent options; by default the only one of the same driver.
        when: Which samples it wants; all by default.
        priority: Sinks of a higher one are served first.
        max_rate: What it may send.
        between: When it may send.
        max_backlog: More waiting samples than this, and the sink gives up the oldest, counted.
        start: A new sink begins with the `oldest` sample that is kept, or with those that come from `now` on.
    """

    like: str | None = None
    when: When | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    max_rate: Rate | None = None
    between: Window | None = None
    max_backlog: Count | None = None
    start: Literal["now", "oldest"] = "oldest"


def own_keys(kind: type[Struct]) -> list[str]:
    """The keys of the TOML that a table takes for itself."""
    return [one.encode_name for one in fields(kind) if one.name not in {"key", "options"}]
