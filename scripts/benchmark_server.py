"""The server that the benchmarks measure over HTTP: `rungpt serve` on free ports of 127.0.0.1."""

import asyncio
import signal
import subprocess
import tempfile
import time

import httpx
from benchmark_contenders import Contender
from startup_benchmark import READY_SECONDS, RUNGPT, free_port, is_ready

ANSWER_SECONDS = 300.0
STOP_SECONDS = 60.0


class Server:
    """A running server of a contender's model, ready when this is made. Raises SystemExit, with its log, if it is not.

    The contender's thread count reaches it through OMP_NUM_THREADS; `more` are options of `rungpt serve`.
    """

    def __init__(self, contender: Contender, *more: str):
        http_port = free_port()
        self.url = f"http://127.0.0.1:{http_port}"
        command = [*RUNGPT, "serve", contender.model, "--precision", contender.precision, "--no-speculate"]
        command += ["--runner", str(contender.runner), "--max-running", str(contender.max_running)]
        command += ["--http-port", str(http_port), "--grpc-port", str(free_port()), *more]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        start = time.perf_counter()
        while not is_ready(f"{self.url}/ready"):
            if self._process.poll() is not None or time.perf_counter() - start > READY_SECONDS:
                self._end()
                raise SystemExit(f"rungpt serve did not become ready:\n{self._log.read().decode(errors='replace')}")
            time.sleep(0.1)

    async def rate(self, prompts: list[str], new_tokens: int) -> float:
        """Tokens per second of these prompts at once, each a unary request, seen by the client."""
        body = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        async with httpx.AsyncClient(base_url=self.url, timeout=ANSWER_SECONDS) as client:
            start = time.perf_counter()
            answers = await asyncio.gather(
                *(client.post("/generate", json={**body, "prompt": prompt}) for prompt in prompts)
            )
            seconds = time.perf_counter() - start
        for answer in answers:
            if answer.status_code != 200 or answer.json()["usage"]["completion_tokens"] != new_tokens:
                raise SystemExit(f"/generate answered {answer.status_code}: {answer.text[:500]}")
        return len(prompts) * new_tokens / seconds

    def close(self) -> None:
        """End the server as Ctrl-C would, or hard after STOP_SECONDS. Raises SystemExit, with its log, if it failed."""
        if (code := self._end()) != 0:
            raise SystemExit(f"rungpt serve ended with {code}:\n{self._log.read().decode(errors='replace')}")

    def _end(self) -> int:
        """Its exit code; the log can be read from its beginning then."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its other processes see that it is gone, and end
            self._process.wait()
        self._log.seek(0)
        return self._process.returncode
