"""What `runner doctor` looks at: a file a subject, its probe (the edge) beside its check (pure).

`check` is one line of the report, `report` all of them and the record made of it.
"""
