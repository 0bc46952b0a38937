"""The table of calls × answers: what is answered, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from loop import Answer, Fault, LoseAnswer, Nonsense, Reset, Stall, too_many

QUICK: dict[str, Fault] = {
    "401": Answer(401),
    "409": Answer(409),
    "422": Answer(422),
    "429": too_many(),
    "500": Answer(500),
    "stall": Stall(),
    "reset": Reset(),
    "lost": LoseAnswer(),
    "nonsense": Nonsense(),
}
MORE: dict[str, Fault] = {
    "403": Answer(403),
    "404": Answer(404),
    "429 in 2 s": too_many(2),
    "503": Answer(503, {"retry-after": "1"}),
}
ANSWERS = QUICK | MORE
"""What a call is answered before it gets the truth. `lost`: the server acts, and its answer does not arrive."""


@dataclass(frozen=True)
class Cell:
    """What came of one answer to one call.

    Attributes:
        verdict: A word for the table.
        seconds: How long it took until all was well again; on the node's own clock.
    """

    role: str
    call: str
    answer: str
    verdict: str
    seconds: float


TABLE: list[Cell] = []


def lines() -> list[str]:
    """The table as text, a line for each call."""
    rows = sorted({(cell.role, cell.call) for cell in TABLE})
    if not rows:
        return []
    cells = {(cell.role, cell.call, cell.answer): cell for cell in TABLE}
    width = max(len(f"{role} {call}") for role, call in rows)
    answers = [answer for answer in ANSWERS if any(cell.answer == answer for cell in TABLE)]
    head = " " * width + "".join(f"  {answer:>10}" for answer in answers)
    body = []
    for role, call in rows:
        texts = []
        for answer in answers:
            cell = cells.get((role, call, answer))
            texts.append(f"{cell.verdict} {cell.seconds:.0f}" if cell else "·")
        body.append(f"{f'{role} {call}':<{width}}" + "".join(f"  {text:>10}" for text in texts))
    return [head, *body]
