"""For authors of plugins: a conformance suite for each kind of driver, and what a test needs around it.

```python
class TestMySink(SinkSuite):
    driver = MySink
```

The suites are base classes for pytest; their fixtures say what a driver is given, and are overridden where it needs
something else. They run on asyncio and on trio with anyio's pytest plugin, which needs nothing but to be installed; a
driver that must have asyncio overrides the fixture `anyio_backend`. Everything else here works without pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopcore.testing.drivers import AlwaysSelector as AlwaysSelector
    from loopcore.testing.drivers import FixedBackend as FixedBackend
    from loopcore.testing.drivers import FixedTrainer as FixedTrainer
    from loopcore.testing.drivers import MemorySink as MemorySink
    from loopcore.testing.drivers import MemorySource as MemorySource
    from loopcore.testing.drivers import NullBackend as NullBackend
    from loopcore.testing.pictures import make_jpeg as make_jpeg
    from loopcore.testing.pictures import make_picture as make_picture
    from loopcore.testing.pictures import make_sample as make_sample
    from loopcore.testing.pictures import make_snapshot as make_snapshot
    from loopcore.testing.platform import MemoryPlatform as MemoryPlatform
    from loopcore.testing.platform import make_model as make_model
    from loopcore.testing.servers import LoopbackServer as LoopbackServer
    from loopcore.testing.servers import Reply as Reply
    from loopcore.testing.servers import Request as Request
    from loopcore.testing.service import RecordingService as RecordingService
    from loopcore.testing.suites.annotator import AnnotatorSuite as AnnotatorSuite
    from loopcore.testing.suites.backend import BackendSuite as BackendSuite
    from loopcore.testing.suites.http_sink import HttpSinkSuite as HttpSinkSuite
    from loopcore.testing.suites.platform import PlatformSuite as PlatformSuite
    from loopcore.testing.suites.selector import SelectorSuite as SelectorSuite
    from loopcore.testing.suites.sink import SinkSuite as SinkSuite
    from loopcore.testing.suites.source import SourceSuite as SourceSuite
    from loopcore.testing.suites.trainer import TrainerSuite as TrainerSuite

_HOMES = {
    "AlwaysSelector": "drivers",
    "AnnotatorSuite": "suites.annotator",
    "BackendSuite": "suites.backend",
    "FixedBackend": "drivers",
    "FixedTrainer": "drivers",
    "HttpSinkSuite": "suites.http_sink",
    "LoopbackServer": "servers",
    "MemoryPlatform": "platform",
    "MemorySink": "drivers",
    "MemorySource": "drivers",
    "NullBackend": "drivers",
    "PlatformSuite": "suites.platform",
    "RecordingService": "service",
    "Reply": "servers",
    "Request": "servers",
    "SelectorSuite": "suites.selector",
    "SinkSuite": "suites.sink",
    "SourceSuite": "suites.source",
    "TrainerSuite": "suites.trainer",
    "make_jpeg": "pictures",
    "make_model": "platform",
    "make_picture": "pictures",
    "make_sample": "pictures",
    "make_snapshot": "pictures",
}

__all__ = [
    "AlwaysSelector",
    "AnnotatorSuite",
    "BackendSuite",
    "FixedBackend",
    "FixedTrainer",
    "HttpSinkSuite",
    "LoopbackServer",
    "MemoryPlatform",
    "MemorySink",
    "MemorySource",
    "NullBackend",
    "PlatformSuite",
    "RecordingService",
    "Reply",
    "Request",
    "SelectorSuite",
    "SinkSuite",
    "SourceSuite",
    "TrainerSuite",
    "make_jpeg",
    "make_model",
    "make_picture",
    "make_sample",
    "make_snapshot",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"loopcore.testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'loopcore.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
