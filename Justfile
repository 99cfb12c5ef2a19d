# What a maintainer repeats. `./just RECIPE` works on a machine with only bash and Python.

set positional-arguments

# List the recipes
default:
    @"{{ just_executable() }}" --list --unsorted

# Make or update .venv from requirements.lock; --torch-index URL for a driver older than its CUDA
setup *args:
    @./just --venv-only "$@"

# The demo job, a few steps, from data to a reloaded adapter
smoke *args: setup
    .venv/bin/runner smoke demo-identity --max-steps 5 "$@"

# Lint, types and all tests; arguments go to pytest
test *args: lint
    .venv/bin/python -m pytest -q -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder --cost "$@"

# The tests that start no trainer and need no Docker; arguments go to pytest
test-quick *args: setup
    .venv/bin/python -m pytest -q -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder -m "not slow and not e2e and not container and not soak" "$@"

# Long repetitions, about an hour, two lanes side by side: kills, hostile files, all jobs, published models; arguments name parts
soak *args: setup
    .venv/bin/python -m tests.support.soak "$@"

# Formatting, lint, shell scripts, imports between rooms and types, changing nothing
lint: setup
    .venv/bin/ruff format --check
    .venv/bin/ruff check
    .venv/bin/shellcheck just .ci/run benchmarks/*.sh tests/testbed/*.sh
    .venv/bin/hadolint docker/*.Dockerfile
    .venv/bin/lint-imports --no-cache --no-logo
    .venv/bin/mypy

# Format and fix what can be fixed
format: setup
    .venv/bin/ruff format
    .venv/bin/ruff check --fix

# Write the schemas of jobs (editors read it) and of manifests, and docs/job-fields.md
schema: setup
    .venv/bin/python -m runner.engines.job_kinds > jobs/.job.schema.json.tmp
    mv jobs/.job.schema.json.tmp jobs/job.schema.json
    .venv/bin/python -m runner.engines.job_reference > docs/.job-fields.md.tmp
    mv docs/.job-fields.md.tmp docs/job-fields.md
    .venv/bin/python -m runner.provenance.manifest > docs/.manifest.schema.json.tmp
    mv docs/.manifest.schema.json.tmp docs/manifest.schema.json

# Renew requirements.lock and the images' locks for pyproject.toml; versions stay unless given --upgrade or -P NAME
lock *args: setup
    #!/usr/bin/env bash
    set -euo pipefail
    # uv doesn't read pip's settings: hand it pip's index, if one is set, for this run only.
    index=${PIP_INDEX_URL:-$(.venv/bin/pip config get global.index-url 2>/dev/null || true)}
    if [[ $index ]]; then export UV_DEFAULT_INDEX=$index; fi
    .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 \
        --extra train --extra trackers --extra modelscope --extra dev --no-sources --no-annotate --no-emit-index-url \
        --custom-compile-command './just lock' --quiet "$@" -o requirements.lock
    # The images' locks: the same versions, with the hashes of their files.
    .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 \
        --extra train --extra trackers --extra modelscope --no-sources --no-annotate --no-emit-index-url \
        --generate-hashes --constraint requirements.lock \
        --custom-compile-command './just lock' --quiet -o docker/train.lock
    .venv/bin/python -m runner.containers.locks docker/train.lock docker/torch-cpu.hashes \
        > docker/.train-cpu.lock.tmp
    mv docker/.train-cpu.lock.tmp docker/train-cpu.lock

# Build the wheel into dist/
wheel: setup
    .venv/bin/python -m pip wheel --no-deps --wheel-dir dist .
