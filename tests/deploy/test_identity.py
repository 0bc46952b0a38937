"""A model is the same model by more than its version."""

from __future__ import annotations

from typing import Any

import pytest

from loopcore.deploy.identity import contradicts, key_of, made_from, same_model, shown
from loopcore.types import ModelInfo


def info(version: str = "1", format: str = "onnx", id: str = "", **extra: Any) -> ModelInfo:
    return ModelInfo(name="gate", version=version, format=format, id=id, extra=extra)


A, B = "a" * 64, "b" * 64
FROM_A = made_from(info(format="int8", id=B), [info(format="onnx", id=A)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (info(acme={"id": "x"}), info("2", acme={"id": "x"})),
        (info(id=A, acme={"id": "x"}), info(format="int8", id=B, acme={"id": "x"})),
        (info(id=A), info("2", id=A)),
        (info(), info(format="int8")),
        (info(id=A), info(format="int8", id=B)),
        (info(id=A), FROM_A),
        (made_from(info(id=B), [info()]), info()),
    ],
    ids=["platform", "platform over files", "files", "version", "other format", "made from", "platform tells no id"],
)
def test_the_same_model(one: ModelInfo, other: ModelInfo) -> None:
    assert same_model(one, other)
    assert same_model(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (info(acme={"id": "x"}), info(acme={"id": "y"})),
        (info(id=A), info(id=B)),
        (info(id="c" * 64), FROM_A),
        (info("1"), info("2")),
        (info("1", id=A), info("2", format="int8", id=B)),
    ],
    ids=["trained anew under the same version", "other files", "made from another", "version", "version and format"],
)
def test_another_model(one: ModelInfo, other: ModelInfo) -> None:
    assert not same_model(one, other)
    assert not same_model(other, one)


def test_what_is_made_of_what_was_made_remembers_both() -> None:
    engine = made_from(info(format="engine", id="c" * 64), [FROM_A])
    assert same_model(engine, info(id=A))
    assert same_model(engine, info(format="int8", id=B))


def test_what_a_package_says_itself_goes_before_what_its_source_says() -> None:
    made = made_from(info(id=B, acme={"id": "x", "note": "own"}), [info(acme={"id": "x"}, other=1)])
    assert made.extra == {"acme": {"id": "x", "note": "own"}, "other": 1, "origin": []}


def test_only_what_both_say_can_contradict() -> None:
    assert contradicts(info(acme={"id": "x"}), info(acme={"id": "y"}))
    assert contradicts(info(id=A), info(id=B))
    assert not contradicts(info(id=A), info(format="int8", id=B))
    assert not contradicts(info("1", acme={"id": "x"}), info("2", id=A))


def test_the_key_of_a_model_does_not_depend_on_what_else_is_said_of_it() -> None:
    assert key_of(info(acme={"id": "x", "created": 1})) == key_of(info("2", id=A, acme={"id": "x", "created": 2}))
    assert (
        len({key_of(one) for one in (info(acme={"id": "x"}), info(acme={"id": "y"}), info(id=A), info(), info("2"))})
        == 5
    )


def test_people_see_the_platform_s_id_where_there_is_one() -> None:
    assert shown(info(id=A, acme={"id": "x"}))["id"] == "x"
    assert shown(info(id=A)) == {"name": "gate", "version": "1", "id": A}
