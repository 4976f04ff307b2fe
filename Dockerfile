# The images of Mini-R1 Kit.
#
#   docker build -t mini-r1 .                        runtime: everything pinned, for GPUs
#   docker build -t mini-r1:cpu --target cpu .       the demo, plans, scores, evaluation
#   docker build -t mini-r1:test --target test .     no torch: scorer, recipe, plan and their tests
#
# docs/image.md describes layers, sizes and arguments.

# By digest, because a tag can be moved. CUDA's `base`, because torch's wheels contain the CUDA libraries; of the gigabytes
# of `devel` only nvcc is needed.
ARG CUDA_BASE=nvidia/cuda:12.4.1-base-ubuntu22.04@sha256:0f6bfcbf267e65123bcc2287e2153dedfc0f24772fb5ce84afe16ac4b2fada95
# For images without a GPU: a third of the size, and includes Python.
ARG PYTHON_BASE=python:3.11.13-slim-bookworm@sha256:86adf8dbadc3d6e82ee5dd2c74bec2e1c2467cdad47886280501df722372d2e1


# ---- the installer, which is in no image -----------------------------------------------------------------------------
FROM ${PYTHON_BASE} AS uv

# A pipe fails if any of its commands fails.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# By version and hash, in a separate environment.
RUN --mount=type=bind,source=app/locks/uv.txt,target=/locks/uv.txt \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --quiet --require-hashes --no-deps --only-binary :all: -r /locks/uv.txt
# copy: the cache is a mount, and a hard link into it would not survive. 180 s: a wheel of 900 MB on a slow connection
# pauses for longer than uv's 30 s. Each target decides about bytecode.
ENV PATH=/opt/uv/bin:$PATH \
    UV_LINK_MODE=copy \
    UV_HTTP_TIMEOUT=180 \
    UV_PYTHON_INSTALL_DIR=/opt/python


# ---- the kit as a wheel: with `test`, the only stage that sees the source --------------------------------------------
FROM uv AS wheel

WORKDIR /src
# Only the wheel's sources: a change of a test or a page rebuilds nothing.
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY app/mini_r1 app/mini_r1
# The build backend is locked too.
RUN --mount=type=bind,source=app/locks/dev.txt,target=/locks/dev.txt \
    --mount=type=cache,target=/root/.cache/uv \
    uv build --quiet --wheel --build-constraints /locks/dev.txt --require-hashes --python-preference only-system \
    --out-dir /wheel


# ---- the base without a GPU ------------------------------------------------------------------------------------------
FROM ${PYTHON_BASE} AS slim

# tini, as the first process, forwards signals and reaps processes that vLLM and the workers leave; without it a SIGTERM
# would be lost, and a stopped job killed before it has saved. apt's files stay in the builder's cache, not in the layer.
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends tini
# Docker's Python images have no bytecode for the standard library, and with a read-only root every start would compile
# it again. Debian's Python has it: nothing is written there.
RUN python3 -m compileall -q -x '/(tests?|site-packages)/' \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
# A fixed user without a login, in root's group, as OpenShift starts arbitrary users. The writable folders are writable for
# every user (like /tmp), so that `--user 12345:12345` works too. A new named volume gets these permissions.
RUN useradd --uid 1000 --gid 0 --no-log-init --no-create-home --home-dir /home/mini-r1 --shell /usr/sbin/nologin mini-r1 \
    && install -d -m 1777 /home/mini-r1 /cache /workspace /workspace/runs
# USER: an unknown uid has no name, and torch's compiler needs one. HF_HOME and XDG_CACHE_HOME are persistent (models, data,
# the demo's warm start); compiled code is in HOME, on the node: Triton's cache hangs on NFS. It is HOME itself, because
# DeepSpeed checks that folder at import, and warns if it does not exist. matplotlib's list of fonts is in HOME too: /cache
# may be mounted read-only. No bytecode is written, because the root may be read-only. Telemetry is off.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/mini-r1 \
    USER=mini-r1 \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    TRITON_CACHE_DIR=/home/mini-r1 \
    TORCHINDUCTOR_CACHE_DIR=/home/mini-r1/inductor \
    TORCH_EXTENSIONS_DIR=/home/mini-r1/torch_extensions \
    VLLM_CACHE_ROOT=/home/mini-r1/vllm \
    MPLCONFIGDIR=/home/mini-r1/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1
# A recipe's run directory, runs/NAME, is below it.
WORKDIR /workspace


# ---- test: no torch --------------------------------------------------------------------------------------------------
FROM uv AS test-environment

# The lock before the source: a change of the source keeps this layer.
RUN --mount=type=bind,source=app/locks/test.txt,target=/locks/test.txt \
    --mount=type=cache,target=/root/.cache/uv \
    uv venv --quiet --python-preference only-system --python 3.11 /opt/venv \
    && uv pip sync --quiet --python /opt/venv/bin/python --require-hashes /locks/test.txt

FROM slim AS test

COPY --link --from=test-environment /opt/venv /opt/venv
# From the checkout, not the wheel, because tests read configs, docs and locks.
WORKDIR /src
COPY pyproject.toml Makefile README.md SECURITY.md LICENSE ./
COPY configs configs
COPY docs docs
COPY app app
COPY tests tests
ENV PYTHONPATH=/src/app
# By number: Kubernetes cannot check whether a name is root's.
USER 1000:0
# pytest would write its cache into the source, which belongs to root.
ENTRYPOINT ["/usr/bin/tini", "--", "python", "-m", "pytest", "-p", "no:cacheprovider"]
# The tests that a change of a reward, a recipe or a plan can break. Other arguments replace this list.
CMD ["tests/countdown", "tests/test_recipe.py", "tests/test_rundir.py", "tests/test_manifest.py", \
     "tests/cluster/test_devices.py", "tests/cluster/test_nodes.py", "tests/cluster/test_roles.py", \
     "tests/cluster/test_plan.py", "tests/cluster/test_timing.py", "tests/cluster/test_shipped_recipes.py"]


# ---- cpu: the demo ---------------------------------------------------------------------------------------------------
FROM slim AS cpu

# PyTorch's CPU build has 175 MB, from its index or a mirror. Empty: the package registry's build, which includes CUDA's
# libraries, 5 GB in all, and computes the same on the CPU.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# Installed here, not copied from another stage, with hard links into a cache that this layer does not keep: gigabytes
# are written once instead of three times. Compile bytecode now, because a read-only root cannot store it later.
RUN --mount=type=bind,source=app/locks,target=/locks \
    --mount=type=bind,from=uv,source=/opt/uv,target=/opt/uv \
    if [ -n "${TORCH_CPU_INDEX}" ]; then \
        sed "s|https://download.pytorch.org/whl/cpu/|${TORCH_CPU_INDEX%/}/|" /locks/torch-cpu.txt >/tmp/torch.txt; \
    else \
        cp /locks/torch.txt /tmp/torch.txt; \
    fi \
    && export UV_CACHE_DIR=/opt/uv-cache UV_LINK_MODE=hardlink UV_HTTP_TIMEOUT=180 \
    && /opt/uv/bin/uv venv --quiet --python-preference only-system --python 3.11 /opt/venv \
    && /opt/uv/bin/uv pip sync --quiet --python /opt/venv/bin/python --compile-bytecode --require-hashes \
        /locks/train.txt /tmp/torch.txt \
    && rm -r /tmp/torch.txt /opt/uv-cache
# The kit last: a new version changes only a layer of a megabyte.
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    --mount=type=bind,from=uv,source=/opt/uv,target=/opt/uv \
    /opt/uv/bin/uv pip install --quiet --python /opt/venv/bin/python --no-cache --no-deps --no-index --compile-bytecode \
    /wheel/*.whl
# docker-compose.yml runs it before services with a GPU; here too, because tests use this image in place of `runtime`.
COPY --link --chmod=755 docker/gpu-check.sh /usr/local/bin/gpu-check
# After the expensive layers, because it differs in every build.
ARG REVISION=
ENV MINI_R1_REVISION=${REVISION}
LABEL org.opencontainers.image.title="Mini-R1 Kit (CPU)" \
      org.opencontainers.image.description="GRPO on the Countdown game: the demo, on a machine without a GPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
# By number: Kubernetes cannot check whether a name is root's.
USER 1000:0
# `docker run IMAGE launch auto` reads like the command line. Without a command it prints its help.
ENTRYPOINT ["/usr/bin/tini", "--", "mini-r1"]
CMD ["--help"]


# ---- runtime: everything pinned, for GPUs ----------------------------------------------------------------------------
FROM uv AS runtime-environment

# Ubuntu 22.04 has 3.10, and a release candidate of 3.11. uv's build of CPython runs on any Linux, includes the headers that
# Triton compiles against, and is verified against a hash in uv. `only-system` uses the base's Python. Its standard library
# has no bytecode either.
ARG PYTHON_PREFERENCE=only-managed
RUN mkdir -p /opt/python \
    && uv venv --quiet --python-preference "${PYTHON_PREFERENCE}" --python 3.11 /opt/venv \
    && /opt/venv/bin/python -m compileall -q -x '/(tests?|site-packages)/' /opt/python
# DeepSpeed is a source distribution: its build backend is locked too. None of its CUDA operations is compiled.
RUN --mount=type=bind,source=app/locks,target=/locks \
    --mount=type=cache,target=/root/.cache/uv \
    uv pip sync --quiet --python /opt/venv/bin/python --compile-bytecode --require-hashes \
    --build-constraints /locks/dev.txt /locks/gpu.txt
# The release wheel, not the registry's source, which compiles for hours. FLASH_ATTN=0 leaves it out if GitHub is not
# reachable; recipes then need attn_implementation: sdpa.
ARG FLASH_ATTN=1
RUN --mount=type=bind,source=app/locks,target=/locks \
    --mount=type=cache,target=/root/.cache/uv \
    if [ "${FLASH_ATTN}" = 1 ]; then \
        uv pip install --quiet --python /opt/venv/bin/python --compile-bytecode --no-deps --require-hashes \
            -r /locks/flash-attn.txt \
        && /opt/venv/bin/python -c 'import flash_attn; assert flash_attn.__version__ == "2.7.4.post1"'; \
    fi

# Remove what no run uses: the symbol table of the LLVM in Triton (350 MB), bitsandbytes for other versions of CUDA (190 MB),
# the tests of third-party packages (110 MB). Then check the rest, without a GPU.
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends binutils
RUN --mount=type=bind,source=docker/check-runtime.py,target=/check-runtime.py \
    packages=/opt/venv/lib/python3.11/site-packages \
    && strip --strip-unneeded "${packages}"/triton/_C/*.so \
    && find "${packages}/bitsandbytes" -name 'libbitsandbytes_cuda*.so' ! -name '*cuda124.so' -delete \
    && find "${packages}" -type d -name tests -prune -exec rm -rf {} + \
    && TRITON_CACHE_DIR=/tmp/triton /opt/venv/bin/python /check-runtime.py

FROM ${CUDA_BASE} AS runtime

# gcc and libc6-dev: Triton compiles a launcher for each kernel. libibverbs and its drivers: NCCL loads them at run time, and
# without them uses TCP between nodes that have InfiniBand. nvcc: DeepSpeed 0.15.4 asks for its version when it is imported
# on a GPU. An empty NVCC leaves it out.
ARG NVCC=cuda-nvcc-12-4=12.4.131-1
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends tini gcc libc6-dev ca-certificates \
        libibverbs1 ibverbs-providers ${NVCC}
# As in `slim`, for the same reasons.
RUN useradd --uid 1000 --gid 0 --no-log-init --no-create-home --home-dir /home/mini-r1 --shell /usr/sbin/nologin mini-r1 \
    && install -d -m 1777 /home/mini-r1 /cache /workspace /workspace/runs
ENV PATH=/opt/venv/bin:$PATH \
    CUDA_HOME=/usr/local/cuda \
    HOME=/home/mini-r1 \
    USER=mini-r1 \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    TRITON_CACHE_DIR=/home/mini-r1 \
    TORCHINDUCTOR_CACHE_DIR=/home/mini-r1/inductor \
    TORCH_EXTENSIONS_DIR=/home/mini-r1/torch_extensions \
    VLLM_CACHE_ROOT=/home/mini-r1/vllm \
    MPLCONFIGDIR=/home/mini-r1/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1
WORKDIR /workspace
# Python (empty with the base's Python) and the environment; --link: a new base does not copy them again.
COPY --link --from=runtime-environment /opt/python /opt/python
COPY --link --from=runtime-environment /opt/venv /opt/venv
# What NCCL and DeepSpeed look for on a node, where its absence would be noticed too late.
RUN /opt/venv/bin/python -c 'import ctypes; ctypes.CDLL("libibverbs.so.1")' \
    && if [ -n "${NVCC}" ]; then "${CUDA_HOME}/bin/nvcc" --version; fi
# The kit last: a new version changes only a layer of a megabyte.
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    --mount=type=bind,from=uv,source=/opt/uv,target=/opt/uv \
    /opt/uv/bin/uv pip install --quiet --python /opt/venv/bin/python --no-cache --no-deps --no-index --compile-bytecode \
    /wheel/*.whl
# docker-compose.yml runs it before services with a GPU.
COPY --link --chmod=755 docker/gpu-check.sh /usr/local/bin/gpu-check
# After the expensive layers, because it differs in every build.
ARG REVISION=
ENV MINI_R1_REVISION=${REVISION}
LABEL org.opencontainers.image.title="Mini-R1 Kit" \
      org.opencontainers.image.description="GRPO on the Countdown game with torch 2.5.1, vLLM 0.7.0, TRL 0.14.0 and DeepSpeed 0.15.4" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
# By number: Kubernetes cannot check whether a name is root's.
USER 1000:0
# `docker run IMAGE launch auto` reads like the command line. Without a command it prints its help.
ENTRYPOINT ["/usr/bin/tini", "--", "mini-r1"]
CMD ["--help"]
