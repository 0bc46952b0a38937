"""A model that fails a rule does not serve, and the rule is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from anyio import to_thread

from loopcore.config import GateTable
from loopcore.deploy.gate import Gate, Verdict, WarmUp, gate_for
from loopcore.errors import BackendError, IntegrityError, ModelError, NotReadyError, PluginError
from loopcore.options import Options
from loopcore.testing import FixedBackend, NullBackend, make_model
from loopcore.types import Box, Classification, Detection, Frame, Model, Point, Prediction, Segmentation

pytestmark = pytest.mark.anyio

INFINITE = float("inf")


class Finding(NullBackend):
    """Finds this in every frame."""

    found: Detection

    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        return [Prediction(detections=(self.found,)) for _ in frames]


class Failing(NullBackend):
    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        raise BackendError("shapes do not fit")


class Cramped(NullBackend):
    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        raise NotReadyError("no room")


class Silent(NullBackend):
    def infer(self, frames: Sequence[Frame]) -> Sequence[Prediction]:
        return []


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return make_model(tmp_path / "model")


def gate(**table: tuple[str, ...]) -> Gate:
    return gate_for(GateTable(**table), to_thread.run_sync)


async def test_a_sound_model_passes_every_rule(model: Model) -> None:
    assert await gate(labels=("cat",)).look(model) == [Verdict("files", passed=True), Verdict("labels", passed=True)]
    backend = FixedBackend(FixedBackend.Options(), model)
    assert await gate().test(backend) == [Verdict("warm-up", passed=True)]


async def test_a_changed_file_is_named_and_says_nothing_of_the_model(model: Model) -> None:
    (model.path / "weights.bin").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"weights.bin of made 1 has another size") as caught:
        await gate().look(model)
    assert caught.value.rule is None


async def test_a_link_in_place_of_a_file_is_refused(model: Model, tmp_path: Path) -> None:
    (model.path / "weights.bin").rename(tmp_path / "elsewhere")
    (model.path / "weights.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"the rule 'files' refuses made 1: .* is a link") as caught:
        await gate().look(model)
    assert caught.value.rule == "files"


async def test_a_device_without_room_says_nothing_of_the_model(model: Model) -> None:
    with pytest.raises(NotReadyError, match="no room"):
        await gate().test(Cramped(Options(), model))


async def test_a_model_without_the_labels_that_are_needed_is_refused(model: Model) -> None:
    with pytest.raises(ModelError, match="it lacks the labels 'fox', 'owl'") as caught:
        await gate(labels=("fox", "cat", "owl")).look(model)
    assert caught.value.rule == "labels"


@pytest.mark.parametrize(
    "found",
    [
        Box(label="a", x=INFINITE, y=0, width=1, height=1),
        Box(label="a", x=0, y=0, width=float("nan"), height=1),
        Box(label="a", x=0, y=0, width=1, height=1, confidence=float("nan")),
        Point(label="a", x=0, y=-INFINITE),
        Segmentation(label="a", points=((0, 0), (1, 1), (INFINITE, 0))),
        Classification(label="a", confidence=float("nan")),
    ],
)
async def test_numbers_that_are_not_finite_are_refused(model: Model, found: Detection) -> None:
    backend = type("Broken", (Finding,), {"found": found})(Options(), model)
    with pytest.raises(ModelError, match="not finite") as caught:
        await gate().test(backend)
    assert caught.value.rule == "warm-up"


async def test_a_model_that_fails_its_warm_up_is_refused_with_the_reason(model: Model) -> None:
    with pytest.raises(ModelError, match="shapes do not fit") as caught:
        await gate().test(Failing(Options(), model))
    assert caught.value.rule == "warm-up"


async def test_a_backend_that_gives_no_answer_is_to_blame_and_not_the_model(model: Model) -> None:
    with pytest.raises(PluginError, match="0 predictions"):
        await gate().test(Silent(Options(), model))


async def test_no_rule_is_asked_after_a_refusal(model: Model) -> None:
    (model.path / "weights.bin").unlink()
    (model.path / "weights.bin").symlink_to(model.path / "model.json")
    with pytest.raises(ModelError) as caught:
        await gate(labels=("fox",)).look(model)
    assert caught.value.rule == "files"


async def test_rules_about_a_loaded_model_wait_until_it_is_loaded(model: Model) -> None:
    assert await Gate([WarmUp()], to_thread.run_sync).look(model) == []
