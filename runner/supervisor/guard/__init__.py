"""The memory guard: sees what a run's processes use, decides by a pure policy, and acts on them.

Knows processes, devices and bytes, never a job. Importing the package imports nothing else.

records (values) · nvml (the only importer of pynvml) · patient (it, with a deadline) · sampler
(readings with their attribution) · policy (a pure state machine) · enforcer (signals) · proc (few
and small reads of /proc).
"""
