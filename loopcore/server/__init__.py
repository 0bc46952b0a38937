"""The node's HTTP face: the neutral API, health, metrics, and what enabled plugins mount."""

from loopcore.server.listening import Listener, listen
from loopcore.server.routes import application

__all__ = ["Listener", "application", "listen"]
