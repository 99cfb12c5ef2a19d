# The trainer: Python, the locked environment, the package. docs/images.md says how it is built.
#
# Only what Docker 20.10 without BuildKit understands, so that every builder since then can make it.
# From what changes never to what changes daily: after an edit of runner/ only the last steps run.
#
# The digest is of the multi-arch index, Ubuntu 24.04 with Python 3.12. torch's wheels bring their
# own CUDA libraries; of the base it is the driver's settings (NVIDIA_*) that count.
ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04@sha256:c3fde347d52d578c84fd644bc177bc7ec333feaf11550d990da4084d7612e4c7
FROM ${BASE}

# gcc and the headers: Triton compiles a launcher when a kernel is first used. A distribution's
# packages can't be pinned for long (it drops superseded ones); image.json records what came.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates gcc libc6-dev python3 python3-dev python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/runner \
    && useradd --no-log-init --uid 10001 --create-home runner \
    && chmod 1777 /home/runner

# LD_LIBRARY_PATH: the driver's places alone. What the base adds would hide torch's own libraries.
# USER: torch and getpass ask for a name, and a uid from `docker run --user` has none.
ENV PATH=/opt/runner/bin:/usr/local/nvidia/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    HOME=/home/runner \
    USER=runner \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1

# The indexes are PyPI's mirror, where one is nearer, and the one of torch's CPU build, which PyPI
# lacks; the hashes hold wherever a file comes from.
# deepspeed is the one package without wheels: it is built with the locked setuptools, not with
# whatever an isolated build would fetch. pip compiles the bytecode, as the root will be read-only.
# No kernel is built here (DS_BUILD_OPS=0), yet its setup.py asks nvcc for CUDA's version where it
# finds /usr/local/cuda, to choose architectures: a base without the compiler has that folder and no
# nvcc. TORCH_CUDA_ARCH_LIST, set for this step alone, leaves it nothing to ask.
ARG LOCK=train.lock
ARG INDEX_URL=
ARG EXTRA_INDEX_URL=
# TORCH_INDEX is an index that has the locked torch for another CUDA, for an older driver: torch,
# Triton and the CUDA libraries then come from there and PyPI in the versions that this torch asks
# for, by version and not by hash (the lock has no hashes of them). A base's own demand for a driver
# says nothing of that torch.
ARG TORCH_INDEX=
ENV NVIDIA_DISABLE_REQUIRE=${TORCH_INDEX:+1}
COPY docker/${LOCK} /opt/runner/environment.lock
RUN awk -v other="${TORCH_INDEX}" \
        '/^[a-z]/ { wheel = !/^deepspeed==/ && !(other != "" && /^(torch==|triton==|cuda-|nvidia-)/ && !/^nvidia-ml-py==/) } wheel' \
        /opt/runner/environment.lock > /tmp/wheels.lock \
    && awk '/^[a-z]/ { source = /^deepspeed==/ } source' /opt/runner/environment.lock > /tmp/sources.lock \
    && export PIP_INDEX_URL="${INDEX_URL}" PIP_EXTRA_INDEX_URL="${EXTRA_INDEX_URL}" \
        DS_BUILD_OPS=0 TORCH_CUDA_ARCH_LIST=9.0 \
    && pip install --no-cache-dir --disable-pip-version-check --progress-bar off --no-deps \
        --require-hashes --only-binary :all: -r /tmp/wheels.lock \
    && if [ -n "${TORCH_INDEX}" ]; then \
        sed -n 's/^\([a-z][^ ]*==[^\\]*\).*/\1/p' /tmp/wheels.lock > /tmp/versions.txt \
        && sed -n 's/^\(torch==[^ ]*\).*/\1/p' /opt/runner/environment.lock > /tmp/torch.txt \
        && { pip install --no-cache-dir --disable-pip-version-check --progress-bar off --no-deps \
                --only-binary :all: --index-url "${TORCH_INDEX}" -r /tmp/torch.txt \
            || { echo "no torch of the locked version from ${TORCH_INDEX}" >&2; exit 1; } ; } \
        && pip install --no-cache-dir --disable-pip-version-check --progress-bar off \
            --only-binary :all: --extra-index-url "${TORCH_INDEX}" --constraint /tmp/versions.txt \
            -r /tmp/torch.txt \
        && rm /tmp/torch.txt /tmp/versions.txt ; \
    fi \
    && pip install --no-cache-dir --disable-pip-version-check --progress-bar off --no-deps \
        --require-hashes --no-build-isolation --use-pep517 -r /tmp/sources.lock \
    && pip check \
    && rm /tmp/wheels.lock /tmp/sources.lock

# What is in here, for the host to read without starting torch; and the way to the package.
COPY docker/describe.py /opt/runner/describe.py
RUN python /opt/runner/describe.py > /opt/runner/image.json \
    && python -c 'import sysconfig; print("/opt/runner/package", file=open(sysconfig.get_path("purelib") + "/runner.pth", "w"))' \
    && printf '#!/opt/runner/bin/python\nfrom runner.cli import main\n\nmain()\n' > /opt/runner/bin/runner \
    && chmod 755 /opt/runner/bin/runner

COPY shell /opt/runner/package/shell
COPY jobs /opt/runner/package/jobs
COPY runner /opt/runner/package/runner
# A checkout under umask 077 is not to end in an image that only root can read.
RUN python -m compileall -q /opt/runner/package/runner \
    && chmod -R a+rX /opt/runner/package

USER 10001:10001
WORKDIR /home/runner
# tini passes signals to the whole group; it stands in for nvidia's own entry point, whose banner
# and checks runner does itself.
ENTRYPOINT ["/usr/bin/tini", "-g", "--"]
CMD ["runner", "--help"]
