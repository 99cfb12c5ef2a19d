"""Wheels that travel to a machine without a network: cut to what is used, checked, unpacked.

    python benchmarks/carried.py cut DIR                     bitsandbytes to one CUDA library
    python benchmarks/carried.py check DIR PROJECT LIMIT_MIB     what travels, whether it fits
    python benchmarks/carried.py unpack DIR INTO             for PYTHONPATH=INTO

carry.sh calls the first two, first_contact.py the third.

Standard library only: it runs before anything of the carried packages can be imported.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

KEPT_LIBRARIES = ("libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so")
"""Of bitsandbytes' wheel, which has a library for each CUDA: the one torch+cu130 loads, and the
CPU's for a rehearsal."""
MIB = 2**20


def wheels(folder: Path) -> list[Path]:
    """The wheels of a folder. Raises SystemExit where there are none, or two of one package."""
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise SystemExit(f"{folder} has no wheels; benchmarks/carry.sh {folder} brings them")
    names = [path.name.partition("-")[0].lower() for path in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SystemExit(f"{folder} has more than one wheel of: {', '.join(twice)}")
    return found


def cut_libraries(folder: Path) -> None:
    """Rewrite bitsandbytes' wheel without the libraries of other CUDA versions."""
    for wheel in folder.glob("bitsandbytes-*.whl"):
        staged = wheel.with_suffix(".cut")
        with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(staged, "w") as kept:
            for entry in whole.infolist():
                name = Path(entry.filename).name
                if name.startswith("libbitsandbytes_") and name not in KEPT_LIBRARIES:
                    continue
                kept.writestr(entry, whole.read(entry), zipfile.ZIP_DEFLATED, 9)
        staged.replace(wheel)


def unpack(folder: Path, into: Path) -> Path:
    """Unpack every wheel into one folder, which then goes on PYTHONPATH. Once; 1 to 3 s."""
    done = into / ".unpacked"
    listed = "\n".join(f"{path.name} {path.stat().st_size}" for path in wheels(folder))
    if done.is_file() and done.read_text() == listed:
        return into
    into.mkdir(parents=True, exist_ok=True)
    for path in wheels(folder):
        with zipfile.ZipFile(path) as wheel:
            for entry in wheel.infolist():
                first, _, rest = entry.filename.partition("/")
                if not first.endswith(".data"):
                    wheel.extract(entry, into)
                elif rest.startswith(("purelib/", "platlib/")):  # what pip puts beside the rest
                    entry.filename = rest.partition("/")[2]
                    wheel.extract(entry, into)
    done.write_text(listed)
    return into


def project_bytes(repository: Path) -> int:
    """What of a checkout travels: tracked files and those that git does not ignore, in bytes."""
    listed = subprocess.run(
        ["git", "-C", str(repository), "ls-files", "-z", "-co", "--exclude-standard"],
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    paths = [repository / name.decode() for name in listed if name]
    return sum(path.lstat().st_size for path in paths if path.is_file() or path.is_symlink())


def check(folder: Path, repository: Path, limit_mib: int) -> list[str]:
    """What travels, a line each. Raises SystemExit where it is too much."""
    sizes = {path.name: path.stat().st_size for path in wheels(folder)}
    project = project_bytes(repository)
    lines = [f"{size / MIB:7.1f} MiB  {name}" for name, size in sizes.items()]
    whole = sum(sizes.values()) + project
    lines.append(f"{project / MIB:7.1f} MiB  the project")
    lines.append(f"{whole / MIB:7.1f} MiB  in all, of {limit_mib}")
    if whole > limit_mib * MIB:
        raise SystemExit("\n".join([*lines, "too much to carry"]))
    return lines


def main(arguments: list[str]) -> None:
    match arguments:
        case ["cut", folder]:
            cut_libraries(Path(folder))
        case ["check", folder, repository, limit]:
            print("\n".join(check(Path(folder), Path(repository), int(limit))))
        case ["unpack", folder, into]:
            print(unpack(Path(folder), Path(into)))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
