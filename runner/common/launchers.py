"""The variables by which launchers tell training processes who they are. Pure; standard library.

Torchrun, Slurm, MPI, accelerate, DeepSpeed, SageMaker and Kubernetes' job operators say by them how
many processes train, which one this is, and where they meet. Only runner's own launch script sets
them for what it starts: with a WORLD_SIZE from outside (a notebook, an `srun` shell, a pod of an
operator) torch would wait for ranks that never come. A test compares these names with what the
installed libraries read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

NAMES = (
    *("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("LOCAL_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE"),
    *("NODE_RANK", "NNODES", "NPROC", "NPROC_PER_NODE", "CROSS_RANK", "CROSS_SIZE"),
    *("NCCL_COMM_ID", "FORK_LAUNCHED", "PYTHON_EXEC", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"),
    *("AZUREML_EXPERIMENT_ID", "AZ_BATCHAI_MPI_MASTER_NODE", "AZ_BATCH_MASTER_NODE"),
    *("DLTS_JOB_ID", "SM_FRAMEWORK_PARAMS", "SM_HP_MP_PARAMETERS", "SM_TRAINING_ENV"),
)
PREFIXES = (
    *("TORCHELASTIC_", "TORCH_ELASTIC_", "PET_", "ACCELERATE_", "FSDP_", "MEGATRON_LM_"),
    *("PARALLELISM_CONFIG_", "FP8_", "OMPI_", "PMI_", "PMIX_", "PRTE_", "PALS_", "JSM_", "FLUX_"),
    *("MV2_", "MPI_LOCAL", "I_MPI_", "SMDATAPARALLEL_", "HOROVOD_", "SLURM_"),
)
OF_BATCH_SYSTEMS = ("SLURM_",)
"""Of PREFIXES, those of a batch system. They say of the allocation what a user's own script may
need (SLURM_JOB_ID, SLURM_TMPDIR), and neither torch nor a launcher inside of it reads them."""
_A_LINE = 5


def is_of_launcher(name: str) -> bool:
    """Whether a variable is a launcher's."""
    return name in NAMES or name.startswith(PREFIXES)


def without_launchers(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with no launcher's variable in it."""
    return {name: text for name, text in environment.items() if not is_of_launcher(name)}


def of_launchers(environment: Iterable[str]) -> list[str]:
    """The names in `environment` that are a launcher's, sorted."""
    return sorted(name for name in environment if is_of_launcher(name))


def script_words(batch_systems: bool) -> list[str]:
    """Lines of bash words that name every such variable: names, and `${!PREFIX@}` for prefixes.

    With `batch_systems` those of OF_BATCH_SYSTEMS too.
    """
    prefixes = [each for each in PREFIXES if batch_systems or each not in OF_BATCH_SYSTEMS]
    words = [*NAMES, *(f'"${{!{prefix}@}}"' for prefix in prefixes)]
    return [" ".join(words[start : start + _A_LINE]) for start in range(0, len(words), _A_LINE)]
