"""The memory guard's policy: a pure state machine over samples.

Knows processes, devices and bytes, never a job. Importing the package imports nothing else.
Readings and samplers are in runner.machine; signals are in runner.supervisor.actions.
"""
