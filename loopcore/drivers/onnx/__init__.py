"""The backend `onnx`: detectors, classifiers and heatmaps as ONNX graphs, read without code from the user."""

from loopcore.drivers.onnx.backend import OnnxBackend

__all__ = ["OnnxBackend"]
