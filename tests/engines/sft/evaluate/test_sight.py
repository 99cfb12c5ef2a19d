"""Rows with images are measured as they are trained: on a tiny random LLaVA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from runner.common.errors import RunnerError
from runner.engines.load import load_job
from runner.engines.sft.facts import gather
from runner.engines.sft.inside.evaluate.generate import Greedy
from runner.engines.sft.inside.evaluate.measure import Answer, measure, tokenize
from runner.engines.sft.inside.evaluate.sight import ImageInputs, load_sight
from runner.engines.sft.inside.evaluate.tasks import ExactMatch, Row
from runner.engines.sft.inside.images import IMAGES, ImageTextCollator
from runner.engines.sft.inside.model import standin
from runner.engines.sft.inside.model.tokenizer import load_tokenizer
from runner.engines.sft.inside.subjects import load_subjects
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SftPlan:
    """A plan of a LLaVA stand-in with eight rows of one image each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("sight")
    rows = []
    for number in range(8):
        path = folder / f"{number}.png"
        Image.new("RGB", (40 + 9 * number, 70), (30 * number, 90, 200 - 20 * number)).save(path)
        talk = [
            {"from": "human", "value": "<image>\nWhat is this?" + " Say more." * number},
            {"from": "gpt", "value": f"It is colour {number}."},
        ]
        rows.append({"conversations": talk, "image": path.name})
    (folder / "rows.json").write_text(json.dumps(rows))
    standin.make("llava-gemma", folder / "llava", folder / "rows.json")
    job = {
        "model": str(folder / "llava"),
        "vision": {"model": str(folder / "llava")},
        "data": {"train": str(folder / "rows.json")},
        "launch": {"device": "cpu"},
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    loaded = load_job(str(folder / "job.yaml"), [])
    return make_plan(loaded, gather(loaded))


@pytest.fixture(scope="module")
def rows(plan: SftPlan) -> list[Row]:
    told = json.loads(Path(plan.rows.train.path or "").read_text())
    folder = Path(plan.rows.train.path or "").parent
    return [
        Row(
            number,
            "rows",
            number + 1,
            [{"role": "user", "content": row["conversations"][0]["value"]}],
            row["conversations"][1]["value"],
            images=(str(folder / row["image"]),),
        )
        for number, row in enumerate(told)
    ]


def measured(plan: SftPlan, rows: list[Row], size: int, max_length: int = 512) -> dict[int, Answer]:
    tokenizer, _ = load_tokenizer(plan)
    told: dict[int, Answer] = {}
    measure(
        load_subjects(plan, None, with_base=False),
        ExactMatch(),
        tokenize(tokenizer, rows, max_length, load_sight(plan, tokenizer), generates=True),
        Greedy(tokenizer, 6),
        size,
        lambda batch: told.update({index: each["model"] for index, each in batch}),
    )
    return told


def test_answers_follow_the_image_and_not_the_batch(plan: SftPlan, rows: list[Row]) -> None:
    alone, together = measured(plan, rows, 1), measured(plan, rows, 8)
    for index in range(len(rows)):
        assert alone[index].generated == together[index].generated
        assert alone[index].nats == pytest.approx(together[index].nats, rel=1e-4)
    swapped = [
        Row(row.number, row.source, row.line, row.prompt, row.expected, images=other.images)
        for row, other in zip(rows, rows[::-1], strict=True)
    ]
    others = measured(plan, swapped, 8)
    assert all(
        alone[index].nats != pytest.approx(others[index].nats, rel=1e-6) for index in range(8)
    )


def test_the_loss_is_that_of_the_training_batch(plan: SftPlan, rows: list[Row]) -> None:
    import torch

    tokenizer, _ = load_tokenizer(plan)
    sight = load_sight(plan, tokenizer)
    assert isinstance(sight, ImageInputs)
    material = tokenize(tokenizer, rows, 512, sight, generates=False)
    model: Any = load_subjects(plan, None, with_base=False)[0].model
    collate = ImageTextCollator(tokenizer, sight.processor)
    told = measured(plan, rows, 4)
    for index, row in material.encoded.items():
        features = {"input_ids": row.input_ids, "labels": row.labels}
        with torch.no_grad():
            out = model(**collate([{**features, IMAGES: list(rows[index].images)}]))
        assert told[index].nats / told[index].tokens == pytest.approx(float(out.loss), rel=1e-4)


def test_a_row_whose_image_is_cut_has_no_loss_and_still_an_answer(
    plan: SftPlan, rows: list[Row]
) -> None:
    told = measured(plan, rows[:2], 2, max_length=9)
    assert all(answer.tokens == 0 and answer.generated is not None for answer in told.values())


def test_an_image_that_went_away_is_named(plan: SftPlan, rows: list[Row]) -> None:
    lost = Row(0, "rows", 1, rows[0].prompt, rows[0].expected, images=("/no/such.png",))
    with pytest.raises(RunnerError, match=r"/no/such\.png"):
        measured(plan, [lost], 1)
