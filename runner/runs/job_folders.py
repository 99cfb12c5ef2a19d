"""The folder that holds a job's runs, by the job's name: its letters kept, safe, told apart. Pure.

Imports the standard library only.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

MOST_BYTES = 120
"""Of a folder's name in UTF-8: file systems take 255, what is staged beside it needs more."""
_HASH_DIGITS = 8
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_OLD_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def job_folder(job: str) -> str:
    """The name of the folder that holds a job's runs.

    Letters, digits and marks of any script stay (NFC), as do ".", "_" and "-" but at the start.
    What else there is becomes "_", and then, or where the name is too long, a part of the name's
    hash stands behind it: two jobs of different names have different folders. A folder's name is
    its own folder's.
    """
    name = unicodedata.normalize("NFC", job)
    if _PLAIN.fullmatch(name) and len(name) <= MOST_BYTES:
        return name
    kept = "".join(each if _stays(each) else "_" for each in name)
    kept = kept.lstrip(".-")
    # a mark by itself would go onto what is before it in a path
    while kept and unicodedata.category(kept[0])[0] == "M":
        kept = "_" + kept[1:]
    if kept and kept == name and len(kept.encode()) <= MOST_BYTES:
        return kept
    told = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    short = kept.encode()[: MOST_BYTES - _HASH_DIGITS - 1].decode("utf-8", "ignore")
    short = unicodedata.normalize("NFC", short).rstrip("._-")
    return f"{short or 'job'}-{told}"


def earlier_job_folder(job: str) -> str:
    """The folder of the runs that were made before letters of other scripts were kept."""
    return _OLD_UNSAFE.sub("_", job).strip("._-") or "job"


def _stays(character: str) -> bool:
    # letters, marks, digits; not controls, formats (invisible, or turning a line around),
    # surrogates, private ones, symbols, punctuation and separators
    return character in "._-" or unicodedata.category(character)[0] in "LMN"
