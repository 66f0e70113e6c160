# Waymo's metrics on the CPU, native and official: docs/metrics.md has the line that runs it.
#
#   docker build -f docker/evaluate.Dockerfile -t detection3d-evaluate .
#
# BASE is any image with Python 3.11, its venv module and certificates, on x86_64.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# The packages change seldom and weigh most: a layer of their own, before the code.
COPY docker/evaluation_environment.sh docker/evaluation_requirements.txt docker/slim_environment.sh /opt/detection3d/docker/
RUN PIP_NO_CACHE_DIR=1 /opt/detection3d/docker/evaluation_environment.sh --packages /opt/evaluation \
 && /opt/detection3d/docker/slim_environment.sh /opt/evaluation

COPY LICENSE README.md pyproject.toml /opt/detection3d/
COPY configs /opt/detection3d/configs
COPY docker /opt/detection3d/docker
COPY tools /opt/detection3d/tools
COPY detection3d /opt/detection3d/detection3d
# A plain processor's code: this image may run on another machine than the one that built it.
ENV NUMBA_CPU_NAME=generic \
    DETECTION3D_PYTHON=/opt/evaluation/bin/python \
    DETECTION3D_CACHE=/opt/cache
RUN PIP_NO_CACHE_DIR=1 /opt/detection3d/docker/evaluation_environment.sh /opt/evaluation \
 && /opt/detection3d/docker/warm_caches.sh /opt/evaluation/bin/python /opt/cache

USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["/opt/detection3d/docker/evaluate.sh"]
CMD ["--help"]
