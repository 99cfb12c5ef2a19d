# The MGM toolkit at a pinned commit, with the packages that it was written for. docs/mgm.md says
# more; built from the repository's root as context, like the train image.
#
# Where the context has the toolkit (toolkit/mgm/...), that is taken and GitHub is not asked;
# otherwise the commit below is cloned.
#
# The base needs CUDA's compiler, since DeepSpeed builds its CPU Adam at the first start, and Python
# 3.10. The digest is the one that builds of several public projects log for this tag.
ARG BASE=nvidia/cuda:11.8.0-cudnn8-devel-ubuntu22.04@sha256:8f9dd0d09d3ad3900357a1cf7f887888b5b74056636cd6ef03c160c3cd4b1d95
FROM ${BASE}

# A distribution's packages can't be pinned for long (it drops superseded ones); image.json records
# what came.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        build-essential ca-certificates git libglib2.0-0 python3 python3-dev python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/runner \
    && useradd --no-log-init --uid 10001 --create-home runner \
    && chmod 1777 /home/runner

# USER: torch and getpass ask for a name, and a uid from `docker run --user` has none.
ENV PATH=/opt/runner/bin:/usr/local/nvidia/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/home/runner \
    USER=runner \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    DS_BUILD_OPS=0 \
    DS_SKIP_CUDA_CHECK=1

# The toolkit's pins for LoRA (transformers 4.38 is the first with Gemma; MGM's own pyproject says
# 4.36.2). numpy 1 for torch 2.0, setuptools with pkg_resources for DeepSpeed 0.11, pydantic 1.
ARG INDEX_URL=
ARG EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu118
ARG TORCH_VERSION=2.0.1
ARG TORCHVISION_VERSION=0.15.2
RUN export PIP_INDEX_URL="${INDEX_URL}" PIP_EXTRA_INDEX_URL="${EXTRA_INDEX_URL}" \
    && export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off \
    && pip install "pip==24.0" "setuptools==69.5.1" "wheel==0.43.0" \
    && pip install "torch==${TORCH_VERSION}" "torchvision==${TORCHVISION_VERSION}" "numpy==1.26.4" "ninja==1.11.1.1" \
    && pip install --no-build-isolation \
        "accelerate==0.27.2" "bitsandbytes==0.41.0" "deepspeed==0.11.1" "einops==0.6.1" \
        "numpy==1.26.4" "open_clip_torch==2.32.0" "opencv-python-headless==4.9.0.80" \
        "openpyxl==3.1.5" "pandas==2.2.2" "peft==0.4.0" "pillow==10.4.0" "protobuf==4.25.3" \
        "pydantic==1.10.17" "requests==2.32.3" "safetensors==0.4.3" "scipy==1.13.1" \
        "sentencepiece==0.1.99" "shortuuid==1.0.13" "timm==0.9.16" "tokenizers==0.15.0" \
        "transformers==4.38.0"

# toolkit* matches nothing where the context has no such folder; the first name always is there.
COPY docker/describe.py toolkit* /opt/runner/context/
ARG MGM_REPOSITORY=https://github.com/dvlab-research/MGM.git
ARG MGM_COMMIT=769820cb71afc7c2b9a2166ca3ce92db1636215c
WORKDIR /opt/runner/toolkit
RUN mv /opt/runner/context/describe.py /opt/runner/describe.py \
    && if [ -d /opt/runner/context/mgm ]; then \
        cp -a /opt/runner/context/. . \
        && echo "of the build context" > /opt/runner/toolkit.txt ; \
    else \
        git init --quiet . \
        && git fetch --quiet --depth 1 "${MGM_REPOSITORY}" "${MGM_COMMIT}" \
        && git checkout --quiet FETCH_HEAD \
        && test "$(git rev-parse HEAD)" = "${MGM_COMMIT}" \
        && echo "${MGM_REPOSITORY} ${MGM_COMMIT}" > /opt/runner/toolkit.txt ; \
    fi \
    && rm -rf /opt/runner/context .git \
    && test -f mgm/train/train.py \
    && test -f mgm/model/builder.py \
    && chmod -R a+rX . \
    && python /opt/runner/describe.py > /opt/runner/image.json

USER 10001:10001
WORKDIR /home/runner
# tini passes signals to the whole group.
ENTRYPOINT ["/usr/bin/tini", "-g", "--"]
CMD ["python", "-c", "import torch, transformers; print(torch.__version__, transformers.__version__)"]
