"""The container of a run: its command line, mounts and risks. Knows plans; starts nothing."""
