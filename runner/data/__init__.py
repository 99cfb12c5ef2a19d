"""From data files to rows that train: read, convert, clean, split, mix; then mask and audit.

Imports the standard library; duckdb, pyarrow, numpy and datasets when they are called for. A
tokenizer is always passed in, so nothing here loads torch or transformers.
"""
