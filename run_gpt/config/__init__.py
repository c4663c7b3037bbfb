"""The settings of a model and of a server, each declared once."""

from run_gpt.config.configuration import EngineConfig, HostConfig, ModelConfig, ServedModel
from run_gpt.config.model_options import ModelOptions
from run_gpt.config.option import Option, Panel, check_bounds, flag_of, options_of
from run_gpt.config.server import AdminConfig, GatewayConfig, ServeConfig
from run_gpt.config.values import (
    API_KEY_VARIABLE,
    CA_FILE_VARIABLE,
    DEFAULT_MODEL,
    DEVICE_MAPS,
    EVERY_INTERFACE,
    EXECUTOR_PORT,
    EXECUTOR_TLS_VARIABLE,
    EXECUTOR_TOKEN_VARIABLE,
    FLOW_VARIABLE,
    LOG_FORMAT_VARIABLE,
    LOG_FORMATS,
    LOOPBACK,
    PRECISIONS,
    KernelSource,
    LogFormat,
    Precision,
    Runner,
)

__all__ = [
    "API_KEY_VARIABLE",
    "CA_FILE_VARIABLE",
    "DEFAULT_MODEL",
    "DEVICE_MAPS",
    "EVERY_INTERFACE",
    "EXECUTOR_PORT",
    "EXECUTOR_TLS_VARIABLE",
    "EXECUTOR_TOKEN_VARIABLE",
    "FLOW_VARIABLE",
    "LOG_FORMATS",
    "LOG_FORMAT_VARIABLE",
    "LOOPBACK",
    "PRECISIONS",
    "AdminConfig",
    "EngineConfig",
    "GatewayConfig",
    "HostConfig",
    "KernelSource",
    "LogFormat",
    "ModelConfig",
    "ModelOptions",
    "Option",
    "Panel",
    "Precision",
    "Runner",
    "ServeConfig",
    "ServedModel",
    "check_bounds",
    "flag_of",
    "options_of",
]
