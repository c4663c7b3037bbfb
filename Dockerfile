# One image for each role: `rungpt serve`, a Flow's gateway, and its executors. docs/deploy/docker.md has the arguments.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# ---- What changes seldom: system packages, torch, the other dependencies. A change of our code leaves it alone.
FROM ${PYTHON_IMAGE} AS dependencies

# tini: a process with the id 1 that is still loading a model does not hear SIGTERM.
# Versions are those of the base image's Debian: the mirrors drop a pinned one with the next update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /src
COPY constraints.txt pyproject.toml ./

# The CPU build of torch; `--build-arg TORCH=cu130` is one with CUDA, whose libraries come as packages in the next step.
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${TORCH}
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --index-url "${TORCH_INDEX}" --constraint constraints.txt torch

RUN --mount=type=cache,target=/root/.cache/pip \
    python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

# ---- Our wheel, in a stage of its own: the image has the installed package, neither the sources nor the compiler.
FROM dependencies AS wheel

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# The native kernels for each kind of CPU; without them answers come several times as slow.
ARG KERNELS=all
COPY README.md LICENSE setup.py ./
COPY executors executors
COPY flows flows
COPY run_gpt run_gpt
RUN RUNGPT_PREBUILT="${KERNELS}" pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

# ---- The image.
FROM dependencies

COPY --from=wheel /dist /dist
RUN pip install --no-deps --no-index --no-cache-dir /dist/*.whl \
    && pip check

# The user's number is in the image, so that an orchestrator can see that it is not root. Its group is root, which owns
# nothing that others may not read: where another user is chosen (OpenShift does), the cache can still be written.
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin rungpt \
    && install --directory --owner 10001 --group 0 --mode 2775 /cache

# Written at run time: /cache (models, kernels; a volume) and /tmp. All else may be read-only.
ENV RUNGPT_CACHE=/cache \
    HF_HOME=/cache/huggingface \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    JINA_OPTOUT_TELEMETRY=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /
USER 10001:0

# `--build-arg MODEL=smollm2` bakes a model in. One that needs a token: `--secret id=HF_TOKEN,env=HF_TOKEN`.
ARG MODEL=
RUN --mount=type=secret,id=HF_TOKEN,uid=10001 \
    test -z "${MODEL}" || HF_TOKEN_PATH=/run/secrets/HF_TOKEN rungpt models pull "${MODEL}"

LABEL org.opencontainers.image.title="RunGPT" \
      org.opencontainers.image.description="A large language model over gRPC and HTTP" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0"

EXPOSE 51000 52000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-P", "-m", "run_gpt.flows.healthcheck"]

ENTRYPOINT ["tini", "--", "rungpt"]
CMD ["serve"]
