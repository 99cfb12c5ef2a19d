"""This machine: devices, memory, processes, leases, the doctor. Knows no job and no plan."""
