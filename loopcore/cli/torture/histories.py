"""Any history of an outbox, and what a power cut at any point of it may leave."""

from __future__ import annotations

import errno
import gc
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec import Struct, field

from loopcore.cli.torture.book import Wish
from loopcore.cli.torture.promises import BrokenPromiseError, Promise
from loopcore.cli.torture.recount import INDEX
from loopcore.cli.torture.rig import Rig
from loopcore.cli.torture.survey import BOX, Survey, without_index
from loopcore.cli.torture.timeline import State
from loopcore.cli.torture.trouble import Kill, Trouble
from loopcore.cli.torture.volume import Volume
from loopcore.cli.torture.world import SINKS, Rules, World, sample

_CUTS = 3
"""How often the power is cut in one history."""
_INDEX_LOST = 0.1
"""How often the index is lost with the power."""
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
TROUBLE: st.SearchStrategy[Trouble | Kill | None] = (
    st.none()
    | st.none()
    | st.builds(Kill, st.integers(0, 6))
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
"""Half of the turns have none."""


class Tally(Struct):
    """What was looked at.

    Attributes:
        looked: Points of a history and states that a power cut there may leave.
        nested: How many of them a power cut during recovery has left.
        states: The digests of the states.
        histories: How many histories there were.
    """

    looked: int = 0
    nested: int = 0
    states: set[bytes] = field(default_factory=set)
    histories: int = 0


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
        self.looking = random.Random(seed + 1)  # of its own, so that looking does not change the history
        self.scratch = Path(tempfile.mkdtemp(dir=self.base))
        self.rig = Rig(self.scratch, self.world, rules)
        self._accept(samples, deliver=False)

    @rule(samples=st.lists(SAMPLES, min_size=1, max_size=4), deliver=st.booleans(), trouble=TROUBLE)
    def accept(self, samples: list[Any], deliver: bool, trouble: Trouble | Kill | None) -> None:
        """In one turn, perhaps with a delivery."""
        self._accept(samples, deliver=deliver, trouble=trouble)

    def _accept(self, samples: list[Any], *, deliver: bool, trouble: Trouble | Kill | None = None) -> None:
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
    def settle(self, sink: str, count: int, fate: str, trouble: Trouble | Kill | None) -> None:
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

    @precondition(lambda self: self.rig.book.view.rejected)
    @rule(number=st.integers(0, 3), trouble=TROUBLE)
    def retry(self, number: int, trouble: Trouble | Kill | None) -> None:
        rejected = sorted(self.rig.book.view.rejected)
        sink, name = rejected[number % len(rejected)]
        self._say("retry", sink, name[:8])
        self._turn([self.rig.retried(str(sink), name)], trouble)

    @rule(seconds=st.sampled_from([1.0, 400.0]), trouble=TROUBLE)
    def sweep(self, seconds: float, trouble: Trouble | Kill | None) -> None:
        """After some time."""
        self._say("sweep, after", seconds)
        self.rig.passes(seconds)
        self._turn([self.rig.swept()], trouble)

    @precondition(lambda self: self.rig.book.view.present)
    @rule(
        sink=st.sampled_from([None, *SINKS]),
        count=st.integers(1, 3),
        forgotten=st.sampled_from([False, False, True]),
        trouble=TROUBLE,
    )
    def take_out(self, sink: str | None, count: int, forgotten: bool, trouble: Trouble | Kill | None) -> None:
        """As `export --move` does once the bundle is whole, or `forget`."""
        if sink and forgotten:
            self._say("forget", sink)
            for _ in range(2):  # its places go; then it goes itself and, as it is in the TOML, begins anew
                self._turn([self.rig.forgotten(sink)], trouble)
            return
        listed = self.rig.listed(sink)[:count]
        self._say("move out", [one.id[:8] for one in listed], "for", sink or "all")
        self._turn([self.rig.moved_out(listed, sink)], trouble)

    @precondition(lambda self: self.rig.cuts < _CUTS)
    @rule(lose_index=st.sampled_from([False, False, True]))
    def cut(self, lose_index: bool) -> None:
        self._explore()
        self._say("power cut", "and the index lost" if lose_index else "")
        self.rig.cut(self.rng, lose_index=lose_index)

    @rule(trouble=TROUBLE)
    def restart(self, trouble: Trouble | Kill | None) -> None:
        self._say("restart", trouble or "")
        self.rig.restart(trouble and trouble.copy())

    def _say(self, *words: object) -> None:
        self.told.append(" ".join(map(str, words)))

    def _turn(self, wishes: list[Wish], trouble: Trouble | Kill | None) -> None:
        if trouble is not None:
            self._say(" ", trouble)
        if isinstance(trouble, Kill):
            self.rig.kill(wishes, trouble.copy())
            return
        if trouble is not None:
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
            gc.collect()  # an outbox and its index hold each other, and memory of SQLite that nobody else counts

    def _in_hand(self) -> str:
        return next((sink for sink in SINKS if self.rig.leases.get(sink)), "")

    def _explore(self) -> None:
        self._seen: set[bytes] = set()
        self._checked: set[tuple[bytes, int, bool]] = set()
        self._contents: dict[bytes, bytes] = {}
        self._surveys: dict[bytes, Survey] = {}
        self._weaker: dict[int, tuple[Promise, Promise]] = {}
        for state in self.rig.timeline.states(self.looking, self.world.torn, self.world.share):
            if len(self.tally.states) >= self.enough:
                return
            self._look(state, self.rig.timeline.promise_at(state.step), 0)

    def _look(self, state: State, promise: Promise, depth: int) -> None:
        digest = state.image.digest(self._contents)
        self.tally.looked += 1
        self.tally.nested += depth > 0
        new = digest not in self._seen
        self._seen.add(digest)
        key = (digest, id(promise), state.torn)
        if key in self._checked:
            return
        self._checked.add(key)
        try:
            found = self._surveyed(digest, state)
            promise.check(found.view, torn=state.torn or self.rig.torn)
        except BrokenPromiseError as exc:
            where = f"step {state.step} of {len(self.rig.disk.steps)}"
            lost = "" if f"{BOX}/{INDEX}" in state.image.files else ", no index"
            self._say(f"power cut after {where}, {depth} more while it recovered{lost}:", exc)
            self.broken = True
            raise
        self.tally.states.add(digest)
        if new and depth < _NESTED and len(found.steps) > 1:
            volume = Volume(state.image)
            for done in found.steps[: self.looking.randrange(1, len(found.steps))]:
                volume.apply(done)
            self._look(State(state.step, volume.torn(self.looking), torn=True), promise, depth + 1)
        if new and depth == 0 and self.looking.random() < _INDEX_LOST:
            self._look(State(state.step, without_index(state.image), state.torn), self._without_index(promise), depth)

    def _without_index(self, promise: Promise) -> Promise:
        key = id(promise)
        if key not in self._weaker:
            self._weaker[key] = promise, self.rig.promise_without_index(promise)
        return self._weaker[key][1]

    def _surveyed(self, digest: bytes, state: State) -> Survey:
        """As it was found, if another step has led to the same."""
        if digest not in self._surveys:
            self._surveys[digest] = self.rig.survey(state.image)
        return self._surveys[digest]
