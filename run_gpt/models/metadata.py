"""Metadata of a model: transformers' configuration, read from its folder."""

from typing import Any

from run_gpt.models.checks import load_error
from run_gpt.models.files import ModelFiles


def read_config(files: ModelFiles, model_type: str | None, *, trust_remote_code: bool) -> Any:
    """Return transformers' configuration. Raises ModelLoadError. `model_type`: the family that config.json names."""
    from transformers import AutoConfig

    if model_type == "moss":
        from run_gpt.models import moss

        moss.register()
    try:
        return AutoConfig.from_pretrained(files.folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        raise load_error(files, "configuration", error) from error
