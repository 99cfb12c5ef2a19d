"""What a user writes: the parts that every job is made of, and how a job file is read."""
