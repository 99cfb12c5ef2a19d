"""What determined a run and what it gave: the manifest, its comparison with another, the replay.

`manifest` (the record; its JSON Schema), `inputs`, `hashes`, `environment`, `software`, `machine`,
`results` and `attempts` (its content), `recorder` (writes it for the supervisor), `compare` (pure),
`replay` (a plan again from a manifest). Imports no training library.
"""
