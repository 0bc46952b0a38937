"""Nodes of each role, and how each of their calls is brought about; what comes of it goes into the table of `cells`."""

from tracks.annotator import Annotator
from tracks.converter import Converter
from tracks.detector import Detector, OldDetector
from tracks.track import Track
from tracks.trainer import Talker, Trainer

__all__ = ["Annotator", "Converter", "Detector", "OldDetector", "Talker", "Track", "Trainer"]
