"""Load a model into this process: from settings, or from configurations."""

from collections.abc import Callable
from typing import Any, Unpack

from run_gpt.config import EngineConfig, ModelConfig, ModelOptions, Precision, check_bounds
from run_gpt.local.launch import launch
from run_gpt.local.model import Model
from run_gpt.models import OnProgress, no_progress


def create_model(
    model_name: str | None = None,
    model_path: str | None = None,
    adapter_name_or_path: str | None = None,
    precision: Precision = ModelConfig.precision,
    device: str | None = None,
    device_map: str | dict[str, Any] | list[int] | None = None,
    trust_remote_code: bool = False,
    *,
    on_progress: OnProgress = no_progress,
    **options: Unpack[ModelOptions],
) -> Model:
    """Load a model into this process.

    The parameters and their defaults are those of ModelConfig and EngineConfig. `options` are `revision`,
    `served_model_name`, `max_memory`, `tensor_parallel`, `adapters`, `chat_template`, `trust_request_chat_template`,
    `generation_config`, `allow_special_tokens`, `allow_pickle` and `cache_dir` of the former, and `max_running`,
    `max_waiting`, `max_step_tokens`, `runner`, `kernels`, `max_context`, `max_cache_tokens`, `reuse_prefixes`,
    `compile` and `speculate` of the latter; `help(run_gpt.config.ModelOptions)` has their types. `on_progress` is
    called for downloads and other long steps.

    Raises SetupError or ModelNotFound, each with a line that says what to do.
    """
    settings: dict[str, Any] = dict(options)
    engine_config = EngineConfig.take(settings)
    names = settings.pop("served_model_name", ())
    model_config = ModelConfig(
        model_name=model_name,
        model_path=model_path,
        adapter_name_or_path=adapter_name_or_path,
        precision=precision,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        served_model_name=(names,) if isinstance(names, str) else tuple(names),
        **settings,
    )
    check_bounds(model_config)
    check_bounds(engine_config)
    return load_model(model_config, engine_config, on_progress=on_progress)


def load_model(
    model_config: ModelConfig,
    engine_config: EngineConfig,
    *,
    on_progress: OnProgress = no_progress,
    on_dead: Callable[[], None] = lambda: None,
) -> Model:
    """Load a model as `create_model` does, from configurations. `on_dead` is called if the engine dies."""
    running = launch(model_config, engine_config, on_progress=on_progress, on_dead=on_dead)
    return Model(running, model_config)
