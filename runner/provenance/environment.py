"""Which variables a manifest keeps, and how values of secrets are kept out of it. Pure.

Imports the standard library only. An allow-list: a variable nobody thought of is not written down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

DECIDING_PREFIXES = (
    *("ATEN_", "CUBLAS_", "CUDNN_", "DNNL_", "GLOO_", "KMP_", "MALLOC_", "MKL_", "NCCL_", "NVTE_"),
    *("ONEDNN_", "OPENBLAS_", "PYTORCH_", "TORCH_"),
)
DECIDING = ("CUDA_LAUNCH_BLOCKING", "GLIBC_TUNABLES", "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED")
"""With those that begin so: variables that can decide a result's bits."""
KEPT = (
    *("CUDA_VISIBLE_DEVICES", "HF_DATASETS_OFFLINE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "LANG"),
    *(
        "GOMP_SPINCOUNT",
        "LC_ALL",
        "LD_PRELOAD",
        "MODELSCOPE_ENDPOINT",
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
    ),
    *("RUNNER_ON", "SLURM_JOB_ID", "TRANSFORMERS_OFFLINE", "TZ"),
)
"""Kept to explain a run; launch.sh sets those of OMP itself."""
_SECRET = re.compile(
    r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|AUTH|PRIVATE|COOKIE|SIGNATURE|BEARER|PIN$|PWD_|"
    r"_PWD|_PAT$|DSN$"
)
_SHORTEST = 6
"""Letters of a secret that is struck out of texts; shorter ones would strike out innocent words."""
_USER = re.compile(r"(?<=://)[^/@\s]+@")


def looks_secret(name: str) -> bool:
    """Whether a variable's name is one under which secrets are kept."""
    return _SECRET.search(name.upper()) is not None


def decides(name: str) -> bool:
    """Whether a variable can decide a result's bits."""
    return name in DECIDING or name.startswith(DECIDING_PREFIXES)


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a manifest says, sorted; users and passwords in addresses are masked."""
    return {
        name: _USER.sub("***@", value)
        for name, value in sorted(environment.items())
        if (decides(name) or name in KEPT) and not looks_secret(name)
    }


def secret_values(environment: Mapping[str, str], named: Iterable[str] = ()) -> dict[str, str]:
    """Value to name of every variable that is a secret by its name, or is called one (`named`)."""
    wanted = set(named)
    return {
        value: name
        for name, value in sorted(environment.items())
        if (name in wanted or looks_secret(name)) and len(value) >= _SHORTEST
    }


def without_secrets(record: Any, secrets: Mapping[str, str]) -> Any:
    """The same JSON-ready value, with each secret in its texts replaced by its variable's name."""
    if isinstance(record, str):
        for value in sorted(secrets, key=len, reverse=True):
            record = record.replace(value, f"[{secrets[value]}]")
        return record
    if isinstance(record, Mapping):
        return {
            without_secrets(key, secrets): without_secrets(value, secrets)
            for key, value in record.items()
        }
    if isinstance(record, list | tuple):
        return [without_secrets(item, secrets) for item in record]
    return record
