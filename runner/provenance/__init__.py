"""What determined a run and what it gave: the manifest, its comparison with another, the replay.

`manifest` (the record; its JSON Schema), `inputs`, `hashes`, `environment`, `software`, `machine`,
`results` and `attempts` (what goes into it), `keeper` (the supervisor's hand), `compare` and
`words` (pure), `replay` (a plan again from a manifest). Imports no training library.
"""
