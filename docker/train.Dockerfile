# Training on CUDA: the README has the line that runs it.
#
#   docker build -f docker/train.Dockerfile -t detection3d-train .
#
# BASE is an image of Ubuntu 24.04 or Debian 12 on x86_64. The CUDA libraries come with torch; of a CUDA image only what
# tells the container runtime to bring the driver in is needed.
ARG BASE=nvidia/cuda:12.6.3-base-ubuntu24.04
FROM ${BASE}

COPY docker/system_packages.sh /opt/detection3d/docker/
# A compiler, since triton builds its launchers on first use.
RUN /opt/detection3d/docker/system_packages.sh python3 python3-venv python3-dev gcc libc6-dev ca-certificates

# The packages change seldom and weigh most: a layer of their own, before the code.
COPY docker/train_environment.sh /opt/detection3d/docker/
COPY pyproject.toml constraints.txt /opt/detection3d/
RUN PIP_NO_CACHE_DIR=1 /opt/detection3d/docker/train_environment.sh --packages /opt/train

COPY LICENSE README.md /opt/detection3d/
COPY configs /opt/detection3d/configs
COPY docker /opt/detection3d/docker
COPY tools /opt/detection3d/tools
COPY detection3d /opt/detection3d/detection3d
RUN PIP_NO_CACHE_DIR=1 /opt/detection3d/docker/train_environment.sh /opt/train

ENV DETECTION3D_PYTHON=/opt/train/bin/python
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["/opt/detection3d/docker/train.sh"]
