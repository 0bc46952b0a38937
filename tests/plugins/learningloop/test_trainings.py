"""Trainings in the words of all releases, and what a trainer's status says."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from loopcore_learningloop.trainings import ERRORS, STATES, job_id, job_of, status_of
from workers import BEGUN, FLOE, INFO, MODEL, NEW, OLD, ORGANIZATION, PROJECT, SEAL, job

from loopcore.abc import Job, JobState, JobStep

# What a training is


def test_new_words_make_a_job() -> None:
    made = job_of("zoo", "penguins", NEW, pretrained=("small",), begun=BEGUN)
    assert made == Job(
        id="zoo.penguins.7",
        labels=("seal", "floe"),
        base="small",
        parameters=NEW["hyperparameters"],
        context=made.context,
        project="zoo/penguins",
    )
    assert json.loads(json.dumps(made.context))["categories"] == [SEAL, FLOE]


def test_old_words_make_a_job() -> None:
    made = job_of("zoo", "penguins", OLD, pretrained=(), begun=BEGUN)
    assert (made.base, made.labels) == (MODEL, ("seal",))
    assert made.parameters == {"resolution": 640, "flip_rl": True, "flip_ud": False}


def test_old_words_may_name_a_pretrained_model() -> None:
    assert job_of("zoo", "penguins", OLD | {"id": "small"}, pretrained=("small",), begun=BEGUN).base == "small"


def test_words_of_all_releases_count_as_the_new_ones() -> None:
    made = job_of("zoo", "penguins", OLD | NEW, pretrained=("small",), begun=BEGUN)
    assert (made.base, made.parameters) == ("small", NEW["hyperparameters"])


@pytest.mark.parametrize(
    ("base", "variant", "expected"),
    [
        (MODEL, "small", MODEL),
        (MODEL, "", MODEL),
        (None, "", None),
        ("", "", None),
        ("../x", "", None),
        (None, "huge", None),
    ],
)
def test_a_job_starts_from_what_is_there(base: str | None, variant: str, expected: str | None) -> None:
    config = NEW | {"base_model_uuid": base, "model_variant": variant}
    assert job_of("zoo", "penguins", config, pretrained=("small",), begun=BEGUN).base == expected


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != key}


@pytest.mark.parametrize(
    ("config", "path"),
    [
        *[(without(NEW, gone), f"`{gone}`") for gone in NEW if gone != "base_model_uuid"],
        *[(without(OLD, gone), f"`{gone}`") for gone in OLD if gone != "id"],
        ({}, "`categories`"),
        (NEW | {"training_number": "7"}, r"\$\.training_number"),
        (NEW | {"training_number": 7.5}, r"\$\.training_number"),
        (NEW | {"categories": [SEAL, {"id": 1, "name": "x"}]}, r"\$\.categories\[1\]\.id"),
        (NEW | {"categories": [SEAL | {"type": "cube"}]}, r"\$\.categories\[0\]\.type"),
        (NEW | {"hyperparameters": []}, r"\$\.hyperparameters"),
        (NEW | {"model_variant": None}, r"\$\.model_variant"),
        (OLD | {"flip_rl": "yes"}, r"\$\.flip_rl"),
    ],
)  # fmt: skip
def test_malformed_training_is_refused_with_the_path(config: dict[str, Any], path: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=path):
        job_of("zoo", "penguins", config, pretrained=(), begun=BEGUN)


@pytest.mark.parametrize("odd", ["../../etc", "a/b", "Zoo Königsberg", "", ".", "x" * 500, "a\0b", "a.b"])
def test_name_of_a_job_is_a_file_name_whatever_the_loop_says(odd: str) -> None:
    names = {job_id(odd, "p", 1), job_id("p", odd, 1), job_id(odd, odd, 1), job_id(odd, "p", 2)}
    assert len(names) == 4
    assert all(name.replace(".", "").replace("-", "").isalnum() and len(name) < 128 for name in names)


def test_names_of_jobs_are_told_apart() -> None:
    assert job_id("a", "b-c", 1) != job_id("a-b", "c", 1)
    assert job_id("a", "b", -1) != job_id("a", "b", 1)


# What the Loop is told


def told(state: JobState | None, *, blocked: bool = False, last: JobStep = JobStep.TRAINING) -> Any:
    now = BEGUN + timedelta(seconds=90)
    return status_of(state, INFO, node_id="id", blocked=blocked, last=last, now=now)


def test_idle_trainer_shows_what_it_is() -> None:
    status = msgspec.to_builtins(told(None))
    assert status == {
        "id": "id", "name": "gate-3", "state": "idle", "uptime": None, "errors": {}, "progress": None,
        "pretrained_models": [{"name": name, "label": name, "description": ""} for name in ("small", "large")],
        "architecture": "tiny", "context": None,
    }  # fmt: skip


def test_trainer_without_the_slot_is_blocked() -> None:
    assert told(None, blocked=True).state == "blocked"
    assert told(JobState(job=job(), step=JobStep.TRAINING, waiting=True)).state == "waiting_for_slot"


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("step", [step for step in JobStep if step is not JobStep.ENDED])
def test_step_has_the_names_of_the_reference(step: JobStep, finished: bool) -> None:
    status = told(JobState(job=job(), step=step, finished=finished, progress=0.5))
    assert status.state == STATES[step][finished]
    assert status.context == msgspec.convert({"organization": ORGANIZATION, "project": PROJECT}, type(status.context))
    assert status.uptime == 90
    assert status.progress == (0.5 if step in {"collecting", "training", "predicting"} and not finished else None)


@pytest.mark.parametrize("step", ERRORS)
def test_error_has_the_key_of_its_step(step: JobStep) -> None:
    assert told(JobState(job=job(), step=step, error="no")).errors == {ERRORS[step]: "no"}
    ended = told(JobState(job=job(), step=JobStep.ENDED, finished=True, error="no"), last=step)
    assert (ended.state, ended.errors, ended.context) == ("idle", {ERRORS[step]: "no"}, None)


def test_job_that_is_cleaned_up_is_not_idle_yet() -> None:
    assert told(JobState(job=job(), step=JobStep.ENDED)).state == "ready_for_cleanup"
