"""Any history of an outbox, and what a power cut at any point of it may leave."""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec import Struct, field

from loopcore.cli.torture.promises import BrokenPromiseError
from loopcore.cli.torture.recording import Trouble
from loopcore.cli.torture.rig import SINKS, Rig, Rules, Wish, World, sample
from loopcore.cli.torture.survey import Survey
from loopcore.cli.torture.volume import Image, Volume

_TORN = 20
"""How often one point of a history is torn at random, where there is something to tear."""
_CUTS = 3
"""How often the power is cut in one history."""
_NESTED = 2
"""How many power cuts there are while the outbox recovers from the first."""


SAMPLES = st.builds(
    sample,
    st.integers(0, 7),
    size=st.sampled_from([40, 700, 700, 3000, 21_000]),
    tags=st.sampled_from([(), (), ("x",), ("y",)]),
    truth=st.sampled_from([None, None, True, False]),
    urgent=st.sampled_from([False, False, False, True]),
)
RULES = st.builds(
    Rules,
    max_bytes=st.sampled_from([1 << 20, 1 << 20, 60_000]),
    max_count=st.sampled_from([None, None, 4]),
    max_age=st.sampled_from([None, None, 500.0]),
    when_full=st.sampled_from(["reject", "drop_oldest", "drop_least_valuable"]),
    rejected_max_bytes=st.sampled_from([1 << 20, 6000]),
    max_backlog=st.sampled_from([None, 2]),
    segment_bytes=st.sampled_from([1500, 5000, 1 << 16]),
)
TROUBLE: st.SearchStrategy[Trouble | int | None] = (
    st.none()
    | st.none()
    | st.integers(0, 6)
    | st.builds(
        Trouble,
        st.sampled_from(
            ["open", "write", "sync", "sync", "truncate", "sync_folder", "commit", "rename", "unlink", "mkdir"]
        ),
        st.sampled_from([errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS]),
        st.integers(0, 2),
        st.booleans(),
    )
)
"""Most turns have none; a number is that of the step after which the process is killed."""


class Tally(Struct):
    """What was looked at.

    Attributes:
        looked: Points of a history and states that a power cut there may leave.
        states: The digests of the states.
        histories: How many histories there were.
        surveys: What was found in each state, by configuration.
    """

    looked: int = 0
    states: set[bytes] = field(default_factory=set)
    histories: int = 0
    surveys: dict[tuple[bytes, Rules], Survey] = field(default_factory=dict)


class History(RuleBasedStateMachine):
    """Subclasses say what the world is made of, and where the count is kept.

    Attributes:
        world: What the outbox is made of.
        tally: The count.
        enough: From how many states on nothing more is looked at.
        told: What the last history did.
        base: The folder for scratch folders.
    """

    world: ClassVar[World] = World()
    tally: ClassVar[Tally] = Tally()
    enough: ClassVar[int] = 1 << 60
    told: ClassVar[list[str]] = []
    base: ClassVar[Path | None] = None

    @initialize(rules=RULES, seed=st.integers(0, 1 << 32), samples=st.lists(SAMPLES, min_size=2, max_size=5))
    def begin(self, rules: Rules, seed: int, samples: list[Any]) -> None:
        self.told.clear()
        self._say("begin", rules, f"seed={seed}")
        self.broken = False
        self.rng = random.Random(seed)
        self.looking = random.Random(
            seed + 1
        )  # for itself: where nothing is looked at any more, the history is the same
        self.scratch = Path(tempfile.mkdtemp(dir=self.base))
        self.rig = Rig(self.scratch, self.world, rules)
        self._accept(samples, deliver=False)

    @rule(samples=st.lists(SAMPLES, min_size=1, max_size=4), deliver=st.booleans(), trouble=TROUBLE)
    def accept(self, samples: list[Any], deliver: bool, trouble: Trouble | int | None) -> None:
        """In one turn, perhaps with a delivery."""
        self._accept(samples, deliver=deliver, trouble=trouble)

    def _accept(self, samples: list[Any], *, deliver: bool, trouble: Trouble | int | None = None) -> None:
        self._say("accept", [(info.id[:8], len(image), info.tags, info.annotations) for info, image in samples])
        wishes = [self.rig.accept(*one) for one in samples]
        sink = self._in_hand()
        if deliver and sink:
            lease = self.rig.leases[sink][0]
            self._say("  and a delivery to", sink, lease.id[:8])
            self.rig.release(sink, lease)
            wishes.insert(1, self.rig.delivered(sink, [lease]))
        self._turn(wishes, trouble)

    @rule(
        sink=st.sampled_from(SINKS),
        count=st.integers(1, 3),
        fate=st.sampled_from(["delivered", "delivered", "rejected", "deferred", "held"]),
        trouble=TROUBLE,
    )
    def settle(self, sink: str, count: int, fate: str, trouble: Trouble | int | None) -> None:
        """What a sink has in hand, or gets now; or hold it for later."""
        if not self.rig.leases.get(sink) or fate == "held":
            self.rig.lease(sink, count)
        leases = list(self.rig.leases[sink])
        leases = leases[: count if fate == "delivered" else 1]
        if fate == "held" or not leases:
            return
        self._say(fate, sink, [lease.id[:8] for lease in leases])
        for lease in leases:
            self.rig.release(sink, lease)
        make = {"rejected": self.rig.rejected, "deferred": self.rig.deferred}
        wish = self.rig.delivered(sink, leases) if fate == "delivered" else make[fate](sink, leases[0])
        self._turn([wish], trouble)

    @precondition(lambda self: self.rig.view.rejected)
    @rule(number=st.integers(0, 3), trouble=TROUBLE)
    def retry(self, number: int, trouble: Trouble | int | None) -> None:
        rejected = sorted(self.rig.view.rejected)
        sink, name = rejected[number % len(rejected)]
        self._say("retry", sink, name[:8])
        self._turn([self.rig.retried(str(sink), name)], trouble)

    @rule(seconds=st.sampled_from([1.0, 400.0]), trouble=TROUBLE)
    def sweep(self, seconds: float, trouble: Trouble | int | None) -> None:
        """After some time."""
        self._say("sweep, after", seconds)
        self.rig.passes(seconds)
        self._turn([self.rig.swept()], trouble)

    @precondition(lambda self: self.rig.cuts < _CUTS)
    @rule(how=st.sampled_from(["in order", "power cut", "power cut", "index lost"]))
    def restart(self, how: str) -> None:
        if how == "in order":
            self._say("restart")
            self.rig.restart()
            return
        self._explore()
        self._say(how)
        self.rig.cut(self.rng, lose_index=how == "index lost")

    def _say(self, *words: object) -> None:
        self.told.append(" ".join(map(str, words)))

    def _turn(self, wishes: list[Wish], trouble: Trouble | int | None) -> None:
        if trouble is None:
            self.rig.turn(wishes)
        elif isinstance(trouble, int):
            self._say("  killed after", trouble, "steps")
            self.rig.kill(wishes, trouble)
        else:
            self._say(" ", trouble)
            self.rig.disk.trouble = trouble.copy()
            self.rig.turn(wishes)

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        try:
            if not self.broken:
                self.rig.close()
                self._explore()
                self.tally.histories += 1
        finally:
            self.rig.disk.abandon()
            shutil.rmtree(self.scratch)

    def _in_hand(self) -> str:
        return next((sink for sink in SINKS if self.rig.leases.get(sink)), "")

    def _explore(self) -> None:
        self._seen: set[bytes] = set()
        self._checked: set[tuple[bytes, int, bool]] = set()
        self._contents: dict[bytes, bytes] = {}
        for step, image, torn in self.rig.states(self.looking, _TORN):
            if len(self.tally.states) >= self.enough:
                return
            self._look(image, step, torn, 0)

    def _look(self, image: Image, step: int, torn: bool, depth: int) -> None:
        digest = image.digest(self._contents)
        promise = self.rig.promise_at(step)
        self.tally.looked += 1
        new = digest not in self._seen
        self._seen.add(digest)
        key = (digest, id(promise), torn)
        if key in self._checked:
            return
        self._checked.add(key)
        try:
            found = self._surveyed(digest, image)
            promise.check(found.view, torn=torn or self.rig.torn)
        except BrokenPromiseError as exc:
            self._say(
                f"power cut after step {step} of {len(self.rig.disk.steps)}, {depth} more while it recovered:", exc
            )
            self.broken = True
            raise
        self.tally.states.add(digest)
        if not new or depth == _NESTED or len(found.steps) < 2:
            return
        volume = Volume(image)
        for done in found.steps[: self.looking.randrange(1, len(found.steps))]:
            volume.apply(done)
        self._look(volume.torn(self.looking), step, True, depth + 1)

    def _surveyed(self, digest: bytes, image: Image) -> Survey:
        """As it was found, if another history has led to the same."""
        key = (digest, self.rig.rules)
        if key not in self.tally.surveys:
            self.tally.surveys[key] = self.rig.survey(image)
        return self.tally.surveys[key]
