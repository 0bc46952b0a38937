"""Trainings in the Loop's words and in ours: what `begin_training` asks for, and what is told of it (3.3, 3.5, 9.1)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec

from loopcore.abc import Job, JobState, JobStep, TrainerInfo
from loopcore_learningloop import wire
from loopcore_learningloop.translation import Categories

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_SINCE_0_13 = frozenset({"hyperparameters", "model_variant", "base_model_uuid"})

STATES: Mapping[JobStep, tuple[str, str]] = {
    JobStep.ACCEPTED: ("initialized", "initialized"),
    JobStep.COLLECTING: ("data_downloading", "data_downloaded"),
    JobStep.FETCHING: ("train_model_downloading", "train_model_downloaded"),
    JobStep.TRAINING: ("running", "training_finished"),
    JobStep.SCORING: ("confusion_matrix_syncing", "confusion_matrix_synced"),
    JobStep.PUBLISHING: ("train_model_uploading", "train_model_uploaded"),
    JobStep.PREDICTING: ("detecting", "detected"),
    JobStep.REPORTING: ("detection_uploading", "ready_for_cleanup"),
    JobStep.ENDED: ("ready_for_cleanup", "idle"),
}
"""What a step is called while it is done, and once it is."""

ERRORS: Mapping[JobStep, str] = {
    JobStep.ACCEPTED: "prepare",
    JobStep.COLLECTING: "prepare",
    JobStep.FETCHING: "download_model",
    JobStep.TRAINING: "run_training",
    JobStep.SCORING: "sync_confusion_matrix",
    JobStep.PUBLISHING: "upload_model",
    JobStep.PREDICTING: "detecting",
    JobStep.REPORTING: "upload_detections",
}
"""Under which key the error of a step is told."""

_WITH_PROGRESS = frozenset({JobStep.COLLECTING, JobStep.TRAINING, JobStep.PREDICTING})


def job_of(
    organization: str, project: str, config: Mapping[str, Any], *, pretrained: Collection[str], begun: datetime
) -> Job:
    """The job that `begin_training` describes, in the words of any release.

    Args:
        organization: Whose project.
        project: Whose images.
        config: What is to be trained.
        pretrained: What the trainer can start from, besides the Loop's models.
        begun: Now.

    Raises:
        msgspec.ValidationError: Something is missing or of the wrong type; the message has the path to it.
    """
    if _SINCE_0_13.isdisjoint(config) and "id" in config:
        old = msgspec.convert(config, wire.OldBeginTraining)
        base, variant = (old.id, "") if _UUID.fullmatch(old.id) else (None, old.id)
        wishes: dict[str, Any] = {"resolution": old.resolution, "flip_rl": old.flip_rl, "flip_ud": old.flip_ud}
        categories, number = old.categories, old.training_number
    else:
        new = msgspec.convert(config, wire.BeginTraining)
        base, variant, wishes = new.base_model_uuid or None, new.model_variant, new.hyperparameters
        categories, number = new.categories, new.training_number
    wanted = base or variant or None
    if base is not None and not _UUID.fullmatch(base):
        base = None
    if base is None and variant in pretrained:
        base = variant
    return Job(
        id=job_id(organization, project, number),
        labels=tuple(dict.fromkeys(category.name for category in categories)),
        base=base,
        parameters=wishes,
        context={
            "organization": organization,
            "project": project,
            "training_number": number,
            "wanted_base": wanted,
            "categories": msgspec.to_builtins(categories),
            "begun": begun.isoformat(),
        },
        project=f"{organization}/{project}",
    )


def starts_otherwise(job: Job) -> bool:
    """Whether what the Loop names to start from is nothing that the trainer has."""
    return bool(job.base != job.context["wanted_base"])


def job_id(organization: str, project: str, number: int) -> str:
    """A name that is a file's, too; ids that are not, or are long, are told apart by a hash."""
    if _PLAIN.fullmatch(organization) and _PLAIN.fullmatch(project) and number >= 0:
        return f"{organization}.{project}.{number}"
    whose = sha256(f"{organization}\0{project}\0{number}".encode()).hexdigest()[:16]
    return f"training.{whose}"


def project_of(job: Job) -> wire.Context:
    """Whose images a job is about."""
    return wire.Context(organization=str(job.context["organization"]), project=str(job.context["project"]))


def categories_of(job: Job) -> Categories:
    """The categories that a training was begun with."""
    return Categories(msgspec.convert(job.context["categories"], list[wire.Category]))


def status_of(
    state: JobState | None, info: TrainerInfo, *, node_id: str, blocked: bool, last: JobStep, now: datetime
) -> wire.TrainerStatus:
    """A trainer's status.

    Args:
        state: The job at work, or the last one if it has failed.
        info: What the trainer is.
        node_id: The id under which the Loop lists it.
        blocked: No training could begin now.
        last: The step that was done last before a job's end: there its error came up, if it has ended with one.
        now: Tells how long the training has been going on.
    """
    told = wire.TrainerStatus(
        id=node_id,
        name=info.node,
        state="blocked" if blocked else "idle",
        pretrained_models=[wire.PretrainedModel(name=name, label=name) for name in info.pretrained],
        architecture=info.architecture,
    )
    if state is None:
        return told
    if state.error:
        told.errors = {ERRORS[last if state.step is JobStep.ENDED else state.step]: state.error}
    if state.step is JobStep.ENDED and state.finished:
        return told
    told.state = "waiting_for_slot" if state.waiting else STATES[state.step][state.finished]
    told.context = project_of(state.job)
    told.uptime = max(0.0, (now - datetime.fromisoformat(state.job.context["begun"])).total_seconds())
    if state.step in _WITH_PROGRESS and not state.finished:
        told.progress = state.progress
    return told


def figures_of(state: JobState, *, node_id: str, node: str) -> wire.TrainingOut:
    """What `update_training` tells; labels that the project does not have are left out."""
    told = wire.TrainingOut(
        trainer_id=node_id,
        trainer_name=node,
        confusion_matrix={},
        train_image_count=state.images.get("train", 0) + state.images.get("val", 0),
        test_image_count=state.images.get("test", 0),
        hyperparameters=state.job.parameters,
        training_number=state.job.context["training_number"],
    )
    if state.score is not None:
        categories = categories_of(state.job)
        ids = {label: categories.id_of(label, "box") for label in state.score.confusion}
        told.confusion_matrix = {
            id_: wire.Confusion(*state.score.confusion[label]) for label, id_ in ids.items() if id_ is not None
        }
        told.best_epoch = state.score.epoch
    return told
