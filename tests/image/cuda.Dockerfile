# A base image with CUDA 13 made of PyPI's packages alone: it proves the kernel build where PyTorch's own images are out
# of reach. PyTorch as PyPI has it, the compiler and headers of the same CUDA, cuobjdump to look at the result.
#
#   docker build -t pytorch-cuda13 -f tests/image/cuda.Dockerfile tests/image
#   TEST_CUDA_BASE_IMAGE=pytorch-cuda13 scripts/test-image -k cuda
ARG BASE=python:3.12
FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m pip install --quiet --no-cache-dir torch==2.12.1 "nvidia-cuda-nvcc==13.0.*" "nvidia-nvvm==13.0.*" \
      "nvidia-cuda-crt==13.0.*" "nvidia-cuda-cccl==13.0.*" "nvidia-cuda-profiler-api==13.0.*" nvidia-cuda-cuobjdump
# the toolkit's usual place, and the names that linkers look for
RUN toolkit=$(python -c 'import nvidia; print(list(nvidia.__path__)[0])')/cu13 \
 && ln -s "$toolkit" /usr/local/cuda && ln -s lib "$toolkit/lib64" && cd "$toolkit/lib" \
 && for library in *.so.*; do ln -s "$library" "${library%%.so.*}.so" 2>/dev/null || true; done
ENV CUDA_HOME=/usr/local/cuda PATH=/usr/local/cuda/bin:${PATH}
