"""Let the merged model answer a benchmark by the toolkit's own entry, where its data is present.

    python infer.py --benchmark textvqa --model FOLDER --output FOLDER --toolkit FOLDER \
        --questions FILE --images FOLDER [--device cpu]
    python infer.py --benchmark mmbench --model FOLDER --output FOLDER --toolkit FOLDER \
        --questions FILE

Where the data is not there, or there is no GPU (the toolkit's code for both needs one), it says so,
writes that into OUTPUT/infer.json and ends with 0: nothing is simulated, no figure is made up.
Answers that don't cover the questions fail. Standard library only.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

if __package__:
    from .ending import refuse
    from .whole import write_whole
else:  # in a run folder the scripts lie beside each other
    from ending import refuse  # type: ignore[import-not-found, no-redef]
    from whole import write_whole  # type: ignore[import-not-found, no-redef]

SCHEMA_VERSION = 1


def why_not(benchmark: str, questions: Path | None, images: Path | None, device: str) -> str | None:
    """Why a benchmark is not run, or None."""
    if questions is None:
        return "no questions are given"
    if not questions.is_file():
        return f"{questions} is not there"
    if benchmark == "textvqa" and images is None:
        return "no folder of images is given"
    if benchmark == "textvqa" and images is not None and not images.is_dir():
        return f"{images} is not there"
    if device == "cpu":
        return "the toolkit's inference needs a GPU"
    return None


def answer_command(
    benchmark: str, python: str, model: Path, questions: Path, images: Path | None, answers: Path
) -> list[str]:
    """The toolkit's entry with the flags of its eval scripts."""
    module = "model_vqa_loader" if benchmark == "textvqa" else "model_vqa_mmbench"
    command = [python, "-m", f"mgm.eval.{module}", "--model-path", str(model)]
    command += ["--question-file", str(questions), "--answers-file", str(answers)]
    if benchmark == "textvqa":
        command += ["--image-folder", str(images), "--num-chunks", "1", "--chunk-idx", "0"]
    else:
        command += ["--single-pred-prompt"]
    return [*command, "--temperature", "0", "--conv-mode", "gemma"]


def upload_command(python: str, toolkit: Path, questions: Path, answers: Path) -> list[str]:
    """The toolkit's script that makes MMBench's spreadsheet of the answers."""
    return [
        python,
        str(toolkit / "scripts/convert_mmbench_for_submission.py"),
        *("--annotation-file", str(questions), "--result-dir", str(answers.parent)),
        *("--upload-dir", str(answers.parent), "--experiment", answers.stem),
    ]


def question_count(benchmark: str, questions: Path) -> int:
    """Questions in a file: lines of JSONL, or rows of MMBench's table (images in base64)."""
    if benchmark == "textvqa":
        with questions.open(encoding="utf-8") as stream:
            return sum(bool(line.strip()) for line in stream)
    csv.field_size_limit(1 << 30)
    with questions.open(encoding="utf-8", newline="") as stream:
        return sum(1 for _ in csv.DictReader(stream, delimiter="\t"))


def answer_count(answers: Path) -> int:
    """Lines of an answers file that are whole."""
    with answers.open(encoding="utf-8") as stream:
        return sum("text" in json.loads(line) for line in stream if line.strip())


def tell(output: Path, record: dict[str, object]) -> None:
    """infer.json: whether it was run, and what came of it."""
    write_whole(output / "infer.json", json.dumps(record, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--benchmark", choices=["textvqa", "mmbench"], required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--toolkit", type=Path, required=True)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    given = parser.parse_args()
    record: dict[str, object] = {"schema_version": SCHEMA_VERSION, "benchmark": given.benchmark}
    reason = why_not(given.benchmark, given.questions, given.images, given.device)
    if reason is not None:
        print(f"infer: {given.benchmark}: not run: {reason}")
        tell(given.output, {**record, "run": False, "reason": reason})
        return 0
    answers = given.output / f"{given.model.name}.jsonl"
    answers.parent.mkdir(parents=True, exist_ok=True)
    commands = [
        answer_command(
            given.benchmark, sys.executable, given.model, given.questions, given.images, answers
        )
    ]
    if given.benchmark == "mmbench":
        commands.append(upload_command(sys.executable, given.toolkit, given.questions, answers))
    for command in commands:
        ended = subprocess.run(command).returncode
        if ended:
            return refuse(f"infer: {given.benchmark}: {command[2]} ended with {ended}")
    asked, answered = question_count(given.benchmark, given.questions), answer_count(answers)
    if asked != answered:
        return refuse(f"infer: {given.benchmark}: {answered} answers to {asked} questions")
    print(f"infer: {given.benchmark}: {answered} answers in {answers}")
    tell(given.output, {**record, "run": True, "questions": asked, "answers": str(answers)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
