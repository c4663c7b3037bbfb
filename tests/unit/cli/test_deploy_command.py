"""Without these tests `rungpt deploy` could ignore options, or not report the result of a deployment."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from run_gpt.cli.app import app
from run_gpt.deploy import TARGETS, Deployment, Endpoints, Report, Status
from run_gpt.deploy.target import option
from run_gpt.errors import SetupError

IMAGE = "example/rungpt:1.2.3"


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """Target that records its calls."""

    namespace: str = option("default", "A field that Kubernetes has, too.")
    asked: ClassVar[list[Any]] = []

    def render(self, deployment: Deployment) -> dict[str, str]:
        return {"one.yml": f"name: {deployment.name}\n", "two.yml": f"namespace: {self.namespace}"}

    def deploy(self, deployment: Deployment, report: Report) -> Endpoints:
        self.asked.append(deployment)
        report("1 of 2 replicas are ready")
        return Endpoints(http="http://10.0.0.1:52000", grpc="grpc://10.0.0.1:51000")

    def status(self, name: str) -> Status:
        urls = Endpoints(http="http://10.0.0.1:52000")
        return Status(name=name, phase="starting", ready=1, wanted=2, endpoints=urls, notes=("a pod waits for a GPU",))

    def logs(self, name: str, *, follow: bool, lines: int) -> Iterator[str]:
        yield f"{name} {follow} {lines}"

    def scale(self, name: str, replicas: int, report: Report) -> None:
        self.asked.append((name, replicas))

    def remove(self, name: str, report: Report) -> None:
        raise SetupError(f"there is no deployment {name}")


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "kubernetes", Scripted)
    Scripted.asked.clear()


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Run `rungpt deploy ...`, and return its stdout and stderr."""
    done = CliRunner().invoke(app, ["deploy", *arguments])
    if isinstance(done.exception, SetupError):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_everything_given_reaches_the_deployment_and_only_addresses_are_on_stdout() -> None:
    line = "smollm2 --cloud kubernetes --replicas 2 --precision bit4 --name chat --gateways 3 --cpus 4 --memory 8"
    stdout, stderr = run(*line.split(), "--gpus", "1", "--image", IMAGE, "--autoscale", "1:4:9", "--max-running", "7")
    (deployment,) = Scripted.asked
    assert (deployment.name, deployment.replicas, deployment.gateways, deployment.image) == ("chat", 2, 3, IMAGE)
    assert (deployment.cpus, deployment.memory_gib, deployment.gpus) == (4, 8, 1)
    assert (deployment.autoscale.least, deployment.autoscale.most, deployment.autoscale.in_flight) == (1, 4, 9)
    assert (deployment.server.precision, deployment.server.max_running) == ("bit4", 7)
    assert stdout == "HTTP  http://10.0.0.1:52000\ngRPC  grpc://10.0.0.1:51000\n"
    assert "1 of 2 replicas are ready" in stderr


@pytest.mark.parametrize("line", ["smollm2 --cloud kubernetes", "--cloud kubernetes smollm2", "--cloud kubernetes"])
def test_the_model_may_stand_anywhere(line: str) -> None:
    run(*line.split())
    assert Scripted.asked[0].model == "smollm2"


def test_a_dry_run_prints_what_would_be_sent_and_sends_nothing(tmp_path: Path) -> None:
    stdout, _ = run("smollm2", "--cloud", "kubernetes", "--namespace", "ml", "--dry-run")
    assert stdout == "# --- one.yml\nname: rungpt-smollm2\n# --- two.yml\nnamespace: ml\n"
    run("smollm2", "--cloud", "kubernetes", "--namespace", "ml", "--output", str(tmp_path / "new" / "folder"))
    written = {file.name: file.read_text() for file in (tmp_path / "new" / "folder").iterdir()}
    assert written == {"one.yml": "name: rungpt-smollm2\n", "two.yml": "namespace: ml"}
    assert not Scripted.asked


def test_the_life_of_a_deployment() -> None:
    stdout, _ = run("status", "chat", "--cloud", "kubernetes")
    lines = ["chat  starting", "replicas  1 of 2 ready", "HTTP  http://10.0.0.1:52000", "a pod waits for a GPU"]
    assert stdout.splitlines() == lines
    assert run("logs", "chat", "--cloud", "kubernetes", "--lines", "5")[0] == "chat False 5\n"
    run("scale", "chat", "4", "--cloud", "kubernetes")
    assert Scripted.asked == [("chat", 4)]
    with pytest.raises(SetupError, match="there is no deployment chat"):
        run("remove", "chat", "--cloud", "kubernetes")


def test_an_option_of_another_target_is_refused_instead_of_ignored() -> None:
    with pytest.raises(SetupError, match="--namespace is not for --cloud docker"):
        run("smollm2", "--cloud", "docker", "--namespace", "ml", "--dry-run")


@pytest.mark.parametrize("line", ["smollm2", "smollm2 --cloud mainframe", "scale chat x --cloud docker"])
def test_what_is_missing_or_wrong_is_said(line: str) -> None:
    run(*line.split(), code=2)


@pytest.mark.parametrize("cloud", ["kubernetes", "docker", "aws", "jina"])
def test_a_dry_run_needs_no_library_of_the_engine(cloud: str) -> None:
    script = (
        "import sys\n"
        "for name in ('boto3', 'kubernetes', 'jcloud', 'jina', 'torch'): sys.modules[name] = None\n"
        "from run_gpt.cli import main\n"
        f"sys.argv = ['rungpt', 'deploy', 'smollm2', '--cloud', '{cloud}', '--open', '--memory', '3', '--dry-run']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "rungpt-smollm2" in done.stdout
