"""A model behind a RunGPT server, with the same calls as a model in this process."""

from run_gpt.client.client import Client
from run_gpt.client.model import Model

__all__ = ["Client", "Model"]
