"""What the plugin adds to a node by being named in its TOML: the detector's own server (`learning-loop.md` 4)."""

from __future__ import annotations

from collections.abc import Sequence

from loopcore import Mount, hookimpl
from loopcore.abc import Driver, Service, Trainer
from loopcore.types import RGB
from loopcore_learningloop.platform import Platform


@hookimpl
def loopcore_mounts(service: Service, drivers: Sequence[Driver]) -> Sequence[Mount]:
    """The routes and events that the reference's clients know."""
    from loopcore_learningloop import backdoor
    from loopcore_learningloop.detector import Controls, Detector, Events, Rest, Sockets
    from loopcore_learningloop.detector.sockets import PATH

    platforms = [driver for driver in drivers if isinstance(driver, Platform)]
    is_open = any(platform.options.backdoor for platform in platforms)
    detector, controls = Detector(service), Controls(service, platforms)
    rest = Rest(detector, controls, backdoor=is_open)
    sockets = Sockets(Events(detector, controls))
    mounts = [*(Mount(path=path, app=rest) for path in rest.paths), Mount(path=PATH, app=sockets, run=sockets.run)]
    if is_open and any(isinstance(driver, Trainer) for driver in drivers):
        mounts.append(Mount(path=backdoor.PATH, app=backdoor.ForceStatus(platforms)))
    return mounts


@hookimpl
def loopcore_decode_frame(data: bytes) -> RGB | None:
    """Pictures that the reference reads and the core does not."""
    from loopcore_learningloop.detector.pictures import decode_other

    return decode_other(data)
