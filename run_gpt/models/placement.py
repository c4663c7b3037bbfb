"""Placement, the first phase of a load: the files of a model, and its precision and devices on this machine."""

from dataclasses import dataclass

from run_gpt.config import ModelConfig
from run_gpt.models.checks import check_files, check_types
from run_gpt.models.classes import check_class
from run_gpt.models.files import ModelFiles, fetch
from run_gpt.models.metadata import read_config
from run_gpt.models.preflight import fit_target
from run_gpt.models.progress import OnProgress, no_progress
from run_gpt.models.quantised import Quantisation, check_quantisation, quantisation_of
from run_gpt.models.quiet import quiet_transformers
from run_gpt.models.target import Target, choose_target
from run_gpt.models.tensor_parallel import check_parallel, check_shares


@dataclass(frozen=True)
class Placement:
    """Model on this disk, and its place on this machine. It can be pickled for another process."""

    config: ModelConfig
    files: ModelFiles
    model_type: str | None
    """Family of the model, as its config.json names it."""
    trust_remote_code: bool
    """True if code of the checkpoint may run."""
    target: Target
    quantisation: Quantisation | None = None
    """Kind in which another tool has quantised the files, if one has."""


def place(config: ModelConfig, *, on_progress: OnProgress = no_progress) -> Placement:
    """Fetch the model if needed, check its files, and choose its precision and devices.

    Raises ModelNotFound, DownloadError, ChecksumMismatch, SetupError for settings that do not suit this machine or this
    model, and ModelLoadError, for example for a model that does not fit the memory.
    """
    parallel = config.tensor_parallel != 1
    if parallel:
        check_parallel(config)
    target = choose_target(config)  # before a long download
    files = fetch(config, on_progress=on_progress)
    on_progress(f"Loading {files.name}", 0, None)
    settings = check_files(files, allow_pickle=config.allow_pickle)
    check_class(files, settings, trust_remote_code=config.trust_remote_code)
    model_type = settings.get("model_type")
    quantisation = quantisation_of(files.folder, settings)
    check_quantisation(quantisation, config.precision, files.folder)
    if quantisation is None:
        check_types(files)
    trusted = config.trust_remote_code and model_type != "moss"  # see moss.py
    if not parallel or target.device.type == "cpu":  # on a CPU all shares are in the same memory
        target = fit_target(target, config, files.folder)
    if parallel:
        with quiet_transformers():
            check_shares(read_config(files, model_type, trust_remote_code=trusted), config.tensor_parallel)
    return Placement(config, files, model_type, trusted, target, quantisation)
