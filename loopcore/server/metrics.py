"""The status as Prometheus text, format 0.0.4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_Line = tuple[Mapping[str, str], float]


def prometheus(status: Mapping[str, Any]) -> str:
    """What a Prometheus server scrapes, from the same figures as `/status`."""
    lines: list[str] = []
    for name, kind, text, samples in _families(status):
        lines += [f"# HELP loopcore_{name} {text}", f"# TYPE loopcore_{name} {kind}"]
        lines += [f"loopcore_{name}{_labels(labels)} {value:.15g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _families(status: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Sequence[_Line]]]:
    pipeline, outbox, sinks = status["pipeline"], status["outbox"], status["sinks"]
    yield "ready", "gauge", "Whether a model serves, or none is needed.", [({}, float(status["ready"]))]
    yield "uptime_seconds", "gauge", "Since the node started.", [({}, status["uptime_s"])]
    if model := status["model"]:
        labels = {"name": model["name"], "version": model["version"]}
        yield "model_info", "gauge", "The model that serves.", [(labels, 1)]
    yield "frames_total", "counter", "Frames handed in.", [({}, pipeline["frames"])]
    yield "frames_kept_total", "counter", "Frames that became samples.", [({}, pipeline["kept"])]
    yield "frames_unwanted_total", "counter", "Selected, but wanted by no sink.", [({}, pipeline["unwanted"])]
    failed = [({"error": error}, count) for error, count in sorted(pipeline["failed"].items())]
    yield "frames_failed_total", "counter", "Frames without an answer, by error.", failed
    yield "frames_waiting", "gauge", "Frames that wait for the model.", [({}, pipeline["waiting"])]
    yield "outbox_failing", "gauge", "Whether its disk fails.", [({}, float("error" in outbox))]
    if "error" in outbox:
        return
    yield "outbox_samples", "gauge", "Samples in the outbox.", [({}, outbox["count"])]
    yield "outbox_bytes", "gauge", "The images and records of these.", [({}, outbox["bytes"])]
    dropped = [({"rule": rule}, count) for rule, count in sorted(outbox["drops"].items())]
    yield "outbox_dropped_total", "counter", "Samples given up, by the operator's rule.", dropped
    for key, kind, text in (
        ("waiting", "gauge", "Samples that wait for this sink."),
        ("delivered", "counter", "Samples its peer has taken."),
        ("rejected", "counter", "Samples its peer has refused for good."),
    ):
        suffix = "_total" if kind == "counter" else ""
        yield f"sink_{key}{suffix}", kind, text, [({"sink": name}, sink[key]) for name, sink in sorted(sinks.items())]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
