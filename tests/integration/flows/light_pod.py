"""Stand-in for a pod that starts at once: `light_pod.py worker PORT` or `light_pod.py gateway PORT`, with behaviours.

Behaviours: `deaf` ignores SIGTERM, `child` starts a child process and prints its pid, `fails` reports that it cannot
start, `crashes` ends at start with a line, `loads` never becomes ready, `fails-again=FILE` fails once FILE exists (and
creates it), `beats` has a heartbeat, and `beats=FILE` one that ends when FILE exists.
"""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(os.getpid(), signal.SIGKILL)


def _setup_error() -> None:
    error = {"type": "ModelLoadError", "message": "no such file: model.gguf"}
    print("rungpt-setup-error " + json.dumps(error), flush=True)
    sys.exit(78)


class _Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


def _serve(role: str, port: int) -> None:
    if role == "gateway":
        http.server.ThreadingHTTPServer(("127.0.0.1", port), _Ready).serve_forever()
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            server.accept()[0].close()


def _beat(until: Path) -> None:
    while not until.exists():
        os.write(int(os.environ["RUNGPT_HEARTBEAT"]), b".")
        time.sleep(0.05)


def main() -> None:
    role, port, *behaviours = sys.argv[1:]
    sys.stdin.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in behaviours else lambda *_: os._exit(0))
    for behaviour in behaviours:
        if behaviour.partition("=")[0] == "beats":
            threading.Thread(target=_beat, args=(Path(behaviour.partition("=")[2] or "/none"),), daemon=True).start()
        if behaviour.startswith("fails-again="):
            mark = Path(behaviour.partition("=")[2])
            _setup_error() if mark.exists() else mark.touch()
    if "child" in behaviours:
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=False)
        print(f"child {child.pid}", flush=True)
    if "fails" in behaviours:
        _setup_error()
    if "crashes" in behaviours:
        sys.exit("out of cheese")
    if "loads" in behaviours:
        print("loading", flush=True)
        while True:
            time.sleep(60)
    with contextlib.suppress(KeyboardInterrupt):
        _serve(role, int(port))


if __name__ == "__main__":
    main()
