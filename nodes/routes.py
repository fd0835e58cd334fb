"""One question that the browser asks: which step counts a solver file has."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from server import PromptServer

from .folder import find_solver

__all__ = ["ROUTE", "add_routes"]

ROUTE = "/learned_solvers/steps"


def add_routes() -> None:
    """Adds GET /learned_solvers/steps?solver=ENTRY: {"steps": [4, 6, 8]}, or 404 and why."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(ROUTE)(_steps)


async def _steps(request: Any) -> Any:
    try:
        return web.json_response({"steps": find_solver(request.query.get("solver", "")).steps})
    except (OSError, ValueError) as error:
        return web.json_response({"error": str(error)}, status=404)
