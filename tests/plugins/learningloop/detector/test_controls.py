"""What a node's status is in the words of the reference's clients."""

from __future__ import annotations

from typing import Any

import pytest
from loopcore_learningloop.detector import Controls
from loopcore_learningloop.detector.refusal import Refusal

from loopcore.errors import AuthError, ConversionError, ModelError, NotReadyError, RemoteError, RetryableError
from loopcore.testing import RecordingService
from loopcore.types import ModelInfo

pytestmark = pytest.mark.anyio

TARGET = {"name": "penguins", "version": "1.2", "id": "i"}
ROLLOUT = {"from": "loop", "to": "self", "target": TARGET, "state": "fetching", "error": None}
OTHER = {"from": "loop", "to": "studio", "target": {"version": "9"}, "state": "current", "error": None}


class Told(RecordingService):
    """A node with this status."""

    def __init__(self, status: dict[str, Any], version: str | None = "1.1", failure: Exception | None = None) -> None:
        super().__init__()
        self._status = status
        self._version = version
        self._failure = failure
        self.chosen: list[str] = []

    def model(self) -> ModelInfo | None:
        if self._version is None:
            return None
        return ModelInfo(name="penguins", version=self._version, format="onnx", labels=("cup",), id="abc")

    async def status(self) -> dict[str, Any]:
        return self._status

    async def set_model(self, choice: str) -> None:
        if self._failure:
            raise self._failure
        self.chosen.append(choice)


@pytest.mark.parametrize(
    ("status", "target", "loop", "control"),
    [
        ({}, "None", "None", "follow_loop"),
        ({"model_choice": "follow", "rollouts": []}, "None", "None", "follow_loop"),
        ({"model_choice": "follow", "rollouts": [OTHER, ROLLOUT]}, "1.2", "1.2", "follow_loop"),
        ({"model_choice": "follow", "rollouts": [ROLLOUT | {"target": None}]}, "None", "None", "follow_loop"),
        ({"model_choice": "pause", "rollouts": [ROLLOUT]}, "1.2", "1.2", "pause"),
        ({"model_choice": "1.0", "rollouts": [ROLLOUT]}, "1.0", "1.2", "specific_version"),
        ({"model_choice": "/models/x.onnx", "model": {"version": "1.1"}, "rollouts": [ROLLOUT]}, "1.1", "1.2", "pause"),
        ({"model_choice": "x.onnx", "model": None}, "None", "None", "pause"),
    ],
)  # fmt: skip
async def test_versions_are_told_as_the_reference_tells_them(
    status: dict[str, Any], target: str, loop: str, control: str
) -> None:
    controls = Controls(Told(status | {"models": ["1.1", "1.0"]}), [])
    assert await controls.model_version() == {
        "current_version": "1.1", "target_version": target, "loop_version": loop, "local_versions": ["1.1", "1.0"],
        "version_control": control,
    }  # fmt: skip
    about = await controls.about()
    assert (about["target_model"], about["version_control"]) == (None if target == "None" else target, control)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("fetching", "Updating model to version 1.2"),
        ("converting", "Updating model to version 1.2"),
        ("checking", "Updating model to version 1.2"),
        ("refused", "No model loaded"),
        ("waiting", "No model loaded"),
    ],
)
async def test_info_says_whether_a_model_is_on_its_way(state: str, words: str) -> None:
    controls = Controls(Told({"rollouts": [ROLLOUT | {"state": state}]}, version=None), [])
    assert await controls.info() == {"status": words}
    assert (await controls.about())["model_info"] is None


async def test_a_model_from_elsewhere_has_its_labels_as_categories() -> None:
    model = await Controls(Told({}), []).info()
    assert (model["id"], model["version"], model["organization"], model["project"]) == ("abc", "1.1", "", "")
    assert [(one["id"], one["name"]) for one in model["categories"]] == [("", "cup")]


@pytest.mark.parametrize(
    ("word", "choice"), [("follow_loop", "follow"), ("pause", "pause"), ("1.0", "1.0"), ("12", "12")]
)
async def test_a_choice_is_handed_on_in_our_words(word: str, choice: str) -> None:
    service = Told({})
    await Controls(service, []).set_model_version(word)
    assert service.chosen == [choice]


@pytest.mark.parametrize("word", ["follow", "latest", "v1", "1.", ".1", "1.0 ", "/etc/x.onnx"])
async def test_what_is_no_version_is_not_handed_on(word: str) -> None:
    service = Told({})
    with pytest.raises(Refusal, match="Invalid version number") as caught:
        await Controls(service, []).set_model_version(word)
    assert caught.value.status == 400
    assert not service.chosen


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ModelError("no model of version '7'"), "no model of version '7'"),
        (ConversionError("no way"), "no way"),
        (RemoteError("gone"), "Failed to load models from learning loop: gone"),
        (RetryableError("gone"), "Failed to load models from learning loop: gone"),
        (AuthError("no"), "Failed to load models from learning loop: no"),
    ],
)
async def test_a_choice_that_fails_is_a_refusal_in_one_sentence(failure: Exception, words: str) -> None:
    with pytest.raises(Refusal) as caught:
        await Controls(Told({}, failure=failure), []).set_model_version("7")
    assert (str(caught.value), caught.value.status) == (words, 400)


async def test_a_node_without_a_backend_says_so() -> None:
    with pytest.raises(NotReadyError):
        await Controls(Told({}, failure=NotReadyError("this node has no [backend]")), []).set_model_version("7")


@pytest.mark.parametrize(("held", "told"), [(False, "idle"), (True, "detecting")])
async def test_updates_that_others_hold_show_as_detecting(held: bool, told: str) -> None:
    assert await Controls(Told({"updates_held": held}), []).operation_mode() == told
