"""Bundles as data: members and index can be changed at will, and become an archive again."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.resolve import make_any_plan
from runner.plans.base import Plan
from runner.provenance.bundle import tar
from runner.provenance.bundle.contents import contents
from runner.provenance.bundle.index import Index
from runner.provenance.bundle.index import Part as Asked
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import Manifest, read_manifest, sha256_of
from runner.provenance.recorder import ManifestRecorder
from runner.provenance.replay import plan_of
from runner.runs.create import create_run
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason

END = Outcome(
    Reason.COMPLETED,
    0,
    "all steps done, result saved",
    peak_bytes=5 << 30,
    peak_source="nvml_pid:nvml",
    steps=2,
    max_steps=2,
    first_loss=2.5,
    last_loss=1.5,
    result="output",
    started_unix_seconds=1.7e9,
    ended_unix_seconds=1.7e9 + 90,
)
STEPS = "".join(
    json.dumps({"schema_version": 1, "step": step, "loss": loss, "time_unix_seconds": 1.7e9 + step})
    + "\n"
    for step, loss in ((1, 2.5), (2, 1.5))
)


@dataclass
class Made:
    """A bundle before it is an archive."""

    files: dict[str, bytes]
    index: dict[str, Any]
    executable: set[str] = field(default_factory=set)

    def sealed(self) -> bytes:
        """index.json with members as the files are, and a right hash, as far as it can have one."""
        members = [
            {
                "path": name,
                "size_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "executable": name in self.executable,
            }
            for name, content in sorted(self.files.items())
        ]
        record = {**self.index, "members": members}
        record.pop("index_sha256", None)
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        return json.dumps({**record, "index_sha256": digest}).encode()

    def archive(self, index: bytes | None = None) -> bytes:
        """The bytes of the .tar."""
        content = self.sealed() if index is None else index
        out = io.BytesIO()
        for name, file in (("index.json", content), *sorted(self.files.items())):
            info = tarfile.TarInfo(name)
            info.size = len(file)
            out.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
            out.write(file + tar.padding(len(file)))
        out.write(tar.ending(out.tell()))
        return out.getvalue()


def made_of(archive: bytes) -> Made:
    """A bundle taken apart."""
    if archive.startswith(b"\x1f\x8b"):
        archive = gzip.decompress(archive)
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        for info in found:
            stream = found.extractfile(info)
            assert stream is not None
            files[info.name] = stream.read()
    index = json.loads(files.pop("index.json"))
    ran = {each["path"] for each in index["members"] if each["executable"]}
    return Made(files, index, ran)


def lay(root: Path, job: Path, end: Outcome = END) -> tuple[RunFolder, Plan]:
    """A run of that job that has ended, without anything having run."""
    plan = make_any_plan(load_job(str(job), ["launch.device=cpu", "launch.on=local"]), "train")[0]
    folder = create_run(root, plan.job, plan.short_hash, plan.variant, render(plan))
    warned: list[str] = []
    keeper = ManifestRecorder(folder, warned.append)
    keeper.begin(plan, resume=False)
    folder.metrics.write_text(STEPS)
    folder.train_log.write_text("it trained\n")
    (folder.output / "deep").mkdir(parents=True)
    (folder.output / "deep" / "result.txt").write_text("1\n")
    keeper.complete(plan, end, lambda: False)
    assert warned == []
    return folder, plan


def script_job(folder: Path, script: str = "train.sh") -> Path:
    """A job file with its script and rows beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / script).write_text("#!/bin/sh\ncat $1\n")
    (folder / script).chmod(0o755)
    (folder / "rows.txt").write_text("3.0\n")
    job = folder / "job.yaml"
    job.write_text(
        f"engine: script\nscript: {script}\ninputs: [rows.txt]\narguments: ['{{inputs.0}}']\n"
    )
    return job


def bundled(folder: RunFolder, asked: tuple[Asked, ...], cache: Path) -> tuple[Made, Index]:
    """The bundle of a run, as `runner bundle` makes it."""
    manifest: Manifest = read_manifest(folder.manifest)
    packed = contents(
        folder,
        manifest,
        plan_of(manifest),
        asked,
        Hasher(cache),
        made_by="runner 0",
        manifest_sha256=sha256_of(folder.manifest),
    )
    files = {
        item.member.path: item.content if item.content is not None else item.source.read_bytes()
        for item in packed.items
    }
    ran = {item.member.path for item in packed.items if item.member.executable}
    return Made(files, packed.index.model_dump(mode="json"), ran), packed.index


def as_earlier(made: Made, launch: str = "#!/bin/sh\n") -> Made:
    """The same as runner made it before it left these out."""
    verdict = json.dumps({**END.to_record(), "reason": "completed"}).encode()
    more = {
        "launch.sh": launch.encode(),
        "termination.json": verdict,
        "attempts/1/launch.sh": launch.encode(),
        "attempts/1/termination.json": verdict,
        "engine/rank-0.json": b"{}",
        "mgm/train.py": b"raise SystemExit\n",
        "container.json": b"{}",
    }
    return Made({**made.files, **more}, made.index, {*made.executable, "launch.sh"})
