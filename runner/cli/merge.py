"""`runner merge`: base and adapter of a run as one model, and how that compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.common.output import Output, field
from runner.common.units import format_bytes
from runner.launch.merge import merge

_MUCH = 0.25
"""Share of an adapter's effect that rounding may take before it is said."""


def merge_run(
    run: str,
    *,
    out: Path | None,
    dtype: str | None,
    trust_code: bool = False,
    runs: Path | None,
    as_json: bool,
) -> int:
    """0, or the exit code of the refusal. Arguments and refusals are launch.merge's."""
    output = Output(as_json=as_json)
    merged = merge(run, output, out=out, dtype=dtype, trust_code=trust_code, runs=runs)
    if merged.record:
        output.result(merged.record, lines(merged.record))
    return merged.exit_code


def lines(record: dict[str, Any]) -> list[str]:
    """What a person is told of a merge."""
    stored, effect = record["stored_check"], record["adapter_effect"]
    out = [
        field(
            "merged",
            f"{record['folder']}: {record['dtype']}, {format_bytes(record['size_bytes'])}, sha256 "
            f"{record['sha256'][:12]}",
        ),
        field("compared", f"with base and adapter, on {record['rows']}: {_differs(stored)}"),
    ]
    if effect["relative"] and stored["relative"] > _MUCH * effect["relative"]:
        out.append(
            field(
                "NOTE",
                f"rounding to {record['dtype']} is {stored['relative'] / effect['relative']:.0%} "
                "of all that the adapter changes; --dtype fp32 keeps it",
            )
        )
    quantized = record["quantized"]
    if quantized is not None:
        text = (
            f"the quantized model that was trained: {_differs(quantized)}; it was merged into the "
            "unquantized weights, so this is the quantization's share"
            if quantized["compared"]
            else f"not compared with the quantized model: {quantized['because']}"
        )
        out.append(field("beside", text))
    out.append(field("next", f'AutoModelForCausalLM.from_pretrained("{record["folder"]}")'))
    return out


def _differs(found: dict[str, Any]) -> str:
    return (
        f"logits differ by at most {found['largest_relative']:.2g} of the largest; same first "
        f"choice for {found['same_first_choice']} of {found['tokens']} tokens"
    )
