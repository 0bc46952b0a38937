"""The names of the calls, by which faults are scripted and records are found."""

from __future__ import annotations

import re

SOCKET = "socket"
"""Every request of the socket's transport: its hand-shake, polling, and the upgrade."""

_PROJECT = r"/api/[^/]+/projects/[^/]+"

_PATTERNS = [
    (name, method, re.compile(pattern))
    for name, method, pattern in (
        (SOCKET, "GET|POST|OPTIONS", r"/ws/socket\.io/?"),
        ("login", "POST", r"/api/login"),
        ("logout", "POST", r"/api/logout"),
        ("status", "GET", r"/api/status"),
        ("projects", "GET", r"/api/projects"),
        ("generator", "POST", r"/api/[^/]+/projects/generator"),
        ("data", "GET", _PROJECT + r"/data"),
        ("images", "GET", _PROJECT + r"/images"),
        ("image", "GET", _PROJECT + r"/images/[^/]+/main"),
        ("upload", "POST", _PROJECT + r"/images"),
        ("detectors", "POST", _PROJECT + r"/detectors"),
        ("target", "GET", _PROJECT + r"/deployment/target"),
        ("models", "GET", _PROJECT + r"/models"),
        ("download", "GET", _PROJECT + r"/models/[^/]+/[^/]+/file"),
        ("publish_training", "PUT", _PROJECT + r"/trainings/[^/]+/models/latest/[^/]+/file"),
        ("publish_model", "PUT", _PROJECT + r"/models/[^/]+/[^/]+/file"),
        ("detections", "POST", _PROJECT + r"/detections"),
        ("trainings", "GET", _PROJECT + r"/trainings"),
        ("project", "GET", _PROJECT),
        ("delete", "DELETE", _PROJECT),
        ("create_model", "POST", _PROJECT + r"/[^/]+"),
    )
]

REQUESTS = tuple(name for name, _, _ in _PATTERNS)
EVENTS = (
    "update_trainer",
    "update_training",
    "update_annotation_node",
    "update_segmentation_annotation",
    "update_detector",
)
"""What a node emits (3.4)."""


def name_of(method: str, path: str) -> str:
    """The call's name; `?` for one that no release of the clients makes."""
    for name, methods, pattern in _PATTERNS:
        if re.fullmatch(methods, method) and pattern.fullmatch(path):
            return name
    return "?"
