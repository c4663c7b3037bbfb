"""Program `docker` for tests: refuses command lines that RunGPT should not use, and answers like Docker Compose 2.40.

The JSON file in $STAND_IN has its past calls and the failures that the test sets.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml

STATE = Path(os.environ.get("STAND_IN", "stand-in.json"))
NO_ENGINE = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
UP = ["up", "--detach"]


def main(arguments: list[str]) -> None:
    state = json.loads(STATE.read_text())
    state["calls"].append({"arguments": arguments, "key": os.environ.get("RUNGPT_API_KEY")})
    try:
        answer(state, arguments)
    finally:
        STATE.write_text(json.dumps(state))


def answer(state: dict[str, Any], arguments: list[str]) -> None:
    if arguments[0] == "compose" and not state["has_compose"]:
        fail("docker: unknown command: docker compose\n\nRun 'docker --help' for more information")
    if arguments == ["compose", "version"]:
        print("Docker Compose version v2.40.3")
    elif not state["has_engine"]:
        fail(NO_ENGINE)
    elif arguments == ["compose", "ls", "--all", "--format", "json"]:
        projects = state["projects"].items()
        rows = [{"Name": name, "Status": "running(3)", "ConfigFiles": project["file"]} for name, project in projects]
        print(json.dumps(rows))
    elif arguments[:4] == ["image", "inspect", "--format", "{{.Id}}"] and len(arguments) == 5:
        print("sha256:90c9") if state["has_image"] else fail(f"Error: No such image: {arguments[4]}")
    elif arguments[:4] == ["container", "inspect", "--format", "{{.RestartCount}}"] and arguments[4:]:
        for name in arguments[4:]:
            print(find(state, name)["restarts"])
    elif arguments[:2] == ["compose", "--project-name"] and arguments[3] == "--file":
        on_project(state, arguments[2], Path(arguments[4]), arguments[5:])
    else:
        fail(f"stand-in: nobody should call this: docker {' '.join(arguments)}", 99)


def on_project(state: dict[str, Any], name: str, file: Path, rest: list[str]) -> None:
    services = read(file, name)
    if rest[:2] == UP:
        up(state, name, file, services, rest[2:])
    elif rest == ["ps", "--all", "--format", "json"]:
        state["polls"] += 1
        for container in state["projects"][name]["containers"]:
            print(json.dumps(row(state, container)))
    elif rest[0] == "logs" and rest[1] == "--no-color":
        print(state["log"] if "--no-log-prefix" in rest else f"executor-1  | {state['log']}")
    elif rest == ["down", "--volumes", "--remove-orphans"]:
        for container in state["projects"].pop(name)["containers"]:
            say(f" Container {container['name']}  Removed")
    else:
        fail(f"stand-in: nobody should call this: docker compose {' '.join(rest)}", 99)


def read(file: Path, name: str) -> dict[str, Any]:
    text = file.read_text()
    for variable, message in re.findall(r"(?<!\$)\$\{(\w+):\?(.*?)\}", text):
        if not os.environ.get(variable):
            fail(
                f"error while interpolating services.gateway.environment.{variable}: required variable {variable} is "
                f"missing a value: {message}"
            )
    compose = yaml.safe_load(text)
    assert compose["name"] == name
    services: dict[str, Any] = compose["services"]
    return services


def up(state: dict[str, Any], name: str, file: Path, services: dict[str, Any], rest: list[str]) -> None:
    if state["up_fails"]:
        say(" Container x  Creating")
        fail(state["up_fails"])
    project = state["projects"].setdefault(name, {"containers": []})
    project["file"] = str(file)
    if rest == ["--remove-orphans"]:
        counts = {service: value["deploy"].get("replicas", 1) for service, value in services.items()}
        check_mounts(file, services)
        project["containers"] = []
    else:
        assert rest[:3] == ["--no-deps", "--no-recreate", "--scale"], rest
        service, count = rest[3].split("=")
        assert rest[4:] == [service], rest
        counts = {service: int(count)}
        project["containers"] = [c for c in project["containers"] if c["service"] != service]
    for service, count in counts.items():
        ports = [(port["host_ip"], port["target"], port["published"]) for port in services[service].get("ports", ())]
        for index in range(1, count + 1):
            container = {"name": f"{name}-{service}-{index}", "service": service, "ports": ports, "restarts": 0}
            project["containers"].append(container)
            say(f" Container {container['name']}  Started")


def check_mounts(file: Path, services: dict[str, Any]) -> None:
    for service in services.values():
        for mount in service.get("volumes", ()):
            if mount["type"] == "bind" and not (file.parent / mount["source"]).is_dir():
                fail(f'Error response from daemon: invalid mount config for type "bind": {mount["source"]} not there')


def row(state: dict[str, Any], container: dict[str, Any]) -> dict[str, Any]:
    """Return a line of `docker compose ps`, with the fields that RunGPT might read."""
    health = "healthy" if state["polls"] > state["loading_polls"] else "starting"
    found = {"ExitCode": 0, "Health": health, "State": "running"}
    if container["name"] == state["crashing"]:
        container["restarts"] = state["polls"]
        found = {"ExitCode": 78, "Health": "", "State": "restarting"}
    publishers = [
        {"URL": host, "TargetPort": target, "PublishedPort": int(published), "Protocol": "tcp"}
        for host, target, published in container["ports"]
    ]
    names = {"ID": "e809779d4d61", "Name": container["name"], "Service": container["service"]}
    return names | found | {"Publishers": publishers or None, "Status": "Up 2 seconds"}


def find(state: dict[str, Any], name: str) -> dict[str, Any]:
    for project in state["projects"].values():
        for container in project["containers"]:
            if container["name"] == name:
                return dict(container)
    fail(f"Error: No such container: {name}")


def say(line: str) -> None:
    print(line, file=sys.stderr)


def fail(message: str, code: int = 1) -> NoReturn:
    say(message)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
