"""A Learning Loop for tests, written from the protocol's text alone; it knows nothing of the plugin.

```python
async with LoopServer() as loop:
    loop.faults.script("upload", Answer(500), Reset())       # the next two; after them, the truth
    ...                                                      # a node is pointed at loop.host
    (upload,) = await loop.uploads.wait(1)
```
"""

from loop.books import Book
from loop.calls import EVENTS, REQUESTS
from loop.entries import Connection, DetectionsUpload, ModelUpload, Report, Upload
from loop.faults import NONSENSE, Answer, Call, Fault, LoseAnswer, Nonsense, Reset, Stall, too_many
from loop.samples import ANNOTATOR, ANNOTATOR_IMAGE, DEMO, MODEL_IDS, fill, mocked, picture
from loop.server import LoopServer
from loop.store import Project, Store, StoredImage, StoredModel, Training, category, zipped

__all__ = [
    "ANNOTATOR",
    "ANNOTATOR_IMAGE",
    "DEMO",
    "EVENTS",
    "MODEL_IDS",
    "NONSENSE",
    "REQUESTS",
    "Answer",
    "Book",
    "Call",
    "Connection",
    "DetectionsUpload",
    "Fault",
    "LoopServer",
    "LoseAnswer",
    "ModelUpload",
    "Nonsense",
    "Project",
    "Report",
    "Reset",
    "Stall",
    "Store",
    "StoredImage",
    "StoredModel",
    "Training",
    "Upload",
    "category",
    "fill",
    "mocked",
    "picture",
    "too_many",
    "zipped",
]
