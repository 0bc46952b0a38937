"""How loopcore talks HTTP to a peer."""

from loopcore.http.answers import Answer
from loopcore.http.bodies import Body, Part, multipart
from loopcore.http.client import MAX_ANSWER, Client
from loopcore.http.meaning import MAX_RETRY_AFTER_S, redacted, retry_after, translate
from loopcore.http.peer import tls

__all__ = [
    "MAX_ANSWER",
    "MAX_RETRY_AFTER_S",
    "Answer",
    "Body",
    "Client",
    "Part",
    "multipart",
    "redacted",
    "retry_after",
    "tls",
    "translate",
]
