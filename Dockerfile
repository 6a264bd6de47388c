# The image that serves GPT-J. docs/image.md says what is in it and why.
#
#   docker build -t gptj-serve .
#   docker run --gpus all -p 8080:8080 -v /path/to/model:/opt/ml/model:ro gptj-serve serve
#
# CUDA 12.6 is the last that PyTorch builds for the V100. BASE_IMAGE replaces both images; BUILD_IMAGE (which needs nvcc)
# and RUNTIME_IMAGE replace one each. Both must have the same Python and the same PyTorch.
ARG BASE_IMAGE=
ARG BUILD_IMAGE=${BASE_IMAGE:-pytorch/pytorch:2.12.1-cuda12.6-cudnn9-devel}
ARG RUNTIME_IMAGE=${BASE_IMAGE:-pytorch/pytorch:2.12.1-cuda12.6-cudnn9-runtime}

FROM ${BUILD_IMAGE} AS build
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=1

# The dependencies, in an environment that sees the image's own packages too: its PyTorch stays, whatever is installed
COPY requirements.lock ./
RUN python -m venv --system-site-packages --without-pip /opt/venv
ENV PATH=/opt/venv/bin:${PATH}
RUN sed '/^deepspeed==/,/[^\\]$/d' requirements.lock > others.lock \
 && python -m pip install --no-deps --require-hashes -r others.lock

# DeepSpeed, its kernels compiled for every GPU from the V100 to the H100; no GPU is needed. A PyTorch without CUDA
# gets none, one with CUDA must get them.
ARG KERNEL_ARCHS="7.0;7.5;8.0;8.6;8.9;9.0+PTX"
COPY scripts/build-kernels scripts/
RUN KERNEL_ARCHS="${KERNEL_ARCHS}" scripts/build-kernels deepspeed wheels \
 && python -m pip install --no-deps wheels/*.whl

# The fused engine's kernels need these files alone: no other change compiles them again
COPY code/gptj_serve/errors.py code/gptj_serve/logs.py code/gptj_serve/
COPY code/gptj_serve/engine/fused/kernels/library.py code/gptj_serve/engine/fused/kernels/
COPY code/gptj_serve/engine/fused/kernels/csrc code/gptj_serve/engine/fused/kernels/csrc
RUN KERNEL_ARCHS="${KERNEL_ARCHS}" scripts/build-kernels fused

# libcuda.so for hosts with an older driver, which the runtime images lack; `serve` decides whether it is used
RUN mkdir -p /opt/cuda-compat \
 && if [ -d /usr/local/cuda/compat ]; then cp -a /usr/local/cuda/compat/. /opt/cuda-compat/; fi

# The service comes last, around the compiled library: a change in it rebuilds nothing above
COPY pyproject.toml README.md ./
COPY code code
RUN python -m pip install --no-deps --no-build-isolation --target /opt/gptj-serve .

FROM ${RUNTIME_IMAGE}
WORKDIR /

# PyTorch's images bring a compiler for Triton, which is not used here
RUN if dpkg -s gcc > /dev/null 2>&1; then apt-get purge -y --auto-remove gcc; fi

COPY --from=build /opt/cuda-compat /opt/cuda-compat
COPY --from=build /opt/venv /opt/venv

# With the requirement check off, a driver that is too old ends in our log instead of a container that never starts
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/opt/gptj-serve \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_DISABLE_REQUIRE=1

COPY --from=build /opt/gptj-serve /opt/gptj-serve
COPY serve /usr/local/bin/serve
# The model server's native library has to lie somewhere else than in a /tmp that may be mounted noexec
RUN python -m gptj_serve.serving.mms_native && python -m gptj_serve.self_check

EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 CMD ["sh", "-c", "cd / && exec python -m gptj_serve.health"]
ENTRYPOINT ["serve"]

# SAGEMAKER_BIND_TO_PORT is honoured
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
ARG RUNTIME_IMAGE
ARG VERSION=0.1.0
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="gptj-serve" \
      org.opencontainers.image.description="Serves GPT-J at the lowest latency its hardware allows" \
      org.opencontainers.image.base.name="${RUNTIME_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
