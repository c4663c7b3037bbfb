"""Flow of a server: its YAML, and the processes that run it."""

from run_gpt.flows.render import render_flow
from run_gpt.flows.server import Server, check_server, serve
from run_gpt.flows.supervisor import Event, Supervisor, printer

__all__ = ["Event", "Server", "Supervisor", "check_server", "printer", "render_flow", "serve"]
