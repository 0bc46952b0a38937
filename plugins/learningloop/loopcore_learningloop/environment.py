"""The environment of a node of the reference becomes the configuration of a node of ours (`learning-loop.md` 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from loopcore.errors import ConfigError, StorageError
from loopcore.files import read_bounded
from loopcore_learningloop.variables import Variables

PUBLIC_HOST = "learning-loop.ai"
DATA = "/data"
CYCLE_S = 5
"""How long the reference sleeps between two looks at the Loop (3.1)."""

_FORMATS = {"FP32": "onnx", "FP16": "onnx_fp16", "INT8": "onnx_int8"}
_NAME = "loop"
_MOST_IDS = 1_000_000


class Role(StrEnum):
    """What a node of the reference is."""

    DETECTOR = "detector"
    TRAINER = "trainer"
    ANNOTATOR = "annotator"
    CONVERTER = "converter"


class Choices(Struct, frozen=True, kw_only=True):
    """What no variable of the reference says.

    Attributes:
        name: The node's name; by default the machine's.
        host: In place of `NODE_HOST`.
        port: In place of `NODE_PORT`.
        backend: The driver that runs models.
        trainer: The driver that trains them.
        annotator: The driver that proposes outlines.
        edge: What a converter converts: `<from>-to-<to>`.
    """

    name: str | None = None
    host: str | None = None
    port: int | None = None
    backend: str = "onnx"
    trainer: str = "command"
    annotator: str = "outline"
    edge: str | None = None


class Configured(Struct, frozen=True, kw_only=True):
    """A node's configuration, as its TOML would hold it.

    Attributes:
        table: The tables. Secrets stand in it by the name of their variable.
        warnings: What works but should not stay so, one sentence each.
    """

    table: dict[str, Any]
    warnings: tuple[str, ...]


def configure(environment: Mapping[str, str], role: Role, choices: Choices) -> Configured:
    """What a node of this role does in this environment.

    Raises:
        ConfigError: A variable is missing, or its value is not what was expected; its key is the variable's name.
    """
    return _Translation(Variables(environment), role, choices).carry_out()


def known_id(folder: Path, name: str | None) -> str | None:
    """The id under which the Loop knows the node that used this data folder before (3.5); `None` if none did.

    Args:
        folder: The data folder.
        name: The node's name. Without one, or where nobody had it, a single id that is there is meant.
    """
    try:
        ids = msgspec.json.decode(read_bounded(folder / "uuids.json", _MOST_IDS), type=dict[str, str])
    except (StorageError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    alone = next(iter(ids.values())) if len(ids) == 1 else None
    return ids.get((name or "").lower().replace(" ", "_"), alone)


class _Translation:
    def __init__(self, variables: Variables, role: Role, choices: Choices) -> None:
        self._variables = variables
        self._role = role
        self._choices = choices
        self._warnings = variables.warnings
        self._left_out: list[str] = []

    def carry_out(self) -> Configured:
        parts: dict[Role, Callable[[], dict[str, Any]]] = {
            Role.DETECTOR: self._detector,
            Role.TRAINER: self._trainer,
            Role.ANNOTATOR: self._annotator,
            Role.CONVERTER: self._converter,
        }
        table = {
            "node": self._node(),
            "server": self._server(),
            "platforms": [self._platform()],
            **parts[self._role](),
        }
        if self._variables.flag("UVICORN_RELOAD"):
            self._left_out.append("UVICORN_RELOAD")
        if self._left_out:
            self._warnings.append(f"nothing here does what these ask for: {', '.join(self._left_out)}")
        return Configured(table=table, warnings=tuple(self._warnings))

    def _node(self) -> dict[str, Any]:
        name = {"name": self._choices.name} if self._choices.name else {}
        return {**name, "data_dir": self._variables.text("DATA_FOLDER", DATA)}

    def _server(self) -> dict[str, Any]:
        port = self._variables.whole("NODE_PORT", least=0, most=65535)
        port = 80 if port is None else port
        self._warnings.append(
            "anybody who reaches this node may call it, under any name: a TOML with a [server] token changes that"
        )
        return {
            "host": self._choices.host or self._variables.text("NODE_HOST", "0.0.0.0"),  # noqa: S104 - as the reference
            "port": port if self._choices.port is None else self._choices.port,
            "allow_anonymous": True,
            "allowed_hosts": ["*"],
        }

    # The Loop

    def _platform(self) -> dict[str, Any]:
        variables = self._variables
        table: dict[str, Any] = {"name": _NAME, "driver": "learningloop", "url": self._url()}
        for key in ("organization", "project"):
            name = variables.named(f"LOOP_{key.upper()}", key.upper())
            if name:
                table[key] = variables.text(name)
            elif self._role is Role.DETECTOR:
                raise ConfigError(f"a detector needs the id of its {key}", key=f"LOOP_{key.upper()}")
        if ca := variables.file("LOOP_SSL_CERT_PATH"):
            table["ca"] = ca
        if credentials := self._credentials():
            table |= credentials
            if self._is_open(table["url"]):
                table["insecure"] = True
                what = f"the password goes to {table['url']} unencrypted"
                self._warnings.append(f"{what}; if the Loop speaks TLS, write https:// in LOOP_HOST")
        if known := known_id(Path(variables.text("DATA_FOLDER", DATA)), self._choices.name):
            table["node_id"] = known
        if version := variables.text("NODE_VERSION"):
            table["node_version"] = version
        if variables.flag("SKIP_REPEAT_ON_START"):
            table["muted"] = True
        if variables.flag("USE_BACKDOOR_CONTROLS"):
            table["backdoor"] = True
        return table

    def _credentials(self) -> dict[str, Any]:
        """Both or none: a name alone, which many shells set, opens nothing."""
        variables = self._variables
        names = {key: (f"LOOP_{key}", key) for key in ("USERNAME", "PASSWORD")}
        given = {key: [name for name in pair if variables.text(name)] for key, pair in names.items()}
        if not all(given.values()):
            for name in (*given["USERNAME"], *given["PASSWORD"]):
                missing = "LOOP_PASSWORD" if given["USERNAME"] else "LOOP_USERNAME"
                if name.startswith("LOOP_"):
                    raise ConfigError(f"{name} is set and this is not; they belong together", key=missing)
                self._warnings.append(f"{name} is left out, because {missing} is not set")
            return {}
        username = variables.named(*names["USERNAME"])
        password = variables.named(*names["PASSWORD"], secret=True)
        return {"username": variables.text(username), "password": {"env": password}}

    def _url(self) -> str:
        name = self._variables.named("LOOP_HOST", "HOST")
        host = self._variables.text(name) if name else PUBLIC_HOST
        if "://" not in host:
            host = f"{'https' if PUBLIC_HOST in host else 'http'}://{host}"
        try:
            parts = urlsplit(host)
            good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and " " not in host
        except ValueError:
            good = False
            parts = urlsplit("")
        if "@" in host:
            raise ConfigError(
                "expected a host without credentials; LOOP_USERNAME and LOOP_PASSWORD are for them", key=name
            )
        if not good or parts.path.strip("/") or parts.query or parts.fragment:
            expected = "a host, such as learning-loop.ai, localhost:8080 or https://loop.example"
            raise self._variables.error(name, expected)
        return host.rstrip("/")

    @staticmethod
    def _is_open(url: str) -> bool:
        parts = urlsplit(url)
        return parts.scheme == "http" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}

    # The roles

    def _detector(self) -> dict[str, Any]:
        variables = self._variables
        rollout: dict[str, Any] = {"from": _NAME, "to": "self", "every": f"{CYCLE_S} s"}
        if cycles := variables.whole("SYNC_CYCLES", least=1):
            rollout["report"] = f"{cycles * CYCLE_S} s"
        if (kind := variables.word("WEIGHT_TYPE", tuple(_FORMATS))) and self._is_onnx("WEIGHT_TYPE"):
            rollout["format"] = _FORMATS[kind]
        return {
            "sources": [{"driver": "learningloop", "path": f"{variables.text('DATA_FOLDER', DATA)}/outbox"}],
            "backend": self._backend(),
            "rollouts": [rollout],
            "selectors": [self._selector()],
            "sinks": [{"driver": "learningloop"}],
            **self._outbox(),
        }

    def _backend(self) -> dict[str, Any]:
        variables = self._variables
        table: dict[str, Any] = {"driver": self._choices.backend, "model": "follow"}
        if mode := variables.text("VERSION_CONTROL_DEFAULT"):
            if mode.lower() not in {"pause", "follow_loop"}:
                self._warnings.append(
                    f"VERSION_CONTROL_DEFAULT is neither pause nor follow_loop ({mode!r}): it follows"
                )
            table |= {"model": "pause" if mode.lower() == "pause" else "follow", "remember": False}
        if variables.flag("EXCLUSIVE_MODEL_BUILD"):
            table["exclusive"] = True
        thresholds = {"confidence": "CONF_THRESHOLD", "iou": "IOU_THRESHOLD"}
        for key, name in thresholds.items():
            if (value := variables.number(name, least=0, most=1)) is not None and self._is_onnx(name):
                table[key] = value
        return table

    def _is_onnx(self, name: str) -> bool:
        """Whether the backend knows what a variable means; whoever wrote another one says it by that one's options."""
        if self._choices.backend != "onnx":
            self._left_out.append(name)
        return self._choices.backend == "onnx"

    def _selector(self) -> dict[str, Any]:
        variables = self._variables
        least = variables.number("MIN_UNCERTAIN_THRESHOLD", least=0, most=1)
        most = variables.number("MAX_UNCERTAIN_THRESHOLD", least=0, most=1)
        least, most = 0.3 if least is None else least, 0.6 if most is None else most
        if least > most:
            raise variables.error("MIN_UNCERTAIN_THRESHOLD", f"at most MAX_UNCERTAIN_THRESHOLD, which is {most:g}")
        return {"driver": "uncertain", "min": least, "max": most}

    def _outbox(self) -> dict[str, Any]:
        count = self._variables.whole("MAX_OUTBOX_SIZE", least=1)
        return {} if count is None else {"outbox": {"max_count": count, "when_full": "drop_oldest"}}

    def _trainer(self) -> dict[str, Any]:
        variables = self._variables
        table: dict[str, Any] = {
            "driver": self._choices.trainer,
            "batch": variables.whole("INFERENCE_BATCH_SIZE", least=1),
        }
        table["exit_after"] = variables.flag("RESTART_AFTER_TRAINING")
        table["keep_old"] = variables.flag("KEEP_OLD_TRAININGS")
        if idle := variables.number("TRAINER_IDLE_TIMEOUT_SEC", least=0, unit=" of seconds"):
            table["idle_exit"] = idle
        if slot := variables.text("TRAINING_SLOT_LOCK"):
            if not Path(slot).parent.is_dir():
                raise variables.error("TRAINING_SLOT_LOCK", "a file in a folder that is there")
            table["slot"] = slot
        if variables.number("VRAM_LIMIT_GB", least=0, unit=" of GB"):
            if self._choices.trainer == "command":
                table["env"] = {"VRAM_LIMIT_GB": variables.text("VRAM_LIMIT_GB")}
            else:
                self._left_out.append("VRAM_LIMIT_GB")
        return {"trainer": {key: value for key, value in table.items() if value}}

    def _annotator(self) -> dict[str, Any]:
        return {"annotator": {"driver": self._choices.annotator}}

    def _converter(self) -> dict[str, Any]:
        source, found, target = (self._choices.edge or "").partition("-to-")
        if not (source and found and target):
            expected = "expected what to convert, such as yolov5_wts-to-onnx"
            got = f", got {self._choices.edge!r}" if self._choices.edge else ""
            raise ConfigError(f"{expected}{got}", key="--convert")
        return {"conversions": [{"platform": _NAME, "from": source, "to": target, "every": "60 s"}]}
