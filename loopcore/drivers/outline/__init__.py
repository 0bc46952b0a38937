"""The annotator `outline`."""

from loopcore.drivers.outline.annotator import OutlineAnnotator, OutlineOptions

__all__ = ["OutlineAnnotator", "OutlineOptions"]
