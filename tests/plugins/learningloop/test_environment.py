"""Each variable of the reference (`learning-loop.md` 1) says in a node of ours what it said in one of the reference."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopcore_learningloop.environment import Choices, Configured, Role, configure

from loopcore import config
from loopcore.abc import Converter, Report
from loopcore.errors import ConfigError
from loopcore.plan import resolve
from loopcore.registry import Registry

DETECTOR, TRAINER, ANNOTATOR, CONVERTER = Role.DETECTOR, Role.TRAINER, Role.ANNOTATOR, Role.CONVERTER
WHOSE = {"LOOP_ORGANIZATION": "zoo", "LOOP_PROJECT": "penguins"}
ABSENT = object()
ALIASES = ("HOST", "USERNAME", "PASSWORD", "ORGANIZATION", "PROJECT")


def configured(role: Role = DETECTOR, choices: Choices | None = None, **variables: str) -> Configured:
    return configure(WHOSE | variables, role, choices or Choices(edge="format_a-to-format_b"))


def at(table: Any, path: str) -> Any:
    """What stands at a path such as `platforms[0].url`; `ABSENT` if nothing does."""
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", path):
        key = int(index) if index else name
        if isinstance(table, Mapping) and key not in table:
            return ABSENT
        table = table[key]
    return table


SAID: list[tuple[Role, dict[str, str], str, Any]] = [
    (DETECTOR, {}, "platforms[0].url", "https://learning-loop.ai"),
    (DETECTOR, {"LOOP_HOST": "learning-loop.ai"}, "platforms[0].url", "https://learning-loop.ai"),
    (DETECTOR, {"LOOP_HOST": "preview.learning-loop.ai"}, "platforms[0].url", "https://preview.learning-loop.ai"),
    (DETECTOR, {"LOOP_HOST": "loop.local"}, "platforms[0].url", "http://loop.local"),
    (DETECTOR, {"LOOP_HOST": "localhost:8080"}, "platforms[0].url", "http://localhost:8080"),
    (DETECTOR, {"LOOP_HOST": "[::1]:8080"}, "platforms[0].url", "http://[::1]:8080"),
    (DETECTOR, {"LOOP_HOST": "https://loop.local"}, "platforms[0].url", "https://loop.local"),
    (DETECTOR, {"LOOP_HOST": "http://learning-loop.ai/"}, "platforms[0].url", "http://learning-loop.ai"),
    (DETECTOR, {"LOOP_HOST": "", "HOST": "loop.local"}, "platforms[0].url", "http://loop.local"),
    (DETECTOR, {"LOOP_USERNAME": "me", "PASSWORD": "x"}, "platforms[0].username", "me"),
    (DETECTOR, {"USERNAME": "me", "PASSWORD": "x"}, "platforms[0].username", "me"),
    (DETECTOR, {"USERNAME": "me", "LOOP_PASSWORD": "x"}, "platforms[0].password", {"env": "LOOP_PASSWORD"}),
    (DETECTOR, {"USERNAME": "me", "PASSWORD": "x"}, "platforms[0].password", {"env": "PASSWORD"}),
    (DETECTOR, {"USERNAME": "me"}, "platforms[0].username", ABSENT),
    (DETECTOR, {}, "platforms[0].username", ABSENT),
    (DETECTOR, {}, "platforms[0].password", ABSENT),
    (DETECTOR, {"LOOP_SSL_CERT_PATH": __file__}, "platforms[0].ca", __file__),
    (DETECTOR, {"LOOP_ORGANIZATION": "aquarium"}, "platforms[0].organization", "aquarium"),
    (DETECTOR, {"LOOP_PROJECT": "", "PROJECT": "seals"}, "platforms[0].project", "seals"),
    (TRAINER, {"LOOP_PROJECT": ""}, "platforms[0].project", ABSENT),
    (DETECTOR, {}, "selectors", [{"driver": "uncertain", "min": 0.3, "max": 0.6}]),
    (DETECTOR, {"MIN_UNCERTAIN_THRESHOLD": "0"}, "selectors[0].min", 0),
    (DETECTOR, {"MAX_UNCERTAIN_THRESHOLD": ".75"}, "selectors[0].max", 0.75),
    (DETECTOR, {}, "backend", {"driver": "onnx", "model": "follow"}),
    (DETECTOR, {"VERSION_CONTROL_DEFAULT": "PAUSE"}, "backend.model", "pause"),
    (DETECTOR, {"VERSION_CONTROL_DEFAULT": "PAUSE"}, "backend.remember", False),
    (DETECTOR, {"VERSION_CONTROL_DEFAULT": "follow_loop"}, "backend.model", "follow"),
    (DETECTOR, {"VERSION_CONTROL_DEFAULT": "follow_loop"}, "backend.remember", False),
    (DETECTOR, {"VERSION_CONTROL_DEFAULT": "whatever"}, "backend.model", "follow"),
    (DETECTOR, {}, "outbox", ABSENT),
    (DETECTOR, {"MAX_OUTBOX_SIZE": "1000"}, "outbox", {"max_count": 1000, "when_full": "drop_oldest"}),
    (DETECTOR, {"EXCLUSIVE_MODEL_BUILD": "1"}, "backend.exclusive", True),
    (DETECTOR, {"EXCLUSIVE_MODEL_BUILD": "0"}, "backend.exclusive", ABSENT),
    (DETECTOR, {"IOU_THRESHOLD": "0.45"}, "backend.iou", 0.45),
    (DETECTOR, {"CONF_THRESHOLD": "0.2"}, "backend.confidence", 0.2),
    (DETECTOR, {"SYNC_CYCLES": "6"}, "rollouts[0].report", "30 s"),
    (DETECTOR, {"USE_BACKDOOR_CONTROLS": "true"}, "platforms[0].backdoor", True),
    (TRAINER, {"USE_BACKDOOR_CONTROLS": "0"}, "platforms[0].backdoor", ABSENT),
    (DETECTOR, {}, "rollouts", [{"from": "loop", "to": "self", "every": "5 s"}]),
    (DETECTOR, {"WEIGHT_TYPE": "FP32"}, "rollouts[0].format", "onnx"),
    (DETECTOR, {"WEIGHT_TYPE": "fp16"}, "rollouts[0].format", "onnx_fp16"),
    (DETECTOR, {"WEIGHT_TYPE": "INT8"}, "rollouts[0].format", "onnx_int8"),
    (DETECTOR, {"NODE_VERSION": "7.1"}, "platforms[0].node_version", "7.1"),
    (DETECTOR, {"DATA_FOLDER": "/d"}, "sources", [{"driver": "learningloop", "path": "/d/outbox"}]),
    (DETECTOR, {}, "sinks", [{"driver": "learningloop"}]),
    (TRAINER, {}, "trainer", {"driver": "command"}),
    (TRAINER, {"INFERENCE_BATCH_SIZE": "4"}, "trainer.batch", 4),
    (TRAINER, {"RESTART_AFTER_TRAINING": "TRUE"}, "trainer.exit_after", True),
    (TRAINER, {"RESTART_AFTER_TRAINING": "false"}, "trainer.exit_after", ABSENT),
    (TRAINER, {"KEEP_OLD_TRAININGS": "1"}, "trainer.keep_old", True),
    (TRAINER, {"TRAINER_IDLE_TIMEOUT_SEC": "90.5"}, "trainer.idle_exit", 90.5),
    (TRAINER, {"TRAINER_IDLE_TIMEOUT_SEC": "0"}, "trainer.idle_exit", ABSENT),
    (TRAINER, {"TRAINING_SLOT_LOCK": "/tmp/gpu.lock"}, "trainer.slot", "/tmp/gpu.lock"),
    (TRAINER, {"VRAM_LIMIT_GB": "8.5"}, "trainer.env", {"VRAM_LIMIT_GB": "8.5"}),
    (TRAINER, {"VRAM_LIMIT_GB": "0"}, "trainer.env", ABSENT),
    (TRAINER, {"MAX_OUTBOX_SIZE": "0"}, "outbox", ABSENT),
    (ANNOTATOR, {}, "annotator", {"driver": "outline"}),
    (CONVERTER, {}, "conversions[0].from", "format_a"),
    (CONVERTER, {}, "conversions[0].to", "format_b"),
    (DETECTOR, {}, "node", {"data_dir": "/data"}),
    (TRAINER, {"DATA_FOLDER": "/var/lib/node"}, "node.data_dir", "/var/lib/node"),
    (DETECTOR, {"SKIP_REPEAT_ON_START": "True"}, "platforms[0].muted", True),
    (DETECTOR, {}, "platforms[0].muted", ABSENT),
    (DETECTOR, {}, "server.host", "0.0.0.0"),
    (DETECTOR, {}, "server.port", 80),
    (DETECTOR, {"NODE_HOST": "127.0.0.1"}, "server.host", "127.0.0.1"),
    (DETECTOR, {"NODE_PORT": "8004"}, "server.port", 8004),
    (ANNOTATOR, {}, "server.allow_anonymous", True),
    (ANNOTATOR, {}, "server.allowed_hosts", ["*"]),
]  # fmt: skip


@pytest.mark.parametrize(("role", "variables", "path", "value"), SAID)
def test_a_variable_becomes_the_key_that_says_the_same(
    role: Role, variables: dict[str, str], path: str, value: object
) -> None:
    assert at(configured(role, **variables).table, path) == value


WRONG: list[tuple[Role, dict[str, str], str, str]] = [
    (DETECTOR, {"LOOP_HOST": "ftp://loop.local"}, "LOOP_HOST", "a host"),
    (DETECTOR, {"LOOP_HOST": "loop.local/sub"}, "LOOP_HOST", "a host"),
    (DETECTOR, {"LOOP_HOST": "me:secret@loop.local"}, "LOOP_HOST", "a host without credentials"),
    (DETECTOR, {"LOOP_HOST": "https://me:secret@[::1"}, "LOOP_HOST", "a host without credentials"),
    (DETECTOR, {"LOOP_HOST": "loop.local:port"}, "LOOP_HOST", "a host"),
    (DETECTOR, {"LOOP_HOST": "http://"}, "LOOP_HOST", "a host"),
    (DETECTOR, {"LOOP_HOST": "[::1"}, "LOOP_HOST", "a host"),
    (DETECTOR, {"HOST": "loop local"}, "HOST", "a host"),
    (DETECTOR, {"LOOP_USERNAME": "me"}, "LOOP_PASSWORD", "LOOP_USERNAME is set and this is not"),
    (DETECTOR, {"LOOP_PASSWORD": "x"}, "LOOP_USERNAME", "LOOP_PASSWORD is set and this is not"),
    (DETECTOR, {"LOOP_ORGANIZATION": ""}, "LOOP_ORGANIZATION", "the id of its organization"),
    (DETECTOR, {"LOOP_PROJECT": " "}, "LOOP_PROJECT", "the id of its project"),
    (DETECTOR, {"LOOP_SSL_CERT_PATH": "/nowhere/ca.pem"}, "LOOP_SSL_CERT_PATH", "a file that is there"),
    (DETECTOR, {"MIN_UNCERTAIN_THRESHOLD": "30%"}, "MIN_UNCERTAIN_THRESHOLD", "a number from 0 to 1"),
    (DETECTOR, {"MIN_UNCERTAIN_THRESHOLD": "nan"}, "MIN_UNCERTAIN_THRESHOLD", "a number from 0 to 1"),
    (DETECTOR, {"MAX_UNCERTAIN_THRESHOLD": "1.1"}, "MAX_UNCERTAIN_THRESHOLD", "a number from 0 to 1"),
    (DETECTOR, {"MAX_UNCERTAIN_THRESHOLD": "0.2"}, "MIN_UNCERTAIN_THRESHOLD", "at most MAX_UNCERTAIN_THRESHOLD"),
    (DETECTOR, {"MAX_OUTBOX_SIZE": "0"}, "MAX_OUTBOX_SIZE", "a whole number, 1 or more"),
    (DETECTOR, {"MAX_OUTBOX_SIZE": "-5"}, "MAX_OUTBOX_SIZE", "a whole number, 1 or more"),
    (DETECTOR, {"MAX_OUTBOX_SIZE": "9" * 5000}, "MAX_OUTBOX_SIZE", "a whole number, 1 or more"),
    (DETECTOR, {"EXCLUSIVE_MODEL_BUILD": "perhaps"}, "EXCLUSIVE_MODEL_BUILD", "1 or true, 0 or false"),
    (DETECTOR, {"SYNC_CYCLES": "0"}, "SYNC_CYCLES", "a whole number, 1 or more"),
    (DETECTOR, {"USE_BACKDOOR_CONTROLS": "2"}, "USE_BACKDOOR_CONTROLS", "1 or true, 0 or false"),
    (DETECTOR, {"CONF_THRESHOLD": "2"}, "CONF_THRESHOLD", "a number from 0 to 1"),
    (DETECTOR, {"IOU_THRESHOLD": "x"}, "IOU_THRESHOLD", "a number from 0 to 1"),
    (DETECTOR, {"WEIGHT_TYPE": "FP8"}, "WEIGHT_TYPE", "one of FP32, FP16, INT8"),
    (DETECTOR, {"NODE_PORT": "65536"}, "NODE_PORT", "a whole number from 0 to 65535"),
    (DETECTOR, {"NODE_PORT": "٨٠"}, "NODE_PORT", "a whole number from 0 to 65535"),
    (DETECTOR, {"SKIP_REPEAT_ON_START": "later"}, "SKIP_REPEAT_ON_START", "1 or true, 0 or false"),
    (TRAINER, {"INFERENCE_BATCH_SIZE": "0"}, "INFERENCE_BATCH_SIZE", "a whole number, 1 or more"),
    (TRAINER, {"INFERENCE_BATCH_SIZE": "1.5"}, "INFERENCE_BATCH_SIZE", "a whole number, 1 or more"),
    (TRAINER, {"RESTART_AFTER_TRAINING": "2"}, "RESTART_AFTER_TRAINING", "1 or true, 0 or false"),
    (TRAINER, {"KEEP_OLD_TRAININGS": "x"}, "KEEP_OLD_TRAININGS", "1 or true, 0 or false"),
    (TRAINER, {"TRAINER_IDLE_TIMEOUT_SEC": "-1"}, "TRAINER_IDLE_TIMEOUT_SEC", "a number of seconds, 0 or more"),
    (TRAINER, {"TRAINER_IDLE_TIMEOUT_SEC": "inf"}, "TRAINER_IDLE_TIMEOUT_SEC", "a number of seconds, 0 or more"),
    (TRAINER, {"TRAINING_SLOT_LOCK": "/nowhere/gpu.lock"}, "TRAINING_SLOT_LOCK", "a file in a folder that is there"),
    (TRAINER, {"VRAM_LIMIT_GB": "much"}, "VRAM_LIMIT_GB", "a number of GB, 0 or more"),
    (TRAINER, {"UVICORN_RELOAD": "x"}, "UVICORN_RELOAD", "1 or true, 0 or false"),
]  # fmt: skip


@pytest.mark.parametrize(("role", "variables", "key", "words"), WRONG)
def test_a_wrong_value_is_named_with_what_was_expected(
    role: Role, variables: dict[str, str], key: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(role, **variables)
    assert caught.value.key == key
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_converter_must_be_told_what_it_converts() -> None:
    for edge in (None, "format_a", "-to-format_b"):
        with pytest.raises(ConfigError, match="--convert: expected what to convert, such as"):
            configured(CONVERTER, Choices(edge=edge))


def test_the_command_line_says_what_no_variable_does_and_goes_before_those_that_do() -> None:
    choices = Choices(name="gate-3", host="127.0.0.1", port=8004, backend="mock")
    table = configured(DETECTOR, choices, NODE_HOST="10.0.0.1", NODE_PORT="90").table
    assert table["node"]["name"] == "gate-3"
    assert (table["server"]["host"], table["server"]["port"]) == ("127.0.0.1", 8004)
    assert table["backend"]["driver"] == "mock"


values = st.text("abcdefghij0123456789.-", min_size=0, max_size=12).map(lambda text: text.strip(".-"))


@given(alias=st.sampled_from(ALIASES), value=values, other=values)
def test_the_name_counts_and_else_its_alias_and_whoever_relies_on_one_is_warned(
    alias: str, value: str, other: str
) -> None:
    partner = {"USERNAME": {"LOOP_PASSWORD": "x"}, "PASSWORD": {"LOOP_USERNAME": "me"}} if value or other else {}
    made = configured(TRAINER, **partner.get(alias, {}), **{f"LOOP_{alias}": value, alias: other})
    table = made.table["platforms"][0]
    counts = value or other
    match alias:
        case "HOST":
            assert table["url"] == (f"http://{counts}" if counts else "https://learning-loop.ai")
        case "PASSWORD":
            assert at(table, "password") == ({"env": f"LOOP_{alias}" if value else alias} if counts else ABSENT)
        case _:
            assert at(table, alias.lower()) == (counts or ABSENT)
    warned = [warning for warning in made.warnings if alias in re.findall(r"\w+", warning)]
    assert len(warned) == (value != other and bool(other))


def test_a_user_s_name_alone_is_the_shell_s_and_left_out() -> None:
    made = configured(USERNAME="me")
    assert [warning for warning in made.warnings if warning.startswith("USERNAME is left out")]


@given(secret=st.text(min_size=8, max_size=20).map(lambda text: f"k3y-{text}-k3y"))
def test_no_secret_is_in_what_comes_out(secret: str) -> None:
    for variables in ({"LOOP_PASSWORD": secret, "PASSWORD": "another-k3y"}, {"PASSWORD": secret}):
        made = configured(TRAINER, LOOP_HOST="loop.local", LOOP_USERNAME="me", **variables)
        assert "k3y" not in repr(made)


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:8080", "https://loop.local", "learning-loop.ai"])
def test_a_password_that_nobody_can_read_on_the_way_needs_no_warning(host: str) -> None:
    made = configured(LOOP_HOST=host, LOOP_USERNAME="me", LOOP_PASSWORD="x")
    assert at(made.table, "platforms[0].insecure") is ABSENT
    assert not [warning for warning in made.warnings if "password" in warning]


def test_a_password_that_goes_out_in_the_open_is_warned_about() -> None:
    made = configured(LOOP_HOST="loop.local", LOOP_USERNAME="me", LOOP_PASSWORD="x")
    assert at(made.table, "platforms[0].insecure") is True
    assert [warning for warning in made.warnings if "unencrypted" in warning]


def test_a_mode_that_is_none_follows_and_is_warned_about() -> None:
    assert [warning for warning in configured(VERSION_CONTROL_DEFAULT="1.2").warnings if "it follows" in warning]


def test_the_open_door_is_warned_about_once() -> None:
    for role in Role:
        assert len([warning for warning in configured(role).warnings if "anybody" in warning]) == 1


@pytest.mark.parametrize(
    ("ids", "name", "known"),
    [
        ({"my_detector": "1-2"}, None, "1-2"),
        ({"my_detector": "1-2"}, "gate-3", "1-2"),
        ({"my_detector": "1-2", "trainer": "3-4"}, "My Detector", "1-2"),
        ({"my_detector": "1-2", "trainer": "3-4"}, "gate-3", ABSENT),
        ({}, None, ABSENT),
        (["1-2"], None, ABSENT),
    ],
)
def test_the_loop_goes_on_knowing_a_node_by_its_id(
    tmp_path: Path, ids: object, name: str | None, known: object
) -> None:
    (tmp_path / "uuids.json").write_text(json.dumps(ids))
    assert (
        at(configured(DETECTOR, Choices(name=name), DATA_FOLDER=str(tmp_path)).table, "platforms[0].node_id") == known
    )


ALL = {
    "LOOP_HOST": "loop.local", "LOOP_USERNAME": "me", "LOOP_PASSWORD": "x", "LOOP_SSL_CERT_PATH": __file__,
    "MIN_UNCERTAIN_THRESHOLD": "0.1", "MAX_UNCERTAIN_THRESHOLD": "0.9", "VERSION_CONTROL_DEFAULT": "pause",
    "MAX_OUTBOX_SIZE": "10", "EXCLUSIVE_MODEL_BUILD": "1", "SYNC_CYCLES": "1", "NODE_VERSION": "7",
    "USE_BACKDOOR_CONTROLS": "1", "INFERENCE_BATCH_SIZE": "2", "RESTART_AFTER_TRAINING": "1",
    "KEEP_OLD_TRAININGS": "1", "TRAINER_IDLE_TIMEOUT_SEC": "60", "TRAINING_SLOT_LOCK": "/tmp/gpu.lock",
    "VRAM_LIMIT_GB": "8", "DATA_FOLDER": "/tmp/data", "SKIP_REPEAT_ON_START": "1", "NODE_HOST": "127.0.0.1",
    "NODE_PORT": "8004", "UVICORN_RELOAD": "1", "IOU_THRESHOLD": "0.5", "CONF_THRESHOLD": "0.3", "WEIGHT_TYPE": "INT8",
}  # fmt: skip


class ToB(Converter):
    source, target = "format_a", "format_b"

    def convert(self, source: Path, into: Path, calibration: Path | None, report: Report) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("variables", [{}, ALL], ids=["none", "all"])
def test_what_comes_out_is_a_configuration_that_a_node_takes(
    role: Role, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOP_PASSWORD", "x")
    table = configured(role, **variables).table
    if role is TRAINER:
        table["trainer"]["command"] = ["true"]  # whose default is a driver that needs one
    plan = resolve(config.parse(table), Registry({"converter": {"format_a-to-format_b": ToB}}))
    assert [part.driver.options.node_version for part in plan.platforms] == [variables.get("NODE_VERSION")]


def test_what_no_node_does_is_said_in_one_warning() -> None:
    for trainer, names in (("command", "UVICORN_RELOAD"), ("mine", "VRAM_LIMIT_GB, UVICORN_RELOAD")):
        made = configured(TRAINER, Choices(trainer=trainer), **ALL)
        (warning,) = [one for one in made.warnings if "nothing here does" in one]
        assert warning.endswith(f": {names}")
    made = configured(DETECTOR, Choices(backend="mine"), **ALL)
    (warning,) = [one for one in made.warnings if "nothing here does" in one]
    assert warning.endswith(": WEIGHT_TYPE, CONF_THRESHOLD, IOU_THRESHOLD, UVICORN_RELOAD")
    assert made.table["backend"].keys() == {"driver", "model", "remember", "exclusive"}
