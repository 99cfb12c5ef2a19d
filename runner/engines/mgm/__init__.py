"""The MGM toolkit as a run: its flags, its plan and the files rendered for it.

Nothing here imports torch or the toolkit. What runs inside the toolkit's own image (Python 3.10, no
`runner` there) lies in `stages/`: scripts that each stand alone and are copied into the run folder.
"""
