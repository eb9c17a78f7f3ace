"""A ranking as text and as a part of the report: every number of its file, warnings, and films that fit."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranking_builders import films_of, outcome_of, ranking_of
from report_builders import evaluation_of

from worldline.ranking.conclude import conclude, over_tasks
from worldline.ranking.result import Film, write_films
from worldline.report.ranked import ranking_text, shown
from worldline.report.write import write_report
from worldline.schema import DataError


def _run(folder: Path) -> Path:
    folder.mkdir()
    ranking_of().write(folder / "ranking")
    write_films(folder / "ranking", films_of())
    return folder


def test_the_text_says_what_matters_first_and_names_every_policy() -> None:
    ranking = ranking_of()
    text = ranking_text(ranking)
    first = text.splitlines()[0]
    assert re.search(
        r"^touch: Of 5 policies, success rates in the world go with physics with Spearman rho \d\.\d\d", first
    )
    assert "without any one of them" in first
    assert "warning: only 5 policies" in text
    for policy in ranking.tasks[0].policies:
        assert re.search(rf"^\d {policy} +\d+ \[\d+, \d+\]", text, re.MULTILINE), policy
    world = ranking.tasks[0].of("world")
    assert world is not None
    assert f"{world.agreement('spearman').test.p:.2f}"[:3] in text
    for line in (
        "MMRV",
        "failures read as success",
        "not computed: world without states: no world",
        "left out: policy",
    ):
        assert line in text, line


def test_an_order_that_one_policy_makes_by_itself_is_told() -> None:
    columns = outcome_of().columns
    alone = np.ones_like(columns["physics"])
    alone[1] = False
    outcome = outcome_of(columns=columns | {"physics": alone, "world": alone})
    text = ranking_text(replace(ranking_of(), tasks=(conclude(outcome),)))
    assert "Spearman rho 1.00 (not defined without one of them)" in text.splitlines()[0]
    assert f"not defined ({outcome.policies[1]})" in text


def test_actions_out_of_range_are_told_by_policy_and_place() -> None:
    """Two of five policies strayed, in the world or at both places; over two tasks their counts are added."""
    counts = {"twin": np.array([0, 0, 3, 0, 0]), "world": np.array([0, 0, 4, 1, 0])}
    one = outcome_of(outside=counts, actions=1350)
    both = over_tasks([one, replace(one, id="push")])
    assert both is not None
    ranking = replace(ranking_of(), tasks=(conclude(one), conclude(both)), settings={"out_of_range": "clip"})
    text = ranking_text(ranking)
    assert re.search(r"^3 blind_10 +3 of 1350 +4 of 1350$", text, re.MULTILINE)
    assert re.search(r"^4 patch_40 +0 of 2700 +2 of 2700$", text, re.MULTILINE)
    (table, _) = (words for task in shown(ranking).tasks for words in task.tables if "range" in words.title)
    assert "nearest state within" in table.note
    assert len(table.lines) == 2
    none = conclude(outcome_of(outside={"world": np.zeros(5, int)}, actions=1350))
    said = ranking_text(replace(ranking, tasks=(none,)))
    assert "no policy that was ranked commanded a state outside of the range" in said
    assert "of 1350" not in said


def test_a_ranking_alone_is_a_report(tmp_path: Path) -> None:
    page = write_report([_run(tmp_path / "world")]).read_text(encoding="utf-8")
    assert 'href="#ranking"' in page
    section = page[page.index('<section id="ranking">') : page.index('<section id="results">')]
    found = shown(ranking_of(), films_of())
    assert found.sentence in section
    for table in found.tasks[0].tables:
        for line in table.lines:
            for cell in line[1:]:
                assert cell == "-" or cell in section.replace("<wbr>", ""), cell
    assert section.count("<canvas") == 2 * 5, "the twin above and the world below of five policies"
    assert "<script" not in section
    assert not re.search(r'(?:src|href)="(?!data:|#)', section)


def test_the_folder_of_a_ranking_itself_can_be_reported(tmp_path: Path) -> None:
    """As after `worldline rank --out FOLDER`: the page stands beside the files."""
    folder = _run(tmp_path / "world") / "ranking"
    assert '<section id="ranking">' in write_report([folder]).read_text(encoding="utf-8")
    assert (folder / "report.html").exists()


def test_a_run_without_a_ranking_has_no_such_part(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world/config.json").write_text("{}")
    assert "ranking" not in write_report([tmp_path / "world"]).read_text(encoding="utf-8").partition("<main>")[2]


def test_an_edited_ranking_is_refused_by_the_report(tmp_path: Path) -> None:
    run = _run(tmp_path / "world")
    path = run / "ranking/ranking.json"
    path.write_text(path.read_text().replace('"touch"', '"tuch"'))
    with pytest.raises(DataError, match="edited or damaged"):
        write_report([run])


def test_large_films_are_made_small_enough() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (5, 60, 128, 128, 3), dtype=np.uint8)
    film = Film("touch", "touch 0", tuple("abcde"), frames, frames)
    (large,) = shown(ranking_of(), [film], budget=10**9).reels
    (small,) = shown(ranking_of(), [film], budget=800_000).reels
    assert large.frames == 20
    assert large.fps == pytest.approx(15 / 3), "as long as it was"
    sizes = [sum(len(sheet.uri) for sheet in (*reel.twin, *reel.world)) for reel in (large, small)]
    assert sizes[1] < 800_000 < sizes[0]


def test_what_is_not_defined_is_said_and_not_drawn_as_a_number() -> None:
    ranking = ranking_of(hopeless=True)
    assert "Nothing can be said of the order of 5 policies: not defined" in ranking_text(ranking)
    assert "nan" not in ranking_text(ranking).lower().replace("naming", "")
    without = replace(ranking, tasks=(replace(ranking.tasks[0], trusted=(), readings=()),))
    assert "coverage" not in ranking_text(without)


def test_a_ranking_beside_other_horizons_alone_is_shown(tmp_path: Path) -> None:
    evaluation_of().save(tmp_path / "run/evaluation_10s/metrics.json")
    ranking_of().write(tmp_path / "run/ranking")
    page = write_report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert 'id="ranking"' in page
    assert 'id="further"' in page
