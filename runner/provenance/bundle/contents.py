"""What goes into a bundle: an allow-list of a run's records, and the inputs that were asked for.

Reads the run folder and hashes inputs; writes nothing. Imports runner.provenance, folder, plans and
this package. Every input is checked against the manifest: a bundle of other files would reproduce
another run. What a container may have put into the run folder does not choose what leaves the
machine: no link is followed out of a result's folder, nor out of an input's whose content is not
known by hash.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from runner.common.errors import RefusedError
from runner.engines.inputs import parts
from runner.engines.registry import engine_of
from runner.plans.base import PlanBase
from runner.plans.inputs import IMAGES, FileRecord, Part, is_here
from runner.provenance.bundle import members
from runner.provenance.bundle.index import Index, Known, Lacking, Member, Placed, name_problem
from runner.provenance.bundle.index import Part as Asked
from runner.provenance.environment import looks_secret, secret_values, without_secrets
from runner.provenance.hashes import Hasher, files_in
from runner.provenance.image_list import hash_images
from runner.provenance.manifest import Manifest
from runner.runs.folder import RunFolder
from runner.runs.origin import origin_of

ASKED: tuple[Asked, ...] = ("data", "model", "adapter")
"""What --with can ask for."""
INPUTS = members.INPUTS
JOB_FILE = "job.yaml"
_PROJECTOR = "projector.safetensors"
"""What a training of an image-text model hands on, beside or before an adapter."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_SECRET_FILES = re.compile(
    r"\.env(\..+)?|[._]netrc|\.git-credentials|\.pypirc|\.npmrc|\.htpasswd|credentials(\.json)?"
    r"|id_(rsa|dsa|ecdsa|ed25519)|.+\.(pem|key|p12|pfx|keystore)",
    re.IGNORECASE,
)
_SECRET_FOLDERS = {".ssh", ".aws", ".gnupg", ".docker", ".kube"}
_HARMLESS = re.compile(r"\.env\.(example|sample|template|dist)", re.IGNORECASE)
_ABSOLUTE = re.compile(r"(?:^|[=:\s])(/[^\s:]+)")


@dataclass(frozen=True)
class Item:
    """A file on its way into a bundle."""

    member: Member
    source: Path
    content: bytes | None = None
    """In place of the source's, where secrets were struck out of it."""


@dataclass(frozen=True)
class Contents:
    """All of a bundle."""

    index: Index
    items: list[Item]
    """In the order of the index's members."""


def contents(
    folder: RunFolder,
    manifest: Manifest,
    plan: PlanBase,
    asked: Collection[Asked],
    hasher: Hasher,
    *,
    made_by: str,
    manifest_sha256: str,
) -> Contents:
    """The members of a run's bundle, hashed, and what it will lack.

    Raises RefusedError where an input that was asked for is missing or another than the run read,
    or looks like a file of secrets; OSError.
    """
    foreign = not origin_of(folder.path).is_own
    gathered = _Gathered(manifest, plan, hasher, folder.path if foreign else None)
    gathered.records(folder)
    for part in parts(plan):
        gathered.part(part, wanted=part.group == "code" or part.group in asked)
    if "adapter" in asked:
        gathered.result(folder)
    gathered.remarks()
    items = sorted(gathered.items.values(), key=lambda item: item.member.path)
    box = plan.container
    index = Index(
        made_by=made_by,
        run=manifest.run,
        plan_hash=manifest.plan_hash,
        manifest_sha256=manifest_sha256,
        contains=[one for one in ASKED if one in asked],
        image=f"{box.image} {box.image_id}" if box is not None else None,
        places=gathered.places,
        lacks=gathered.lacks,
        notes=[_plain(note) for note in gathered.notes],
        members=[item.member for item in items],
    )
    return Contents(index.sealed(), items)


def record_files(folder: RunFolder, manifest: Manifest) -> Iterator[Path]:
    """The allow-list: what of a run folder goes into every bundle, as far as it is there."""
    names = [folder.manifest, folder.plan, folder.sources]
    names += [folder.path / name for name in manifest.rendered]
    names += folder.path.glob("images*.sha256")
    names += [folder.project_diff, folder.metrics, folder.memory, folder.events]
    names += [folder.data_report, folder.prediction, folder.advice]
    names += [folder.best, folder.train_log, folder.supervisor_log]
    names += [folder.container_log, folder.engine_failure, folder.engine_result]
    names += [folder.engine_stack, *folder.row_hashes.rglob("*")]
    names += folder.phases.glob(f"*/{folder.data_report.name}")
    names += folder.attempts.glob(f"*/{folder.plan.name}")
    root = folder.path.resolve()
    for path in dict.fromkeys(names):
        name = os.path.relpath(path, folder.path)
        # a link on the way would lead elsewhere, into whatever may be read by who bundles
        if members.is_record(name) and path.is_file() and path.resolve() == root / name:
            yield path


@dataclass
class _Gathered:
    manifest: Manifest
    plan: PlanBase
    hasher: Hasher
    foreign: Path | None = None
    """The folder of a run that came in a bundle: who made that chose where its inputs lie."""
    items: dict[str, Item] = field(default_factory=dict)
    places: dict[str, Placed] = field(default_factory=dict)
    lacks: list[Lacking] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _known: dict[tuple[str, str], Placed] = field(default_factory=dict)
    """(path here, kind) to where it already lies in the bundle."""

    def records(self, folder: RunFolder) -> None:
        secrets = secret_values(os.environ, self.manifest.secrets)
        for path in record_files(folder, self.manifest):
            name = path.relative_to(folder.path).as_posix()
            content = None
            if secrets and path.suffix == ".log":
                text = path.read_bytes().decode(errors="surrogateescape")
                clean = str(without_secrets(text, secrets))
                if clean != text:
                    content = clean.encode(errors="surrogateescape")
                    self.notes.append(f"{name}: values of secrets were struck out")
            self.add(name, path, content=content)
        job = self.manifest.job
        places = [folder.path / JOB_FILE, *([Path(job.file)] if job.file else [])]
        for place in [each for each in places if job.sha256 and is_here(each)][:1]:
            if self.hasher.file(place) == job.sha256:
                self.add(JOB_FILE, place)
            else:
                told = f"the job file was changed since, so it is left out: {place.name}"
                self.notes.append(told)

    def add(self, name: str, source: Path, *, content: bytes | None = None) -> Member:
        if problem := name_problem(name):
            raise RefusedError(
                f"{source} can't go into a bundle: its name {problem}: {name!a}",
                "give it a plain name and run anew, or leave it out of --with",
            )
        if content is None:
            size, digest = source.stat().st_size, self.hasher.file(source)
        else:
            size, digest = len(content), hashlib.sha256(content).hexdigest()
        member = Member(
            path=name,
            size_bytes=size,
            sha256=digest,
            executable=self.starts(source),
        )
        self.items[name] = Item(member, source, content)
        return member

    def starts(self, source: Path) -> bool:
        """Whether the plan starts this very file; nothing else of a bundle is executable."""
        return engine_of(self.plan).starts(self.plan, source)

    def part(self, part: Part, *, wanted: bool) -> None:
        """Take a part along, or say what is lacking of it."""
        if part.what.endswith(IMAGES):
            self.images(part, wanted=wanted)
            return
        record = _record(self.manifest, part.what)
        optional = record is None and part.what.startswith("infer.")
        if part.path is None or not wanted:
            if not (optional and part.path and not is_here(part.path)):
                self.lack(part)
            return
        path = Path(part.path)
        if not is_here(path):
            if optional:
                return
            if part.group == "code" and self.plan.container is not None:
                return  # it lies in the image
            raise RefusedError(
                f"{part.what}: {path} is not here",
                f"put it back, or leave {part.group} out of --with",
            )
        folder = self.slot(part.what)
        of_model = [each for each in self.manifest.files if each.what.startswith(part.what + "/")]
        kind = "folder" if path.is_dir() else "file"
        known = self._known.get((str(path.resolve()), kind))
        if known is not None:
            self.places[part.what] = known
            return
        if of_model:
            if engine_of(self.plan).keeps_path_ends:
                folder = "/".join([folder, *path.parts[-2:]])
            for each in of_model:
                name = each.what.removeprefix(part.what + "/")
                if not (path / name).is_file():
                    raise RefusedError(
                        f"{each.what}: {path / name} is not here",
                        f"put it back, or leave {part.group} out of --with",
                    )
                self.require_input(part, path / name, path, each)
                self.require(each, self.add(f"{folder}/{name}", path / name).sha256)
            place = Placed(path=folder, kind="folder")
        elif kind == "folder":
            self.whole_folder(part, path, folder, record)
            place = Placed(path=folder, kind="folder")
        else:
            self.require_input(part, path, path.parent, record)
            member = self.add(f"{folder}/{path.name}", path)
            if record is not None:
                self.require(record, member.sha256)
            place = Placed(path=member.path, kind="file")
        self._known[str(path.resolve()), kind] = self.places[part.what] = place

    def whole_folder(self, part: Part, path: Path, folder: str, record: FileRecord | None) -> None:
        files = sorted(files_in(path))
        whole = hashlib.sha256()
        for file in files:
            self.require_input(part, file, path, record)
            name = file.relative_to(path).as_posix()
            member = self.add(f"{folder}/{name}", file)
            whole.update(f"{name}\0{member.sha256}\n".encode())
        if record is not None:
            self.require(record, whole.hexdigest())

    def images(self, part: Part, *, wanted: bool) -> None:
        """Those that rows name, by their names as written; all of a training in one folder."""
        phase = part.what.removesuffix(IMAGES).removesuffix(": ")
        record = _record(self.manifest, part.what)
        if record is None and not wanted:
            return
        if not wanted:
            self.lack(part)
            return
        sources = engine_of(self.plan).images(self.plan, phase)
        if not any(each.names for each in sources):
            return
        if record is not None and record.sha256 is not None:
            self.require(record, hash_images(sources, self.hasher).sha256)
        roots = sorted({str(each.root) for each in sources})
        known = self._known.get(("\0".join(roots), "images"))
        place = known or Placed(path=self.slot("images"), kind="folder")
        self._known["\0".join(roots), "images"] = self.places[part.what] = place
        for root, name in ((each.root, name) for each in sources for name in each.names):
            file = root / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise RefusedError(
                    f"{part.what}: rows name an image {name}, by which no other machine can find "
                    "it: only names below data.image_folder can be bundled",
                    "name images so in the rows and run anew, or leave data out of --with",
                )
            self.require_input(part, file, root, record)
            inside = f"{place.path}/{os.path.normpath(name)}"
            earlier = self.items.get(inside)
            member = self.add(inside, file)
            if earlier is not None and earlier.member.sha256 != member.sha256:
                raise RefusedError(
                    f"two sources of rows have another image under one name: {earlier.source} and "
                    f"{file}",
                    "give them one data.image_folder, or leave data out of --with",
                )

    def require_input(self, part: Part, file: Path, root: Path, record: FileRecord | None) -> None:
        """That a file of an input may leave this machine.

        A link out of the input's folder is as good as a file where the run's own hash says what is
        in it: a hub's cache is made of such. Else nobody knows what it leads to by now.
        """
        real = Path(os.path.realpath(file))
        leads_out = not real.is_relative_to(os.path.realpath(root))
        _refuse_secrets(part.what, part.group, file, root)
        if leads_out:
            _refuse_secrets(part.what, part.group, real, Path(real.anchor))
        if record is not None and record.sha256 is not None:
            return
        if leads_out:
            raise RefusedError(
                f"{part.what}: {file} is a link to {real}, and the run did not hash what it read",
                f"put the file itself there, or leave {part.group} out of --with",
            )
        if self.foreign is not None and not real.is_relative_to(self.foreign.resolve()):
            raise RefusedError(
                f"{part.what}: {file} is a file of this machine, which a run that is not your own "
                "names without a hash",
                f"leave {part.group} out of --with",
            )

    def result(self, folder: RunFolder) -> None:
        """What was trained: adapter, model of method full, a script's output, projectors.

        A container wrote it: a link that leads out of it, and code among weights, stay here.
        """
        name = self.manifest.results.result if self.manifest.results else None
        place = folder.path / (name or "")
        inside = folder.path in place.parents and place.is_dir()
        files = dict.fromkeys(sorted(files_in(place)), place) if inside else {}
        single = [*folder.path.glob(_PROJECTOR), *folder.phases.glob(f"*/{_PROJECTOR}")]
        files |= {file: file for file in single}
        listed = [{"what": each.what} for each in self.manifest.files]
        known = {"files": listed, "plan": self.manifest.plan}
        taken = []
        for file, within in files.items():
            path = file.relative_to(folder.path).as_posix()
            _refuse_secrets("adapter", "adapter", file, place)
            problem = _result_problem(folder, path, within, known)
            if problem is None:
                taken.append((path, file))
            else:
                self.notes.append(f"{path} {problem}: it is left out")
        if not taken:
            raise RefusedError(
                f"{self.manifest.run} has nothing here that it trained",
                "leave adapter out of --with",
            )
        for path, file in taken:
            self.add(path, file)

    def lack(self, part: Part) -> None:
        record, files = _record(self.manifest, part.what), []
        if record is not None:
            name = part.id or (Path(part.path).name if part.path else record.what)
            if record.kind == "images":
                name = "images that rows name"
            files = [Known(name=_plain(name), sha256=record.sha256, size_bytes=record.size_bytes)]
        files += [
            Known(
                name=_plain(each.what.removeprefix(part.what + "/")),
                sha256=each.sha256,
                size_bytes=each.size_bytes,
            )
            for each in self.manifest.files
            if each.what.startswith(part.what + "/")
        ]
        self.lacks.append(
            Lacking(
                what=part.what,
                group=part.group,
                id=part.id,
                revision=part.revision,
                files=files,
            )
        )

    def remarks(self) -> None:
        """What a person should know before this leaves the machine."""
        record = self.plan.model_dump(mode="json")
        if self.plan.on_end:
            self.notes.append("plan.yaml holds on_end as the job says it; a replay leaves it out")
        named: dict[str, str] = dict(record.get("environment") or {}) if "script" in record else {}
        for name in named:
            if looks_secret(name):
                self.notes.append(f"plan.yaml holds environment.{name} with its value")
        texts = {f"environment.{name}": text for name, text in named.items()}
        if "script" in record:
            texts |= {f"arguments.{i}": text for i, text in enumerate(record["arguments"])}
            script = Path(record["script"]["path"])
            beside = script.suffix == ".py" and any(
                each != script for each in script.parent.glob("*.py")
            )
            if (
                record["workdir"] == "source"
                or beside
                or any("{source}" in t for t in texts.values())
            ):
                self.notes.append(
                    f"of the script's folder only {script.name} is in it; what it reads beside "
                    "itself belongs in inputs"
                )
        for what, text in texts.items():
            if (path := _ABSOLUTE.search(text)) is not None:
                self.notes.append(f"{what} names {path[1]}, a path of this machine")
        if self.plan.container is not None:
            for mount in self.plan.container.mounts:
                self.notes.append(f"container.mounts names {mount.source}, a path of this machine")

    def slot(self, what: str) -> str:
        """A new folder of the bundle for an input."""
        base = f"{INPUTS}/{_UNSAFE.sub('_', what.replace(': ', '.')).strip('._-') or 'input'}"
        taken = {"/".join(PurePosixPath(name).parts[:2]) for name in self.items}
        number, name = 1, base
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        return name

    def require(self, record: FileRecord, digest: str) -> None:
        """That a file is the one that the run read, where that is known."""
        if record.sha256 is None:
            self.notes.append(
                f"{record.what} was not hashed by the run; it is bundled as it is now"
            )
        elif record.sha256 != digest:
            raise RefusedError(
                f"{record.what}: {record.path} is another file than the run read: sha256 "
                f"{record.sha256[:12]} → {digest[:12]}",
                "put the file back as it was, or leave it out of --with",
            )


def _result_problem(
    folder: RunFolder, path: str, within: Path, manifest: Mapping[str, Any]
) -> str | None:
    """Why a file of a result stays here; None where it is one and may go."""
    top = folder.path.resolve() / within.relative_to(folder.path)
    if not (folder.path / path).resolve().is_relative_to(top):
        return f"is a link that leads out of {within.name}"
    if members.is_left_out(path):
        return "is a pickle"
    if [*members.unlisted([path], {}, manifest)]:
        return "is code, and the manifest does not list it as the model's"
    return members.member_problem(path, 0)


def _record(manifest: Manifest, what: str) -> FileRecord | None:
    return next((each for each in manifest.files if each.what == what), None)


def _plain(text: str) -> str:
    """A text that a terminal shows and does not obey."""
    return text if text.isprintable() else ascii(text)


def _refuse_secrets(what: str, group: str, path: Path, root: Path) -> None:
    inside = root in path.parents and root.is_dir()
    steps = path.parent.relative_to(root).parts if inside else ()
    bad = _SECRET_FILES.fullmatch(path.name) and not _HARMLESS.fullmatch(path.name)
    if bad or _SECRET_FOLDERS.intersection(steps):
        raise RefusedError(
            f"{what}: {path} looks like a file of secrets, and is not bundled",
            f"move it out of there and run anew, or leave {group} out of --with",
        )
