"""What a process on a GPU holds besides torch's tensors, where it was not measured. Pure.

Imports nothing.
"""

from __future__ import annotations

MIB = 1 << 20
CONTEXT_BYTES = 450 * MIB
"""CUDA context and loaded kernels of a torch process: 300 to 600 MiB are seen, depending on the GPU
and the driver."""
CONTEXT_SPREAD = 200 * MIB
"""How far off CONTEXT_BYTES may be."""
WORKSPACE_BYTES = 32 * MIB
"""cuBLAS' workspace, out of torch's allocator (CUBLAS_WORKSPACE_CONFIG's default on Hopper; 8 MiB
on older GPUs)."""
