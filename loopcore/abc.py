"""What a plugin implements, kind by kind. The docstrings are the specification.

A driver is a class that the TOML names. Its distribution announces it in an entry point (`loopcore.sinks` and so on),
and the node makes one instance for each table that names it. What waits is async; what computes is plain and is called
in a worker thread; what is heavy or not to be trusted runs in its own process.

Every driver is an async context manager: set-up above the `yield` of `__asynccontextmanager__`, tear-down below it. One
instance may be entered again after it was left: sources and sinks are, when they have failed.

Whatever a driver raises that is not in `loopcore.errors` is taken for a fault of the plugin (`PluginError`). Before the
node is up, that ends the start. Later a source is started again and a sink entered again after a pause, a selector is
left out for a minute, and a backend has failed on that one frame; it is logged, and the node goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

from anyio import AsyncContextManagerMixin, sleep_forever
from msgspec import Struct

from loopcore.options import Options
from loopcore.types import (
    RGB,
    Annotation,
    Answer,
    Frame,
    FrameInfo,
    Image,
    Keep,
    Model,
    ModelInfo,
    Prediction,
    Problem,
    Receipt,
    Sample,
)

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

CapabilityT = TypeVar("CapabilityT")


class Driver(AsyncContextManagerMixin, ABC):
    """What all kinds have in common.

    `Options` names the frozen Struct that the driver's table is decoded into. The constructor gets an instance of it
    and does no I/O: `loopcore check` constructs every driver and enters none.
    """

    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Any) -> None:
        self.options = options

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        yield self

    async def check(self) -> Sequence[Problem]:
        """What stands in the way of working, asked of the peer itself (`loopcore check --online`).

        Called on an entered driver. Changes nothing at the peer. Answers within 30 s.
        """
        return ()


class Service(Protocol):
    """What a source, a hook and a mounted application get of the node."""

    async def predict(
        self,
        image: Image,
        *,
        camera: str | None = None,
        captured: datetime | None = None,
        tags: Sequence[str] = (),
        source: str | None = None,
        keep: Keep = Keep.SELECTED,
    ) -> Answer:
        """Run the model on an image, and keep it if a selector wants it.

        When the answer carries a sample id, the sample survives a power cut. It carries none where no sink of the TOML
        wants the sample. Awaiting is the back-pressure. Whoever was told `StorageError` and brings the same frame again
        within ten minutes gets it kept, though selectors have seen it before.

        Args:
            image: The picture. The bytes of a JPEG or PNG are kept as they are; an array, or what only a plugin can
                decode, as a JPEG.
            camera: Which camera took it.
            captured: When, aware; naive times are refused.
            tags: Kept with the sample.
            source: Where it came from, for people.
            keep: Which frames may become samples.

        Raises:
            FrameError: The picture is bad.
            NotReadyError: No model is serving.
            BusyError: Too many frames are waiting.
            BackendError: The model failed on this frame.
            PluginError: The backend broke its contract on this frame.
            StorageError: The frame was to be kept and could not be.
        """
        ...

    def select(self, info: FrameInfo, prediction: Prediction) -> tuple[str, ...]:
        """The reasons to keep a frame, decided without its pixels.

        For sources that bring their own predictions. Selectors that need the image do not take part. Plain, and waits
        while another frame is being judged; may be called from any thread.
        """
        ...

    async def keep(
        self,
        image: Image,
        *,
        camera: str | None = None,
        captured: datetime | None = None,
        tags: Sequence[str] = (),
        source: str | None = None,
        prediction: Prediction | None = None,
        annotations: Sequence[Annotation] | None = None,
        reasons: Sequence[str] = (),
        state: str | None = None,
        urgent: bool = False,
    ) -> str:
        """Accept a sample; when this returns its id, it survives a power cut.

        It is accepted whether or not a sink wants it. Accepting the same id again merges tags and reasons; of
        annotations, the newest stand. The image is kept as by `predict`.

        Raises:
            FrameError: The picture is bad.
            StorageError: It could not be stored; nothing was accepted.
        """
        ...

    def model(self) -> ModelInfo | None:
        """The model that serves now."""
        ...

    async def set_model(self, choice: str) -> None:
        """Choose what serves: `follow`, `pause`, or a version. The choice survives a restart.

        A version that is not here is fetched from the platform of the rollout to this node, which takes its time. In
        place of a version the first 8 or more characters of a model's id will do, or of the platform's.

        Raises:
            ModelError: There is no such version, there are several, or it cannot be used; nothing has changed.
            RemoteError: It is not here, and the platform could not be asked; likewise.
            NotReadyError: The node has no backend.
            StorageError: The model serves, and that could not be noted for the next start.
        """
        ...

    async def reload(self) -> None:
        """Look the chosen model up and load it anew, and swap to it: a file that has changed counts as it is now.

        Raises:
            ModelError: It cannot be used; what served before still serves.
            NotReadyError: There is none.
        """
        ...

    async def hold_updates(self, hold: bool) -> None:
        """Put off the updates that rollouts bring, or let them happen again; forgotten at a restart.

        What a person sets by `set_model` is not put off, nor are rollouts to other platforms.
        """
        ...

    async def set_outbox(self, sending: bool) -> None:
        """Stop or resume sending to sinks; samples are accepted all the same. The choice survives a restart."""
        ...

    async def status(self) -> dict[str, Any]:
        """What `GET /status` shows: plain data, without secrets."""
        ...


class Control(Protocol):
    """A node's data folder as commands see it: through the running node, or directly if none runs."""

    async def call(self, operation: str, **parameters: Any) -> Any:
        """Run one of the node's operations (`status`, `set_model`, …) and return its answer as plain data.

        Raises:
            LoopcoreError: What the operation raised, with the same class and sentence.
        """
        ...


class Console(Protocol):
    """The terminal, as far as commands need it: text and tables, with control characters made visible."""

    def print(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        """Write a sentence beside the result, where it does not disturb who reads that."""
        ...

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None: ...


class Launcher(Protocol):
    """All that a command of a plugin gets (entry-point group `loopcore.commands`)."""

    @property
    def console(self) -> Console: ...

    def run_node(self, table: Mapping[str, Any]) -> None:
        """Run a node with this configuration until it is told to stop. The table is what the TOML would hold.

        Raises:
            ConfigError: The configuration is wrong.
            LoopcoreError: The node could not start, or could not go on.
            KeyboardInterrupt: Ctrl-C ended it, in good order.
        """
        ...

    def control(self, data_dir: Path) -> Control:
        """The control of the node that owns this data folder."""
        ...


class Source(Driver):
    """Brings frames in, and owns the transport they come by."""

    @abstractmethod
    async def run(self, service: Service, *, task_status: TaskStatus[None]) -> None:
        """Bring frames to the service until there are no more, or until cancelled.

        Calls `task_status.started()` once it can receive. Returns when the input has ended: the node goes on without
        it. A frame that cannot be used is the source's own affair: it catches `FrameError`, `BackendError` and
        `PluginError`, and goes on. On `BusyError` and `NotReadyError` it waits for `retry_after_s` and tries the same
        frame again; on `StorageError`, if it can bring the frame again, likewise. What it has handed over and got an id
        for is never handed over again after a restart if the medium lets it know.

        Args:
            service: The node. Awaiting `predict` is the back-pressure.
            task_status: To say that it has begun.

        Raises:
            ConfigError: The input is not there, and waiting is of no use. Before `started()` it ends the node's start;
                like any other error, it only means a pause after that: `run` is called again, on the same instance.
        """


class Backend(Driver):
    """Runs one model. Entering loads it, leaving frees it; for another model there is another instance.

    What entering raises decides what becomes of a model: after a `ModelError` it is refused for good; a device without
    room for it now is a `NotReadyError`, after which it is tried again, as after all else.

    Attributes:
        formats: The model formats it can run, best first.
        max_batch: Known once entered: how many frames one call of `infer` may get; at least 1.
        max_overlap: Known once entered: how many calls of `infer` may run at the same time; at least 1.
    """

    formats: ClassVar[tuple[str, ...]]
    max_batch: int = 1
    max_overlap: int = 1

    def __init__(self, options: Any, model: Model) -> None:
        super().__init__(options)
        self.model = model

    def decode_size(self, width: int, height: int) -> tuple[int, int]:
        """The least width and height at which a picture of this original size may be decoded for this model.

        Called on an entered backend, from any thread. A JPEG is decoded at the smallest of its scales that covers the
        answer; by default that is the original size.
        """
        return width, height

    @abstractmethod
    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        """Find things in 1 to `max_batch` frames, in order.

        Plain and blocking; called in worker threads, at most `max_overlap` at a time. Boxes and points are in pixels
        of the original, `frame.info.width` × `frame.info.height`, whatever the size of `frame.pixels`. Results do not
        depend on which frames share a call, nor on the calls before.

        Args:
            frames: `frame.pixels` is `uint8` `(h, w, 3)` RGB, C-contiguous, and is not written to.

        Raises:
            BackendError: It failed for these frames; the next call may succeed.
        """


class Selector(Driver):
    """Says whether a frame is worth keeping, and why.

    Deterministic for the same frames in the same order (a random choice is seeded by its options), lives by
    `info.time` and never by the wall clock, and forgets: its memory has a bound.
    """

    needs_image: ClassVar[bool] = False

    @abstractmethod
    def consider(self, info: FrameInfo, prediction: Prediction, frame: Frame | None) -> Sequence[str]:
        """The reasons to keep this frame; none: not wanted.

        A reason is a word, such as the driver's own name: that one is given as the `name` of the table, so that two
        tables of one driver can be told apart.

        Plain, quick; called in any thread, never twice at the same time on one instance. Frames of one camera
        come mostly, not strictly, in order of time.

        Args:
            info: What is known of the frame.
            prediction: What the model found.
            frame: The pixels, if `needs_image`, else `None`.
        """


class Sink(Driver):
    """Delivers samples to one peer.

    The attributes are the class's, or set by the constructor from its options.

    Attributes:
        media: The media types that the peer takes; empty: all. Others are transcoded to the first before they come.
        max_batch: How many samples one call of `send` may get.
        max_bytes: How many image bytes one call may carry; a single larger sample still comes, alone.
        in_flight: How many calls of `send` may run at the same time.
        timeout_s: After this long a call counts as failed with an unknown outcome.
    """

    media: tuple[str, ...] = ()
    max_batch: int = 1
    max_bytes: int = 16_000_000
    in_flight: int = 1
    timeout_s: float = 60.0

    @abstractmethod
    async def send(self, samples: Sequence[Sample]) -> Sequence[Receipt]:
        """Deliver 1 to `max_batch` samples; one receipt for each, in order.

        When it returns, each sample is either with the peer for good or refused by it. It is idempotent by sample id:
        a sample may come again after a crash or an unknown outcome, and again with other annotations. Of the errors of
        a task group within, the first one counts.

        Raises:
            RejectedError: The peer refused the whole batch; the core splits it to find the bad sample.
            RetryableError: The outcome is unknown, or the peer asks for patience; all of it comes again.
            AuthError: The peer does not accept our credentials; sending stops until a person mends them.
        """


class Platform(Driver):
    """Where models are trained or run by others, as a set of capabilities."""

    @abstractmethod
    async def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:
        """This platform's implementation of `ModelRegistry`, `ImageStore` …, or `None` if it has none.

        Called on an entered driver. The same object every time. A `None` where the TOML needs the capability ends the
        start with a `ConfigError`.
        """


class ModelRegistry(ABC):
    """Capability: keeps models."""

    @abstractmethod
    async def list(self) -> Sequence[ModelInfo]:
        """The models it has, newest first; one entry for each format in which a model can be fetched.

        What the platform itself calls a model is `extra[…]["id"]`, under a key of the platform's own: the same in every
        format, and in what `DeploymentTarget` says. Without that, the ids of files tell models apart, and where those
        are not known, name and version.

        Raises:
            RemoteError: It could not be asked.
        """

    @abstractmethod
    async def fetch(self, info: ModelInfo, format: str, into: Path) -> None:  # noqa: A002 - the field's term
        """Download a model's files in one format into a folder, checked against the platform's own hashes.

        What is there when it returns is a package, with a `model.json` that says what the platform knows of the model.

        Args:
            info: The model, as from `list` or `DeploymentTarget.target`.
            format: In which format.
            into: A folder: empty, or with what an earlier attempt for the same model and format has left. Of that, what
                is sound need not be downloaded again. What comes is written there as it comes: a download during which
                nothing changes there for ten minutes is given up.

        Raises:
            ModelError: The model does not exist in that format, or what came is not what was promised.
            RemoteError: The download failed; the folder may hold parts.
        """

    @abstractmethod
    async def publish(self, package: Model, job: str | None = None) -> ModelInfo:
        """Upload a model; idempotent by its id.

        Args:
            package: The model. Where its `extra` says what this platform calls it, it is a model that the platform has,
                in another format.
            job: The job it came from, in the platform's words.

        Returns:
            What the platform says of it.

        Raises:
            RejectedError: The platform does not take this model.
            RemoteError: The upload failed.
        """


class DeploymentTarget(ABC):
    """Capability: says which model is to be live."""

    @abstractmethod
    async def target(self) -> ModelInfo | None:
        """The model that is to be live; `None` if nobody has chosen. `format` is empty where the platform names none.

        Raises:
            RemoteError: It could not be asked; keep what serves.
        """

    @abstractmethod
    async def assign(self, model: ModelInfo) -> None:
        """Make a model the target.

        Raises:
            RejectedError: The platform does not have it, or does not allow it.
        """

    @abstractmethod
    async def report(self, status: Mapping[str, Any]) -> None:
        """Tell the platform how this node is doing: plain data as from `Service.status`."""

    async def restart_wanted(self) -> None:
        """Return when the platform wants this node to start again; by default that never is.

        The node ends in good order then, with exit code 0, and its supervisor starts it.
        """
        await sleep_forever()


class StoredImage(Struct, frozen=True, kw_only=True):
    """An image of a platform, as `ImageStore.fetch` brought it.

    Attributes:
        id: The platform's id of it.
        file: The name of its file in the folder; `None` if it could not be had.
        missing: Why it could not be had, in one sentence: the platform does not have it, or what came is no picture.
        width: Pixels across, after EXIF rotation.
        height: Pixels down, likewise.
        annotations: What a human says is there; `None` if nobody looked.
        set: `train`, `val` or `test` as the platform has it; `None` if it does not say.
        state: In the platform's own words.
        tags: Its tags.
    """

    id: str
    file: str | None = None
    missing: str | None = None
    width: int = 0
    height: int = 0
    annotations: tuple[Annotation, ...] | None = None
    set: Literal["train", "val", "test"] | None = None
    state: str | None = None
    tags: tuple[str, ...] = ()


class ImageStore(ABC):
    """Capability: keeps images with predictions and annotations."""

    @abstractmethod
    async def images(self, states: Sequence[str] = ()) -> Sequence[str]:
        """The platform's ids of its images, in a stable order; all states if none is named.

        Raises:
            RemoteError: It could not be asked.
        """

    @abstractmethod
    async def fetch(self, images: Sequence[str], into: Path, got: Callable[[StoredImage], None]) -> None:
        """Download images with all that is known of them, many at a time.

        A file appears in `into` whole and checked, or not at all; one that is there already is not downloaded again.

        Args:
            images: The platform's ids.
            into: A folder.
            got: Called in the event loop's thread, once for each image, in any order, as it comes.

        Raises:
            RemoteError: The platform cannot be reached, or what it says of the images cannot be had; `got` was called
                for some of them. Asking again goes on from there.
        """

    @abstractmethod
    async def add(self, image: str, annotations: Sequence[Annotation]) -> None:
        """Set the annotations of an image.

        Raises:
            RejectedError: The platform does not take them.
        """

    @abstractmethod
    async def predictions(self, predictions: Mapping[str, Prediction], model: ModelInfo) -> None:
        """Hand over what a model found on images, by the platform's ids. Handing over again changes nothing."""


class Proposal(Struct, frozen=True, kw_only=True):
    """An annotator's outline so far; `done` ends the session."""

    outline: tuple[tuple[float, float], ...] = ()
    done: bool = False


class StrokeKind(StrEnum):
    """What a person did."""

    PRESS = "press"
    MOVE = "move"
    RELEASE = "release"
    KEY = "key"


class Stroke(Struct, frozen=True, kw_only=True):
    """One act of a person on the image.

    Attributes:
        kind: What was done.
        x: Where, in pixels of the image; 0 is its left edge. It may lie outside.
        y: The same, down.
        key: For `StrokeKind.KEY`: the key's name as browsers have it, such as `Enter`, `Escape` or `a`.
        shift: The Shift key was held.
    """

    kind: StrokeKind
    x: float = 0
    y: float = 0
    key: str = ""
    shift: bool = False


class AnnotationSession(ABC):
    """One object being outlined by one person on one image."""

    @abstractmethod
    def act(self, stroke: Stroke) -> Proposal:
        """Take a stroke into account. Plain, called in a worker thread, never twice at a time on one session.

        Any stroke may come at any time: what makes no sense now changes nothing. The same strokes give the same
        outline, whatever other sessions do. The outline is in pixels of the image and stays inside it; it has three
        corners or more, or none.
        """


class Annotator(Driver):
    """Answers a person's strokes on an image with a proposed outline. Knows no platform's wire."""

    @abstractmethod
    def open(self, pixels: RGB, label: str) -> AnnotationSession:
        """Begin to outline one object of this label. Plain, called in a worker thread; sessions may overlap.

        Args:
            pixels: The image, `uint8` `(height, width, 3)`, RGB. Others look at it too: it is not written to.
            label: What the object is.
        """


class AnnotationDesk(ABC):
    """Capability: people annotate at the platform and want proposals."""

    @abstractmethod
    async def serve(self, annotator: Annotator, node: str, *, task_status: TaskStatus[None]) -> None:
        """Serve the platform's people until cancelled; one session for each object that a person outlines.

        Returns when the platform asks the node to start again: it ends with exit code 0, for its supervisor to see to.

        Args:
            annotator: What proposes. Of its errors only those of `loopcore.errors` come out: the person is told, and
                the session is over.
            node: The name of the node, for people at the platform.
            task_status: Told once people can be served, or would be if the platform could be reached.
        """


class Job(Struct, frozen=True, kw_only=True):
    """One training to do.

    Attributes:
        id: The platform's name for it, unique on this node; letters, digits, `.`, `_` and `-`.
        labels: The labels to train, in the order of the model's channels.
        base: The model to start from: its id, its version or the platform's own id in `JobQueue.models`, a name from
            `Trainer.pretrained`, or `None` for from scratch.
        parameters: The platform's or the person's wishes, passed to the trainer. With `compute_validation_set` true, a
            tenth of the training images becomes the validation set where the platform names none.
        context: The platform's own words, kept with the job and handed back to the platform.
        project: Whose images it trains on, in the platform's words: images are kept for the next job of the same one.
    """

    id: str
    labels: tuple[str, ...] = ()
    base: str | None = None
    parameters: dict[str, Any] = {}
    context: dict[str, Any] = {}
    project: str = ""


class JobStep(StrEnum):
    """Where a job is. Each step is done again after a crash, and can be."""

    ACCEPTED = "accepted"
    COLLECTING = "collecting"
    """The platform's images and annotations become a snapshot."""
    FETCHING = "fetching"
    """The model to start from is downloaded."""
    TRAINING = "training"
    SCORING = "scoring"
    """The platform is told the figures of the best model."""
    PUBLISHING = "publishing"
    PREDICTING = "predicting"
    """The new model looks at the platform's images."""
    REPORTING = "reporting"
    """The platform is given what the model found."""
    ENDED = "ended"


class Score(Struct, frozen=True, kw_only=True):
    """How good a trainer's best model is so far.

    Attributes:
        confusion: Of each label: true positives, false positives, false negatives.
        epoch: The epoch it comes from.
        metrics: Other figures by name.
    """

    confusion: dict[str, tuple[int, int, int]] = {}
    epoch: int | None = None
    metrics: dict[str, float] = {}


class JobState(Struct, frozen=True, kw_only=True):
    """How a job goes.

    Attributes:
        job: The job.
        step: The step it is in.
        finished: The step is done, and the next one has not begun.
        progress: Of the step, 0 to 1; `None` if it cannot be said.
        message: What the trainer says.
        score: Of the best model so far.
        images: How many images are in each set of the snapshot, and under `missing` how many could not be had.
        error: Why the last attempt at this step failed; it is tried again, or the job has ended with it.
        waiting: The job waits for the GPU slot.
    """

    job: Job
    step: JobStep = JobStep.ACCEPTED
    finished: bool = False
    progress: float | None = None
    message: str = ""
    score: Score | None = None
    images: dict[str, int] = {}
    error: str | None = None
    waiting: bool = False


class Accepted(Struct, frozen=True, tag="accepted"):
    """The worker has begun the job, and will come back to it after a crash."""


class Declined(Struct, frozen=True, kw_only=True, tag="declined"):
    """The worker does not take the job now."""

    why: str


class Worker(Protocol):
    """What a job queue gets of the node: one job at a time."""

    async def offer(self, job: Job) -> Accepted | Declined:
        """Offer a job; on `Accepted` it is durable."""
        ...

    async def stop(self, job: str) -> None:
        """End the training soon, keep the best model so far and go on; nothing happens in any other step."""
        ...

    async def abort(self, job: str) -> None:
        """End the job now and keep nothing."""
        ...

    def state(self) -> JobState | None:
        """The job at work; `None` if there is none. An ended job that failed stays until the next one comes."""
        ...

    def blocked(self) -> bool:
        """No job could begin now, because somebody else on this machine has the GPU slot."""
        ...

    def describe(self) -> TrainerInfo:
        """What the trainer is."""
        ...

    async def changed(self) -> None:
        """Wait until `state` or `blocked` has changed."""
        ...


class TrainerInfo(Struct, frozen=True, kw_only=True):
    """What a platform may show of a trainer.

    Attributes:
        architecture: Its name, in the trainer's words.
        formats: Of the models it makes, best first.
        pretrained: What one may start from, besides the platform's models.
        node: The name of the node that it is on.
    """

    architecture: str
    formats: tuple[str, ...]
    pretrained: tuple[str, ...] = ()
    node: str = ""


class JobQueue(ABC):
    """Capability: the platform gives us work."""

    @abstractmethod
    async def serve(self, worker: Worker, *, task_status: TaskStatus[None]) -> None:
        """Bring the platform's jobs to the worker until cancelled, and show the platform the worker's state.

        Returns when the platform asks the node to start again: it ends with exit code 0, for its supervisor to see to.
        """

    @abstractmethod
    def images(self, job: Job) -> ImageStore:
        """Where the images of a job are."""

    @abstractmethod
    def models(self, job: Job) -> ModelRegistry:
        """Where the model of a job goes, and the one it starts from comes from."""

    @abstractmethod
    async def score(self, state: JobState) -> None:
        """Tell the platform the figures of the best model so far.

        Raises:
            RemoteError: It does not know them yet; they come again.
        """


class TrainingState(Struct, frozen=True, kw_only=True):
    """How a remote training is doing; `progress` is 0 to 1."""

    id: str
    finished: bool = False
    failed: str | None = None
    progress: float | None = None
    message: str = ""


class RemoteTrainings(ABC):
    """Capability: the platform works for us."""

    @abstractmethod
    async def start(self, parameters: Mapping[str, Any]) -> str:
        """Start a training and return its id."""

    @abstractmethod
    async def watch(self, training: str) -> TrainingState:
        """Wait for the next change, 60 s at most, and return the state."""

    @abstractmethod
    async def cancel(self, training: str) -> None:
        """Stop it; nothing happens if it has ended."""

    @abstractmethod
    async def build(self, format: str) -> ModelInfo:  # noqa: A002 - the field's term
        """Build the newest model in a format and return it once it can be fetched.

        Raises:
            RejectedError: The platform cannot build that.
        """


class Report(Protocol):
    """Says how far a long computation is; may be called often.

    Args:
        progress: 0 to 1.
        message: For people.
        score: Of the best model so far, where there is a new best one.
        metrics: Figures by name.
    """

    def __call__(self, progress: float, message: str = "", *, score: Score | None = None, **metrics: float) -> None: ...


class Converter(Driver):
    """Turns one format into another. Its entry point's name is its edge: `<source>-to-<target>`.

    Names are `[a-z0-9_]+` words joined by `-to-`. Chains are planned over names and costs; a converter whose
    cost cannot matter is not imported. `convert` runs in a process of its own, with limits.

    Attributes:
        subject: `model` or `dataset`; data sets meet in the format `snapshot`.
        source: The format it reads; agrees with the name.
        target: The format it writes; agrees with the name.
        cost: Among chains, the one with the least sum is taken; 1 is usual and the least, more loses more.
    """

    subject: ClassVar[str] = "model"
    source: ClassVar[str]
    target: ClassVar[str]
    cost: ClassVar[float] = 1.0

    @abstractmethod
    def convert(self, source: Path, into: Path, calibration: Path | None, report: Report) -> None:
        """Write the converted package into an empty folder.

        Plain and blocking. Reads nothing but `source` and `calibration`, writes nowhere but `into`.

        Args:
            source: A package: a folder with `model.json` (a model) or `snapshot.json` (a data set).
            into: An empty folder.
            calibration: A folder of pictures or a snapshot, if there is one.
            report: To say how far it is.

        Raises:
            ConversionError: It cannot be done; the message says why.
        """


class Trainer(Driver):
    """Turns a snapshot into a model. `train` runs in a process of its own, with limits.

    The attributes are the class's, or set by the constructor from its options.

    Attributes:
        formats: The formats of the models it makes, best first.
        architecture: What it trains, for people; by default the driver's name.
    """

    formats: tuple[str, ...] = ()
    architecture: str = ""

    def pretrained(self) -> Sequence[str]:
        """Names of the models one may start from, besides those of the registry. Quick."""
        return ()

    @abstractmethod
    def train(
        self,
        snapshot: Path,
        base: Path | None,
        parameters: Mapping[str, Any],
        workdir: Path,
        report: Report,
        stop: Callable[[], bool],
    ) -> Path:
        """Train and return the folder of the model package, inside `workdir`.

        A trainer that makes its model in several formats returns a folder with a package in each of its folders, of one
        name and version, each in another format.

        Plain and blocking. Called again with the same `workdir` after a crash, it resumes, and reports the score of its
        best model again. The same snapshot, base, parameters and seed give the same model on the same machine.

        Args:
            snapshot: The data set.
            base: The package to start from, if any.
            parameters: The job's wishes; under `pretrained` the name of the model to start from, if it is one of those.
            workdir: Its own folder; checkpoints go here.
            report: Progress 0 to 1, and metrics.
            stop: True once the training is to end soon and keep its best model, from the beginning perhaps; asked at
                least once a step.

        Raises:
            TrainingError: It failed; the message says why.
        """


KINDS: dict[str, type[Driver]] = {
    "source": Source,
    "backend": Backend,
    "selector": Selector,
    "sink": Sink,
    "platform": Platform,
    "converter": Converter,
    "trainer": Trainer,
    "annotator": Annotator,
}
"""Every kind of driver and its base class. The entry-point group of a kind is `loopcore.<kind>s`."""
