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
    from loopcore.testing.drivers import MemorySink as MemorySink
    from loopcore.testing.drivers import MemorySource as MemorySource
    from loopcore.testing.drivers import NullBackend as NullBackend
    from loopcore.testing.pictures import make_jpeg as make_jpeg
    from loopcore.testing.pictures import make_picture as make_picture
    from loopcore.testing.pictures import make_sample as make_sample
    from loopcore.testing.servers import LoopbackServer as LoopbackServer
    from loopcore.testing.servers import Reply as Reply
    from loopcore.testing.servers import Request as Request
    from loopcore.testing.service import RecordingService as RecordingService
    from loopcore.testing.suites.backend import BackendSuite as BackendSuite
    from loopcore.testing.suites.http_sink import HttpSinkSuite as HttpSinkSuite
    from loopcore.testing.suites.selector import SelectorSuite as SelectorSuite
    from loopcore.testing.suites.sink import SinkSuite as SinkSuite
    from loopcore.testing.suites.source import SourceSuite as SourceSuite

_HOMES = {
    "AlwaysSelector": "drivers",
    "BackendSuite": "suites.backend",
    "FixedBackend": "drivers",
    "HttpSinkSuite": "suites.http_sink",
    "LoopbackServer": "servers",
    "MemorySink": "drivers",
    "MemorySource": "drivers",
    "NullBackend": "drivers",
    "RecordingService": "service",
    "Reply": "servers",
    "Request": "servers",
    "SelectorSuite": "suites.selector",
    "SinkSuite": "suites.sink",
    "SourceSuite": "suites.source",
    "make_jpeg": "pictures",
    "make_picture": "pictures",
    "make_sample": "pictures",
}

__all__ = [
    "AlwaysSelector",
    "BackendSuite",
    "FixedBackend",
    "HttpSinkSuite",
    "LoopbackServer",
    "MemorySink",
    "MemorySource",
    "NullBackend",
    "RecordingService",
    "Reply",
    "Request",
    "SelectorSuite",
    "SinkSuite",
    "SourceSuite",
    "make_jpeg",
    "make_picture",
    "make_sample",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"loopcore.testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'loopcore.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
