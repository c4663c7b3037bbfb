"""Print the time of `rungpt serve` to be ready from a warm cache, and of `rungpt --help`: medians of three.

Run it with `make bench-startup`, on a quiet machine. It passes options on to `rungpt serve`.
"""

import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

RUNS = 3
READY_SECONDS = 300.0
RUNGPT = [sys.executable, "-m", "run_gpt.cli"]


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def help_seconds() -> float:
    """Return the seconds that `rungpt --help` takes."""
    start = time.perf_counter()
    subprocess.run([*RUNGPT, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def is_ready(url: str) -> bool:
    """Return True when `/ready` answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def serve_seconds(arguments: list[str]) -> float:
    """Return the seconds of `rungpt serve` until `/ready` answers 200. Raises SystemExit, with its log, if it fails."""
    http_port = free_port()
    command = [*RUNGPT, "serve", *arguments, "--http-port", str(http_port), "--grpc-port", str(free_port())]
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while not is_ready(f"http://127.0.0.1:{http_port}/ready"):
                if process.poll() is not None or time.perf_counter() - start > READY_SECONDS:
                    log.seek(0)
                    raise SystemExit(f"rungpt serve did not become ready:\n{log.read().decode(errors='replace')}")
                time.sleep(0.02)
            return time.perf_counter() - start
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def main() -> None:
    """Measure and print."""
    arguments = sys.argv[1:]
    print("warming up: one start, which downloads the model if it is not in the cache", file=sys.stderr)
    help_seconds()
    serve_seconds(arguments)
    helps = [help_seconds() for _ in range(RUNS)]
    starts = [serve_seconds(arguments) for _ in range(RUNS)]
    print(f"rungpt --help          {statistics.median(helps):6.2f} s")
    print(f"rungpt serve to ready  {statistics.median(starts):6.2f} s")


if __name__ == "__main__":
    main()
