"""Text on a node while it runs: the host shows it below the widgets, without a line of JavaScript."""

from __future__ import annotations

from server import PromptServer

__all__ = ["show_text"]


def show_text(text: str, node_id: str | None = None) -> None:
    """Shows text on a node: the one of that id, or the one that is being run."""
    server = getattr(PromptServer, "instance", None)
    shown_on = node_id or getattr(server, "last_node_id", None)
    if server is not None and shown_on is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, shown_on)
