"""What is said of outcomes: rates, agreement with the truth, trusted episodes, how well success is read."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranking_builders import outcome_of, ranking_of

from worldline.metrics.ranking import spearman
from worldline.ranking.conclude import Counted, conclude, over_tasks
from worldline.ranking.result import Film, Ranking, read_films, write_films
from worldline.rundir import to_json
from worldline.schema import DataError


def test_a_world_that_is_right_agrees_and_a_copy_does_not() -> None:
    found = conclude(outcome_of())
    world, copy = found.of("world"), found.of("copy_last")
    assert world is not None
    assert copy is not None
    assert (world.k, world.starts, world.same) == (5, 30, 1)
    assert world.agreement("spearman").value == pytest.approx(1)
    assert world.agreement("mmrv").value == 0
    assert (world.bias.mean, world.mae.mean) == (0, 0)
    assert math.isnan(copy.agreement("pearson").value)
    assert copy.bias.mean == pytest.approx(-np.mean([rate.value for rate in found.rates["physics"]]))
    first = found.rates["physics"][0]
    assert first.low <= first.value <= first.high
    assert found.of("world", "twin") is not None, "also against what is read from true frames"


def test_the_error_of_the_reader_is_told_on_true_and_on_imagined_frames() -> None:
    true, imagined = conclude(outcome_of(flip=0.2)).readings
    assert (true.place, true.accuracy.mean, true.auroc.mean, true.optimism.mean) == ("twin", 1, 1, 0)
    assert imagined.place == "replayed"
    assert 0.7 < imagined.accuracy.mean < 0.9
    assert 0 < imagined.optimism.low < imagined.optimism.mean < imagined.optimism.high < 0.5
    assert 0.5 < imagined.auroc.mean < 1
    assert imagined.episodes == 150


def test_trusted_episodes_agree_better_where_doubt_knows_what_is_wrong() -> None:
    found = conclude(outcome_of(flip=0.3)).trusted
    assert [one.coverage for one in found] == sorted((one.coverage for one in found), reverse=True)
    every, half = found[0], next(one for one in found if one.coverage == 0.5)
    assert every.against is not None
    assert half.against is not None
    assert (every.episodes, half.episodes) == (150, 75)
    assert every.against.same < 0.8
    assert half.against.same == 1
    scarce = outcome_of(doubt=np.arange(150.0).reshape(5, 30))
    last = conclude(scarce).trusted[-1]
    assert last.against is not None
    assert last.against.k == 2, "policies without trusted episodes are in no list"


def test_columns_of_fewer_starts_are_compared_on_those() -> None:
    full = outcome_of()
    columns = full.columns | {"shuffled_states": full.columns["world"][:, :8]}
    found = conclude(replace(full, columns=columns)).of("shuffled_states")
    assert found is not None
    assert (found.starts, found.same) == (8, 1)


def test_real_counts_take_the_place_of_physics() -> None:
    counts = tuple((Counted(successes=n, trials=20),) for n in (1, 5, 11, 14, 19))
    columns = {"world": outcome_of().columns["world"]}
    found = conclude(outcome_of(columns=columns, counts=counts, chances={}))
    assert found.truth == "counts"
    assert found.rates["counts"][1].trials == 20
    world = found.of("world")
    assert world is not None
    expected = spearman([n / 20 for n in (1, 5, 11, 14, 19)], [one.value for one in found.rates["world"]])
    assert world.agreement("spearman").value == pytest.approx(float(expected))
    assert world.agreement("pearson").starts_low < 1, "counts of twenty trials are no exact truth"
    assert math.isnan(world.same)
    assert found.readings == ()


def test_over_tasks_are_the_policies_of_all_of_them() -> None:
    one, other = outcome_of(), outcome_of(flip=0.4, policies=("nothing", "miss_10cm", "x", "patch_40", "oracle"))
    both = over_tasks([one, other])
    assert both is not None
    assert both.policies == ("nothing", "miss_10cm", "patch_40", "oracle")
    assert both.columns["world"].shape == (4, 60)
    rates = conclude(both).rates["physics"]
    assert rates[3].value == pytest.approx(np.mean([one.columns["physics"][4], other.columns["physics"][4]]))
    assert over_tasks([one]) is None
    assert over_tasks([one, replace(other, policies=tuple("vwxyz"))]) is None


def test_over_tasks_the_same_starts_are_compared_where_a_column_has_fewer() -> None:
    """As `--ablation-starts` makes them: 8 of 30."""
    one, tasks = outcome_of(), []
    for task, keep in ((one, 30), (replace(one, columns={name: ~column for name, column in one.columns.items()}), 20)):
        columns = {name: column[:, :keep] for name, column in task.columns.items()}
        columns["shuffled_states"] = columns["world"][:, :8]
        tasks.append(replace(task, columns=columns, chances={}, doubt=None))
    both = over_tasks(tasks)
    assert both is not None
    found = conclude(both).of("shuffled_states")
    assert found is not None
    assert (found.starts, found.same) == (16, 1), "the world is as physics here"


def test_over_tasks_counts_weigh_by_task_and_not_by_trial() -> None:
    world, policies = np.ones((3, 12), dtype=bool), ("a", "b", "c")
    tasks = [
        outcome_of(
            policies=policies,
            columns={"world": world[:, :starts]},
            counts=tuple((Counted(successes=n, trials=trials),) for n in hits),
            chances={},
            doubt=np.arange(3.0 * starts).reshape(3, starts),
        )
        for starts, trials, hits in ((12, 10, (9, 8, 7)), (4, 100, (10, 20, 30)))
    ]
    both = over_tasks(tasks)
    assert both is not None
    assert both.doubt is not None
    assert both.doubt[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3], "each episode's own"
    found = conclude(both)
    assert [one.value for one in found.rates["counts"]] == pytest.approx([0.5, 0.5, 0.5])
    assert all(one.low < 0.5 < one.high for one in found.rates["counts"])
    against = found.of("world", "counts")
    assert against is not None
    assert against.bias.mean == pytest.approx(0.5)


def test_a_result_is_read_back_and_notices_an_edit(tmp_path: Path) -> None:
    made = ranking_of()
    path = made.write(tmp_path / "ranking")
    assert repr(to_json(Ranking, Ranking.load(path))) == repr(to_json(Ranking, made)), "NaN is not equal to NaN"
    assert "NaN" not in path.read_text()
    content = json.loads(path.read_text())
    content["tasks"][0]["rates"]["world"][0]["successes"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="edited or damaged"):
        Ranking.load(path)


def test_films_are_read_back(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 4, 3), dtype=np.uint8)
    films = (
        Film("touch", "touch 0", ("a", "b"), frames, frames[::-1].copy()),
        Film("push", "push 1", ("a", "c"), None, frames),
    )
    write_films(tmp_path, films)
    for one, other in zip(read_films(tmp_path / "films.npz"), films, strict=True):
        assert (one.task, one.start, one.policies) == (other.task, other.start, other.policies)
        np.testing.assert_array_equal(one.world, other.world)
        assert (one.twin is None) == (other.twin is None)
