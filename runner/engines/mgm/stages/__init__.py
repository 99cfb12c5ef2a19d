"""Scripts that run inside the toolkit's image, copied into a run folder's `mgm/`.

Each is for Python 3.10 and up and imports the standard library and its neighbours alone; torch, PIL
and the toolkit are imported only inside the functions that need them.
"""
