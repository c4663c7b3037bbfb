"""Imports run downwards only, and the light rooms stay light.

Without this a user of `rungpt --help` or of the client would one day wait seconds for torch, and a change in the
engine could break the gateway.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = {"config", "errors", "process"}

# Room -> the rooms that it may import, from the lowest room up. The first three import only each other.
RULES: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "process": {"config", "errors"},
    "api": BASE,
    "link": {"api"} | BASE,
    "models": BASE,
    "engine": BASE,
    "local": {"engine", "models", "api"} | BASE,
    "executors": {"local", "engine", "models", "link", "api"} | BASE,
    "gateway": {"link", "api"} | BASE,
    "flows": BASE,
    "deploy": {"flows", "models"} | BASE,
    "client": {"api"} | BASE,
    "bench": {"client", "local", "models", "api"} | BASE,
    "top": {"errors"},
}
RULES["cli"] = set(RULES)
RULES["__init__"] = {"local", "client"} | BASE

HEAVY = ("torch", "transformers", "jina", "docarray", "llguidance")
LIGHT_MODULES = (
    *("run_gpt", "run_gpt.cli", "run_gpt.client", "run_gpt.api.schema", "run_gpt.flows", "run_gpt.models"),
    "run_gpt.deploy",
    "run_gpt.executors.causal_lm.link",  # with all that an executor needs while it has no model
    "run_gpt.process.devices",
    "run_gpt.models.tools",
    "run_gpt.bench.online",
    "run_gpt.top.watch",
    "run_gpt.top.screen",
    "run_gpt.process.tracing",
    *(
        f"run_gpt.engine.{name}"
        for name in (
            "scheduler",
            "slots",
            "draft",
            "text",
            "request",
            "events",
            "inbox",
            "interface",
            "tasks",
            "metrics",
            "timing",
        )
    ),
)


def modules() -> Iterator[tuple[str, Path]]:
    """Yield each module's dotted name and file."""
    for folder, package in (("run_gpt", "run_gpt"), ("executors", "run_gpt.executors"), ("flows", "run_gpt.flows")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


# The public names of `run_gpt` itself that are loaded from a room.
PUBLIC = {"Client": "client", "Model": "local", "create_model": "local"}


def room_of(module: str) -> str:
    """Return the room of a module: `run_gpt.engine.scheduler` is in `engine`, `run_gpt` in `__init__`."""
    parts = module.split(".")
    return PUBLIC.get(parts[1], parts[1]) if len(parts) > 1 else "__init__"


def imported(path: Path, module: str) -> Iterator[str]:
    """Yield our dotted names that a module imports anywhere, with relative imports resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            # `from run_gpt import errors` names a room; `from run_gpt import __version__` names run_gpt itself.
            names = [f"{source}.{alias.name}" if source == "run_gpt" else source for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "run_gpt":
            names = [f"run_gpt.{node.attr}"]
        else:
            continue
        yield from (name for name in names if name.startswith("run_gpt."))


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value).removeprefix(str(ROOT)))
def test_a_module_imports_only_rooms_below_its_own(module: str, path: Path) -> None:
    room = room_of(module)
    assert room in RULES, f"{module} is in a room that RULES does not know"
    for name in imported(path, module):
        target = room_of(name)
        if target in RULES and target != room:
            assert target in RULES[room], f"{module} imports {name}, and {room} must not import {target}"


def test_the_rules_run_downwards() -> None:
    rooms = list(RULES)
    for i, room in enumerate(rooms):
        assert RULES[room] <= set(rooms[:i]), f"{room} may import a room that stands above it"


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    code = f"import {module}, json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


NEVER = ("botocore", "docker", "kubernetes", "matplotlib", "pandas", "scipy", "sklearn", "torchvision")
"""Packages that no process needs, though others of the environment may bring them."""
ROLES = {
    "gateway": ("torch", "transformers", "tokenizers", "llguidance", "fastapi", "PIL", "sympy"),
    "executor": (
        "torch",
        "transformers",
        "tokenizers",
        "llguidance",
        "fastapi",
        "PIL",
        "sympy",
        "starlette",
        "uvicorn",
    ),
}
"""Packages that a process of each role must not import; an executor: while it has no model."""
_POD = """
import json, sys, types, yaml
from run_gpt.config import ServeConfig
from run_gpt.flows import pod, render
from run_gpt.process.imports import DEFERRED, large_imports
def imported(names): return [name for name in names if sys.modules.get(name) is not None]
def run(): return [name for name in imported(DEFERRED) if type(sys.modules[name]).__name__ != "_Deferred"]
flow = yaml.safe_load(render.render_flow(ServeConfig(), worker_ports=[1]))
pod._run = lambda args, start: types.SimpleNamespace(executor=None)
never, role, names = json.loads(sys.argv[1])
pod._run_gateway(flow) if role == "gateway" else pod._run_executor(flow, 0, None)
found = imported(names)
if role == "executor":
    with large_imports():
        import run_gpt.local.model
print(json.dumps([found + imported(never), run()]))
"""


@pytest.mark.parametrize("role", ROLES)
def test_a_process_imports_only_what_it_uses(role: str) -> None:
    """Else each start of a server would one day take a second more."""
    asked = json.dumps([NEVER, role, ROLES[role]])
    done = subprocess.run([sys.executable, "-c", _POD, asked], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    imported, run = json.loads(done.stdout.splitlines()[-1])
    assert imported == []
    assert run == [], "these ran, though they are deferred"


def test_rungpt_serve_imports_no_other_command() -> None:
    """Else the processes of a server would start half a second later."""
    names = ("pydantic", "run_gpt.api", "run_gpt.bench", "run_gpt.deploy", "run_gpt.cli.ask", *HEAVY)
    code = "from run_gpt.cli.app import prepare; prepare(['serve']); import run_gpt.cli.serving, json, sys; "
    code += f"print(json.dumps([name for name in {names} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
