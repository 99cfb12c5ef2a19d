"""Rows through the whole pipeline: what is kept, where it goes, and that the counts add up."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from runner.common.caches import file_sha256
from runner.common.errors import Problem, RefusedError, SpecError
from runner.data.prepare import prepare
from runner.data.prepared import SPLITS, Overlap, Prepared, proves_disjoint
from runner.data.summary import cleaning_lines, leaks
from runner.jobs.data import DataSettings
from runner.plans.rows import PlannedData, PlannedRows

REPOSITORY = Path(__file__).resolve().parents[2]
DROP = {"duplicates": "drop", "conflicts": "drop"}
LOOSE = {"ignore": ["white_space", "case", "width"]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


def planned(path: Path | None) -> PlannedData | None:
    if path is None:
        return None
    return PlannedData(kind="file", path=str(path), sha256=file_sha256(path))


def plan_of(
    train: Path,
    *,
    mixed: tuple[Path, ...] = (),
    eval: Path | None = None,  # noqa: A002 - the job's word
    test: Path | None = None,
    questions: Path | None = None,
    vision: bool = False,
    **data: Any,
) -> Any:
    """As much of a plan as `prepare` looks at."""
    return SimpleNamespace(
        data=DataSettings.model_validate({"train": str(train), **data}),
        rows=PlannedRows(
            train=planned(train),  # type: ignore[arg-type]
            mixed=[planned(path) for path in mixed],  # type: ignore[misc]
            eval=planned(eval),
            test=planned(test),
            questions=planned(questions),
        ),
        vision=object() if vision else None,
    )


def done(train: Path, **options: Any) -> Prepared:
    return prepare(plan_of(train, **options), say=lambda _: None)


def problem_of(train: Path, **options: Any) -> Problem:
    with pytest.raises(SpecError) as caught:
        done(train, **options)
    return caught.value.problems[0]


def write(path: Path, *rows: tuple[str, str] | dict[str, Any]) -> Path:
    """alpaca rows from (prompt, answer), or rows as they are."""
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            record = row if isinstance(row, dict) else {"instruction": row[0], "output": row[1]}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def numbered(path: Path, count: int, word: str = "q", **more: Any) -> Path:
    return write(
        path, *({"instruction": f"{word} {n}", "output": f"a {n}", **more} for n in range(count))
    )


def prompts(prepared: Prepared, side: Any) -> list[str]:
    return [row.messages[-2]["content"] for row in prepared.rows(side)]


def adds_up(prepared: Prepared) -> None:
    """Every row that was read is accounted for, and the files hold what the report says."""
    report = prepared.report
    for source in report["sources"]:
        left_out = sum(
            source[key]["rows"] for key in ("empty", "duplicates", "conflicts", "leaked")
        )
        assert source["read"] == left_out + source["train"] + source["eval"] + source["test"]
    drawn = sum(source["drawn"] for source in report["sources"])
    assert prepared.counts["train"] == drawn
    for side in ("eval", "test"):
        assert prepared.counts[side] == sum(source[side] for source in report["sources"])
    for side in SPLITS:
        assert sum(1 for _ in prepared.rows(side)) == prepared.counts[side]
        counted = sum(rows for _, _, rows in report["characters"].get(side, []))
        assert counted == sum(source[side] for source in report["sources"])


def test_rows_are_kept_as_they_are(tmp_path: Path) -> None:
    prepared = done(write(tmp_path / "a.jsonl", ('Ａ "q"\n', "a\t你"), ("b", "c")), system="s")
    first, second = prepared.rows("train")
    assert first.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": 'Ａ "q"\n'},
        {"role": "assistant", "content": "a\t你"},
    ]
    assert (first.source, first.line, first.images, first.label) == (0, 1, [], None)
    assert prepared.pick("train", [1]) == [second]
    assert prepared.counts == {"train": 2, "eval": 0, "test": 0}
    adds_up(prepared)


def test_empty_duplicate_and_conflicting_rows_go_and_are_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        ("one", "a"),
        ("two", ""),
        ("ＯＮＥ ", "A"),  # the first again
        ("three", "b"),
        ("three", "c"),  # in conflict
        ("Three", "b"),  # a duplicate of the fourth: one of the two in conflict
        ("four", " "),
    )
    prepared = done(path, clean=DROP | LOOSE)
    source = prepared.report["sources"][0]
    assert source["empty"] == {"rows": 2, "first_lines": [2, 7]}
    assert left_out(source, "duplicates") == [(3, 1), (6, 4)]
    assert left_out(source, "conflicts") == [(4, 5), (5, 4)]
    assert prompts(prepared, "train") == ["one"]
    adds_up(prepared)
    listed = [json.loads(line) for line in (prepared.folder / "left-out.jsonl").open()]
    assert [(one["why"], one["line"], one["other_line"]) for one in listed] == [
        ("duplicate", 3, 1),
        ("conflict", 4, 5),
        ("conflict", 5, 4),
        ("duplicate", 6, 4),
    ]
    assert {one[key] for one in listed for key in ("file", "other_file")} == {str(path)}
    kept = done(path, clean={"duplicates": "keep", "conflicts": "keep"})
    assert prompts(kept, "train") == ["one", "ＯＮＥ ", "three", "three", "Three"]
    adds_up(kept)
    usual = done(path)
    assert prompts(usual, "train") == ["one", "ＯＮＥ ", "three", "three", "Three"]
    assert prompts(done(path, clean=LOOSE), "train") == ["one", "three", "three"]


def left_out(source: dict[str, Any], step: str) -> list[tuple[int, int]]:
    """(line, the line that it repeats) of the first rows that a step left out."""
    return [
        (line, other["line"])
        for line, other in zip(
            source[step]["first_lines"], source[step]["first_repeat"], strict=True
        )
    ]


def test_rows_are_compared_exactly_but_for_white_space(tmp_path: Path) -> None:
    pairs = [("x²", "x2"), ("aB", "Ab"), ("ß", "ss"), ("3 14", "31 4")]
    path = write(tmp_path / "a.jsonl", *[(text, text) for pair in pairs for text in pair])
    assert done(path).counts["train"] == 8
    spaced = write(tmp_path / "b.jsonl", ("很好", "a"), ("很 好 ", "a"), ("jet stream\n", "b"))
    prepared = done(spaced)
    assert prompts(prepared, "train") == ["很好", "jet stream\n"]
    assert left_out(prepared.report["sources"][0], "duplicates") == [(2, 1)]
    assert done(spaced, clean={"ignore": []}).counts["train"] == 3


def test_rows_alike_but_for_white_space_are_one_prompt_everywhere(tmp_path: Path) -> None:
    """Duplicates, leaks and splits have one definition of it."""
    words = [f"第{'一二三四五六七八九十'[n]}条评论 {n}" for n in range(10)]
    train = write(tmp_path / "t.jsonl", *((word, "a") for word in words))
    held = write(tmp_path / "e.jsonl", *((" ".join(word), "b") for word in words[:2]))
    problem = problem_of(train, eval=held)
    assert "2 eval rows have a prompt that is trained on too (white space apart)" in problem.problem
    assert str(problem.value) == "lines 1 (as t.jsonl:1), 2 (as t.jsonl:2)"
    removed = done(train, eval=held, leakage="remove")
    assert prompts(removed, "train") == words[2:]
    assert left_out(removed.report["sources"][0], "leaked") == [(1, 1), (2, 2)]
    both = write(
        tmp_path / "s.jsonl",
        *((text, text) for word in words for text in (word, "\u3000".join(word))),
        *((word, "another answer") for word in words),
    )
    split = done(both, split={"eval": 0.5})
    sides = [{"".join(p.split()) for p in prompts(split, side)} for side in ("train", "eval")]
    assert not sides[0] & sides[1]
    assert split.counts == {"train": 10, "eval": 10, "test": 0}  # the spaced ones repeat


def test_looser_leaks_are_said_and_not_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", ("one", "a"), ("two", "b"))
    prepared = done(train, eval=write(tmp_path / "e.jsonl", ("ＯＮＥ", "a"), ("three", "c")))
    leakage = prepared.report["leakage"]
    assert (leakage["rule"], leakage["eval_in_train"]) == ("white space apart", 0)
    assert leakage["by_case_and_width_alone"]["eval_in_train"] == 1
    lines = "\n".join(cleaning_lines(prepared.report))
    assert "1 eval rows differ from prompts in train by case, width or white space alone" in lines


def test_where_every_row_goes_the_job_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ("one", "a"), ("one", "b"))
    assert problem_of(path, clean=DROP).problem == "none of 2 rows is left: 2 in conflict"
    path = write(tmp_path / "b.jsonl", ("one", ""), ("two", " "))
    assert "all 2 rows have an empty prompt or answer" in problem_of(path).problem
    path = write(tmp_path / "c.jsonl", *[("one", "a")] * 30)
    assert "can't hold rows out" in problem_of(path, split={"eval": 0.5}).problem
    assert done(path).counts["train"] == 1
    assert (
        "can't hold rows out: all rows ask the same"
        in problem_of(path, split={"eval": 0.5}, clean={"duplicates": "keep"}).problem
    )
    path = write(tmp_path / "d.jsonl", ("one", "a"), ("two", "b"))
    problem = problem_of(path, split={"eval": 0.3, "test": 0.3})
    assert problem.problem == "can't hold rows out for test"


def test_a_split_is_disjoint_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, *((f"q {n % 150}", f"a {n}") for n in range(200)))
    prepared = done(path, split={"eval": 0.1, "test": 0.2})
    sides = [set(prompts(prepared, side)) for side in SPLITS]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert sum(map(len, sides)) == 150
    assert prepared.counts == {"train": 140, "eval": 20, "test": 40}
    adds_up(prepared)
    other = done(path, split={"eval": 0.1, "test": 0.2, "seed": 7})
    assert set(prompts(other, "eval")) != sides[1]
    alone = done(path, split={"eval": 0.1})
    assert set(prompts(alone, "eval")) == sides[1]  # a test side takes nothing from eval
    more = done(path, split={"eval": 0.3})
    assert set(prompts(more, "eval")) >= {p for p in sides[1] if int(p.split()[1]) >= 50}


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = [(f"q {n}", f"a {n % 9}") for n in range(120)]
    options: dict[str, Any] = {"split": {"eval": 0.1, "test": 0.1}}
    options["mix"] = {"ratio": 1, "sources": [{"rows": "b", "ratio": 2}]}
    found = []
    for seed in range(3):
        shuffled = random.Random(seed).sample(rows, len(rows))  # noqa: S311
        path = write(tmp_path / f"{seed}.jsonl", *shuffled)
        mixed = write(tmp_path / f"b{seed}.jsonl", *((f"b {p}", a) for p, a in shuffled[:70]))
        if seed:
            mixed = tmp_path / "b0.jsonl"
        prepared = done(path, mixed=(mixed,), **options)
        found.append([sorted(prompts(prepared, side)) for side in SPLITS])
    assert found[0] == found[1] == found[2]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz"), st.sampled_from("LMN")),
        min_size=8,
        max_size=60,
    ),
    eval_share=st.sampled_from([0.1, 0.25, 0.5]),
    test_share=st.sampled_from([0.0, 0.2]),
)
def test_any_rows_split_without_a_leak(
    tmp_path: Path,
    rows: list[tuple[str, str, str]],
    eval_share: float,
    test_share: float,
) -> None:
    path = write(
        tmp_path / "any.jsonl",
        *({"instruction": p, "output": a, "kind": kind} for p, a, kind in rows),
    )
    try:
        prepared = done(path, split={"eval": eval_share, "test": test_share, "stratify": "kind"})
    except SpecError:
        assert len({p for p, _, _ in rows}) < 4
        return
    adds_up(prepared)
    sides = [set(prompts(prepared, side)) for side in SPLITS]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert sides[0]
    assert sides[1]
    assert bool(sides[2]) == (test_share > 0)


def test_strata_keep_their_shares(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    kinds = ["rare"] * 30 + ["usual"] * 470
    write(path, *({"instruction": f"q {n}", "output": "a", "kind": k} for n, k in enumerate(kinds)))
    prepared = done(path, split={"eval": 0.1, "test": 0.1, "stratify": "kind"})
    assert prepared.report["split"]["strata"] == {
        "rare": {"train": 24, "eval": 3, "test": 3},
        "usual": {"train": 376, "eval": 47, "test": 47},
    }
    assert Counter(row.label for row in prepared.rows("test")) == {"rare": 3, "usual": 47}
    problem = problem_of(path, split={"eval": 0.1, "stratify": "kidn"})
    assert (problem.where, problem.nearest) == (f"{path}:1", "kind")
    write(
        path, {"instruction": "a", "output": "b", "kind": "x"}, {"instruction": "c", "output": "b"}
    )
    assert problem_of(path, split={"eval": 0.1, "stratify": "kind"}).where == f"{path}:2"


def test_leaks_between_files_are_refused_or_removed_or_kept(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", ("one", "a"), ("two", "b"), ("ＡＢＣ  x", "c"), ("d", "d"))
    held = write(tmp_path / "e.jsonl", ("abc X", "other"), ("five", "e"))
    tested = write(tmp_path / "s.jsonl", ("ONE", "a"), ("Five", "e"), ("six", "f"))
    with pytest.raises(SpecError) as caught:
        done(train, eval=held, test=tested, clean=LOOSE)
    rule = "(white space, case and width (NFKC) apart)"
    assert [(p.where, p.problem) for p in caught.value.problems] == [
        (f"{tested}:1", f"1 test rows have a prompt that is trained on too {rule}"),
        (f"{held}:1", f"1 eval rows have a prompt that is trained on too {rule}"),
        (f"{held}:2", f"1 eval rows have a prompt that is tested on too {rule}"),
    ]
    assert "data.leakage: remove" in "\n".join(caught.value.lines())
    removed = done(train, eval=held, test=tested, leakage="remove", clean=LOOSE)
    assert prompts(removed, "train") == ["two", "d"]
    assert prompts(removed, "eval") == ["abc X"]
    assert prompts(removed, "test") == ["ONE", "Five", "six"]
    assert left_out(removed.report["sources"][0], "leaked") == [(1, 1), (3, 1)]
    adds_up(removed)
    kept = done(train, eval=held, test=tested, leakage="keep", clean=LOOSE)
    assert kept.counts == {"train": 4, "eval": 2, "test": 3}
    assert kept.report["leakage"]["mode"] == "keep"
    assert leaks(kept.report["leakage"]) == [
        (("test", "train"), 1),
        (("eval", "train"), 1),
        (("eval", "test"), 1),
    ]


def test_rows_that_leak_on_two_sides_are_counted_once_each(tmp_path: Path) -> None:
    train = numbered(tmp_path / "t.jsonl", 100)
    tested = numbered(tmp_path / "s.jsonl", 60, "Q")  # prompts of the first sixty
    prepared = done(train, test=tested, split={"eval": 0.5}, leakage="remove", clean=LOOSE)
    assert prepared.report["sources"][0]["leaked"]["rows"] == 60
    assert sum(prepared.counts.values()) == 100
    adds_up(prepared)


def test_mixed_rows_leak_too(tmp_path: Path) -> None:
    train = numbered(tmp_path / "t.jsonl", 40)
    mixed = numbered(tmp_path / "m.jsonl", 10, "Q")  # the same prompts
    mix = {"ratio": 1, "sources": [{"rows": "m"}]}
    options: dict[str, Any] = {"mixed": (mixed,), "mix": mix, "split": {"eval": 0.5}}
    options["clean"] = LOOSE
    assert "trained on too" in problem_of(train, **options).problem
    prepared = done(train, leakage="remove", **options)
    assert prepared.report["sources"][1]["leaked"]["rows"] > 0
    adds_up(prepared)


def test_a_mix_repeats_rows_evenly(tmp_path: Path) -> None:
    train, mixed = numbered(tmp_path / "t.jsonl", 80), numbered(tmp_path / "m.jsonl", 10, "me")
    mix = {"ratio": 3, "sources": [{"rows": "m", "ratio": 1}]}
    prepared = done(train, mixed=(mixed,), mix=mix, split={"eval": 0.05})
    times = Counter(prompts(prepared, "train"))
    assert Counter(times[f"me {n}"] for n in range(10)) == {3: 5, 2: 5}
    assert prepared.counts == {"train": 76 + 25, "eval": 4, "test": 0}
    assert prepared.report["mix"]["portions"][1]["words"] == "each 2 or 3 times"
    adds_up(prepared)
    again = done(train, mixed=(mixed,), mix=mix | {"seed": 7}, split={"eval": 0.05})
    assert Counter(prompts(again, "train")) != times
    cut = done(train, mixed=(mixed,), mix=mix | {"fit": "cut"}, split={"eval": 0.05})
    drawn = Counter(prompts(cut, "train"))
    assert set(drawn.values()) == {1}
    assert (len(drawn), sum(p.startswith("me") for p in drawn)) == (40, 10)
    assert cut.report["sources"][0]["train"] == 76
    assert cut.report["sources"][0]["drawn"] == 30
    problem = problem_of(
        train, mixed=(mixed,), mix={"ratio": 0.01, "fit": "cut", "sources": [{"rows": "m"}]}
    )
    assert problem.field == "data.mix"


def test_rows_are_capped_for_each_source(tmp_path: Path) -> None:
    train, mixed = numbered(tmp_path / "t.jsonl", 80), numbered(tmp_path / "m.jsonl", 40, "me")
    mix = {"ratio": 1, "sources": [{"rows": "m"}]}
    prepared = done(train, mixed=(mixed,), mix=mix, max_rows=30)
    assert [source["read"] for source in prepared.report["sources"]] == [30, 30]


def test_labels_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", *({"text": f"t {n}", "label": n % 3} for n in range(30)))
    prepared = done(path, labels={"0": "no", "1": "yes", "2": "so so"})
    assert prepared.report["labels"]["2"] == {"train": 10, "eval": 0, "test": 0}
    assert [row.label for row in prepared.rows("train")][:3] == ["0", "1", "2"]


def test_it_is_made_once_and_is_the_same_wherever_the_rows_lie(tmp_path: Path, cache: Path) -> None:
    path = numbered(tmp_path / "t.jsonl", 20)
    first = done(path, split={"eval": 0.2})
    stamp = (first.folder / "train.parquet").stat().st_mtime_ns
    (tmp_path / "other").mkdir()
    moved = path.rename(tmp_path / "other" / "same.jsonl")
    second = done(moved, split={"eval": 0.2})
    assert second.folder == first.folder
    assert (first.folder / "train.parquet").stat().st_mtime_ns == stamp
    assert second.report["sources"][0]["place"] == str(moved)
    assert done(moved, split={"eval": 0.3}).folder != first.folder
    (first.folder / "train.parquet").write_bytes(b"damaged")
    assert done(moved, split={"eval": 0.2}).counts == first.counts
    assert not list(cache.glob(".*.staging"))


def test_rows_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    plan = plan_of(numbered(tmp_path / "t.jsonl", 3))
    numbered(tmp_path / "t.jsonl", 4)
    with pytest.raises(RefusedError, match="was changed since the plan was made"):
        prepare(plan, say=print)


def test_hub_rows_are_named_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    asked = []

    def read_hub(*what: Any) -> Any:
        asked.append(what)
        yield from ((n + 1, {"instruction": f"q {n}", "output": word}) for n in range(4))

    monkeypatch.setattr("runner.data.sources.read_hub", read_hub)
    plan = plan_of(numbered(tmp_path / "t.jsonl", 1))
    plan.rows = PlannedRows(train=PlannedData(kind="hub", id="a/b", revision="main"))
    word = "a"
    first = prepare(plan, say=print)
    assert prepare(plan, say=print).folder == first.folder
    word = "b"
    assert prepare(plan, say=print).folder != first.folder
    assert asked[0] == ("a/b", "main", None, "train")
    adds_up(first)
    assert not list(cache.glob("*reading*"))


def test_a_later_run_can_prove_what_was_trained_on(tmp_path: Path) -> None:
    train = numbered(tmp_path / "t.jsonl", 50)
    prepared = done(train, split={"eval": 0.1, "test": 0.2})
    kept = tmp_path / "run" / "row_hashes"
    kept.parent.mkdir()
    prepared.copy_hashes(kept)
    prepared.copy_hashes(kept)  # again, in its place
    assert proves_disjoint(kept, prepared) == Overlap(10, 0, 0)
    assert proves_disjoint(kept, prepared).disjoint
    trained = prompts(prepared, "train")
    rows = write(
        tmp_path / "new.jsonl",
        (trained[0].upper(), trained[0].replace("q", "a")),  # the very row
        (trained[1], "another answer"),
        ("new", "a"),
    )
    other = done(train, test=rows, leakage="keep")
    assert proves_disjoint(kept, other) == Overlap(3, 2, 1)
    # of a run of before there was an exact comparison
    import duckdb

    for side in SPLITS:
        path = kept / f"hashes-{side}.parquet"
        old = f"SELECT prompt, \"row\" FROM read_parquet('{path}')"  # noqa: S608
        duckdb.execute(f"COPY ({old}) TO '{path}.old' (FORMAT parquet)")
        Path(f"{path}.old").rename(path)
    assert proves_disjoint(kept, other) == Overlap(3, 2, 1)
    with pytest.raises(RefusedError, match="can't be read"):
        proves_disjoint(tmp_path / "nowhere", prepared)


def test_hashes_are_of_each_row_once(tmp_path: Path) -> None:
    train, mixed = numbered(tmp_path / "t.jsonl", 80), numbered(tmp_path / "m.jsonl", 10, "me")
    prepared = done(train, mixed=(mixed,), mix={"ratio": 1, "sources": [{"rows": "m"}]})
    assert prepared.counts["train"] == 160
    assert proves_disjoint(prepared.folder, prepared, "train") == Overlap(90, 90, 90)


def test_a_splits_hash_is_kept_and_rows_of_before_have_theirs_worked_out(tmp_path: Path) -> None:
    """Working it out takes duckdb, which each trainer would import for this alone."""
    prepared = done(numbered(tmp_path / "t.jsonl", 40))
    code = (
        "import sys; from pathlib import Path; from runner.data.prepared import Prepared; "
        "print(Prepared(Path(sys.argv[1])).split_hashes(), 'duckdb' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(prepared.folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == f"{prepared.split_hashes()} False\n"
    expected = prepared.split_hashes()
    (prepared.folder / "split-sha256.json").unlink()
    for worked_out in (True, False):
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert found.stdout == f"{expected} {worked_out}\n"


def image_rows(folder: Path, count: int) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    rows = []
    for n in range(count):
        Image.new("L", (n + 1, 1)).save(folder / "images" / f"{n}.jpg")
        rows.append(
            {"id": n, "text": f"<__dj__image> {n} <|__dj__eoc|>", "images": [f"images/{n}.jpg"]}
        )
    return write(folder / "data.jsonl", *rows)


def test_images_lie_beside_the_rows_or_in_their_folder(tmp_path: Path) -> None:
    path = image_rows(tmp_path, 3)
    prepared = done(path, vision=True)
    assert [row.images for row in prepared.rows("train")] == [
        [str(tmp_path / "images" / f"{n}.jpg")] for n in range(3)
    ]
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "data.jsonl")
    again = done(moved, vision=True, image_folder=str(tmp_path))
    assert list(again.rows("train")) == list(prepared.rows("train"))
    problem = problem_of(moved, vision=True)
    assert (problem.where, problem.problem) == (f"{moved}:1", "no such image file")
    assert problem.value == "images/0.jpg"
    (tmp_path / "images" / "2.jpg").rename(tmp_path / "images" / "22.jpg")
    problem = problem_of(moved, vision=True, image_folder=str(tmp_path))  # though it is prepared
    assert (problem.where, problem.problem) == (f"{moved}:3", "no such image file")
    with pytest.raises(RefusedError, match="a text model can't read"):
        done(moved)


def test_rows_with_other_images_are_not_alike(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": a}],
         "images": [image]}
        for image, a in (("a.jpg", "x"), ("b.jpg", "x"), ("a.jpg", "x"), ("a.jpg", "y"))
    ]  # fmt: skip
    for name in ("a.jpg", "b.jpg"):
        Image.new("L", (1, 1)).save(tmp_path / name)
    prepared = done(write(tmp_path / "t.jsonl", *rows), vision=True, clean=DROP)
    assert [row.images for row in prepared.rows("train")] == [[str(tmp_path / "b.jpg")]]


PREPARE = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_prepare import done
from runner.common.errors import RunnerError
{before}
try:
    print(done(Path({train!r}), split={{"eval": 0.1}}).counts)
except RunnerError as error:
    print("\\n".join(error.lines()))
"""


def start(train: Path, before: str = "") -> subprocess.Popen[str]:
    code = PREPARE.format(tests=str(Path(__file__).parent), train=str(train), before=before)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, full_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = numbered(tmp_path / "t.jsonl", 60_000)
    place = full_disk(1 << 20)
    monkeypatch.setenv("RUNNER_CACHE", str(place))
    with pytest.raises(RefusedError, match="no room to prepare rows"):
        done(train)
    left = [path.name for path in (place / "prepared").iterdir()]
    assert [name for name in left if not name.endswith(".lock")] == []


def test_a_file_size_limit_is_told_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    train = numbered(tmp_path / "t.jsonl", 60_000)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    out, _ = start(train, limit).communicate()
    assert "no room to prepare rows" in out
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []
    assert done(train).counts["train"] == 60_000


def test_a_killed_one_is_made_anew(tmp_path: Path, cache: Path) -> None:
    train = numbered(tmp_path / "t.jsonl", 30_000)
    wait = (
        "from runner.data import prepare as module\n"
        "import time\n"
        "module.RowIndex.place = lambda *_: (print('there', flush=True), time.sleep(600))"
    )
    killed = start(train, wait)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "there\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert list(cache.glob(".*.staging"))
    prepared = done(train, split={"eval": 0.1})
    adds_up(prepared)
    assert not list(cache.glob(".*.staging"))


def test_two_at_once_give_the_same(tmp_path: Path) -> None:
    train = numbered(tmp_path / "t.jsonl", 20_000)
    both = [start(train), start(train)]
    outs = {process.communicate()[0] for process in both}
    assert outs == {"{'train': 18000, 'eval': 2000, 'test': 0}\n"}
    adds_up(done(train, split={"eval": 0.1}))


def test_real_reviews_split_eight_to_one_to_one(shared: Path) -> None:
    prepared = done(
        shared / "data" / "chnsenticorp_train.jsonl",
        clean=DROP,
        labels={"0": "差评", "1": "好评"},
        split={"eval": 0.1, "test": 0.1, "stratify": "label"},
    )
    adds_up(prepared)
    assert prepared.report["sources"][0]["read"] == 7874
    total = sum(prepared.counts.values())
    for sides in prepared.report["split"]["strata"].values():
        rows = sum(sides.values())
        for side, share in (("train", 0.8), ("eval", 0.1), ("test", 0.1)):
            assert abs(sides[side] - share * rows) < 1
    assert prepared.counts["eval"] == round(0.1 * total)
    for side, other in (("eval", "train"), ("test", "train"), ("test", "eval")):
        copied = prepared.folder / f"hashes-{other}.parquet"
        assert copied.is_file()
        assert not set(prompts(prepared, side)) & set(prompts(prepared, other))
    assert proves_disjoint(prepared.folder, prepared, "test").disjoint


def test_real_rows_mix_three_to_one(shared: Path) -> None:
    data = shared / "data"
    prepared = done(
        data / "medical_minimind_800.jsonl",
        mixed=(data / "lora_identity.jsonl",),
        mix={"ratio": 3, "sources": [{"rows": "lora_identity.jsonl", "ratio": 1}]},
    )
    adds_up(prepared)
    medical, identity = prepared.report["sources"]
    kept = identity["train"]
    assert (medical["drawn"], identity["drawn"]) == (800, 267)
    times = Counter(row.line for row in prepared.rows("train") if row.source == 1)
    assert len(times) == kept
    assert set(times.values()) == {267 // kept, 267 // kept + 1}


def test_real_captions_are_asked_their_own_questions(shared: Path) -> None:
    folder = shared / "data" / "mgm_200"
    prepared = done(folder / "data.jsonl", questions=folder / "data.llava.json", vision=True)
    known = json.loads((folder / "data.llava.json").read_text())
    rows = list(prepared.rows("train"))
    assert len(rows) == len(known) == 200
    for row, record in zip(rows, known, strict=True):
        assert [m["content"] for m in row.messages] == [
            turn["value"] for turn in record["conversations"]
        ]
        assert row.images == [str(folder / record["image"])]


MEASURE = """
import json, sys
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import ten_million
from runner.data import ingest, row_index, row_table, write_splits
if {is_small}:
    ingest.GROUP_ROWS, ingest.GROUP_CHARACTERS = 2_500, 1_000_000
    row_index._BATCH, write_splits._WRITE_ROWS = 6_000, 2_500
    row_table.MEMORY_LIMIT = "60MB"
print(json.dumps(ten_million.run({rows}, Path({folder!r}), lambda _: None)))
"""


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("is_small", "rows", "peak_mib", "growth_mib"),
    [
        pytest.param(True, 60_000, 420, 60, id="small buffers"),
        pytest.param(False, 240_000, 550, 100, id="as they are", marks=pytest.mark.soak),
    ],
)
def test_memory_does_not_grow_with_the_rows(
    is_small: bool, rows: int, peak_mib: int, growth_mib: int, tmp_path: Path
) -> None:
    """The kernel's own high-water mark of a process that prepares nothing else.

    With fewer rows the buffers are not full yet: the small ones are an eighth of what they are. A
    reader that keeps its rows grows by 100 MiB there.
    """
    peaks = []
    for number in (rows // 3, rows):
        folder = tmp_path / str(number)
        folder.mkdir()
        benchmarks = str(REPOSITORY / "benchmarks")
        code = MEASURE.format(
            benchmarks=benchmarks, rows=number, folder=str(folder), is_small=is_small
        )
        run = [sys.executable, "-c", code]
        found = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
        assert found["wrong"] == []
        peaks.append(found["peak_rss_bytes"] >> 20)
    few, many = peaks
    assert many < peak_mib
    # the ledger's pages are kept in memory up to its limit, of 60 or 300 MB
    assert many - few < growth_mib, peaks
