"""Names and choices that settings have, and the environment variables beside them."""

from typing import Literal, get_args

DEFAULT_MODEL = "smollm2"
Precision = Literal["auto", "fp32", "fp16", "bf16", "bit8", "bit4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Runner = Literal["auto", "native", "fast", "generic", "alone"]
KernelSource = Literal["auto", "prebuilt", "compiled"]
GenerationConfig = Literal["auto", "none"]
DEVICE_MAPS = ("single", "balanced", "auto", "sequential")
API_KEY_VARIABLE = "RUNGPT_API_KEY"
"""Environment variable with the API key, for a gateway and for its clients."""
CA_FILE_VARIABLE = "RUNGPT_CA_FILE"
"""Environment variable with the file of the certificates that clients trust."""
FLOW_VARIABLE = "RUNGPT_FLOW"
"""Environment variable with a Flow's YAML, for a pod without a supervisor, such as a container."""
EXECUTOR_TOKEN_VARIABLE = "RUNGPT_EXECUTOR_TOKEN"
"""Environment variable with the token that an executor asks of its gateways. Without it an executor takes any call."""
EXECUTOR_TLS_VARIABLE = "RUNGPT_EXECUTOR_TLS"
"""Environment variable with the folder of the certificate for TLS between gateways and executors."""
LogFormat = Literal["text", "json"]
LOG_FORMATS: tuple[str, ...] = get_args(LogFormat)
LOG_FORMAT_VARIABLE = "RUNGPT_LOG_FORMAT"
"""Environment variable with the form of a pod's log, which the pod needs before it reads a Flow."""
EXECUTOR_PORT = 51001
"""Port of an executor in its own container."""
LOOPBACK = "127.0.0.1"
EVERY_INTERFACE = "0.0.0.0"
