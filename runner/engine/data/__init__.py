"""From data files to token ids with labels: read, convert, mask, split, audit.

Imports the standard library only; pyarrow and datasets are imported lazily by `read`. A tokenizer
is always passed in, so nothing here loads torch or transformers.
"""
