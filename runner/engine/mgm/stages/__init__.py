"""Scripts that run inside the toolkit's image, copied into a run folder's `mgm/`.

Each is one file for Python 3.10 and up that imports the standard library alone; torch, PIL and the
toolkit are imported only inside the functions that need them.
"""
