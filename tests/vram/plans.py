"""Plans without weights: of models in runner's table, on a GPU that is not here or on the CPU."""

from __future__ import annotations

from typing import Any

from runner.engines.sft.job import SftJob
from runner.engines.sft.plan import SftPlan


def gpu_plan(model: str = "Qwen/Qwen2.5-0.5B", *, device: str = "cuda", **settings: Any) -> SftPlan:
    """A plan in bf16, of a job with these settings; `launch`: more of the planned launch."""
    launch = settings.pop("launch", {})
    precision = settings.pop("precision", "bf16")
    budget = settings.pop("budget_bytes", None)
    job = SftJob.model_validate(
        {
            "model": model,
            "data": {"train": "rows.jsonl"},
            "tracking": {"report_to": []},
            **settings,
        }
    )
    rows = {"kind": "file", "path": "/rows.jsonl", "sha256": "0" * 64, "size_bytes": 1}
    return SftPlan.model_validate(
        {
            "job": "planned",
            "description": "",
            "variant": "train",
            "engine": "sft",
            "model": {"kind": "hub", "id": model},
            "trust_remote_code": False,
            "method": job.method,
            "lora": job.lora.model_dump(),
            "quantization": job.quantization.model_dump(),
            "prefix": job.prefix.model_dump(),
            "trains": ["adapter"],
            "data": job.data.model_dump(),
            "rows": {"train": rows},
            "training": job.training.model_dump(),
            "evaluation": job.evaluation.model_dump(),
            "tracking": job.tracking.model_dump(),
            "precision": precision,
            "launch": {
                "device": device,
                "num_processes": 1,
                "deepspeed": "none",
                "threads_per_process": 1,
                **launch,
            },
            "budget": {"kind": "gpu", "limit_bytes": budget} if budget else {"kind": "none"},
            "timeout_minutes": None,
            "python": "python",
        }
    )
