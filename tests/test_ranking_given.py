"""What users give: entry points, counts of real successes, readers of success; and what is wrong with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranking_builders import Bright, Constant, contender, place, small_starts, still, token_forecaster

from worldline.ranking.given import FunctionReader, entry_point, policies_of, read_counts, refuse_twins
from worldline.ranking.parts import Parts, content_of, key_of
from worldline.ranking.protocol import Manner, play
from worldline.schema import DataError, UsageError

MODULE = """
import numpy as np

class Mine:
    def act(self, observation):
        return np.zeros(2, np.float32)

def success(frames, states, task):
    return frames[-1].mean() > frames[0].mean()

def doubtful(frames, states, task):
    return 1.5

def broken(frames, states, task):
    raise ValueError("no lamp")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of a user's in the working directory."""
    (tmp_path / "own_policies.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_entry_points_are_found_from_the_working_directory(own: Path) -> None:
    one, two = policies_of(["own_policies:Mine", "careful=own_policies:Mine"])
    assert (one.label, two.label) == ("Mine", "careful")
    played = play(still(), two, small_starts(2), Bright(), Manner(steps=1))
    assert (played.commands == 0).all()
    assert one.identity == two.identity
    (own / "other_policies.py").write_text(MODULE + "\n# changed\n")
    assert policies_of(["other_policies:Mine"])[0].identity != one.identity


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("Mine", "write it as my_package.my_module:make_policy"),
        ("absent_module:Mine", "absent_module cannot be imported"),
        ("own_policies:Yours", "has no Yours"),
        ("own_policies:number", "is a int; name a function"),
    ],
)
def test_entry_points_that_are_none_are_refused(own: Path, spec: str, said: str) -> None:
    del own
    with pytest.raises(UsageError, match=said):
        entry_point(spec, "--policy")


def test_two_policies_of_one_label_are_refused(own: Path) -> None:
    del own
    pair = policies_of(["a=own_policies:Mine", "a=own_policies:Mine"])
    with pytest.raises(UsageError, match=r"two policies of task 'push' are called 'a' .*own_policies:Mine"):
        refuse_twins(pair, ["push"])
    refuse_twins([replace(pair[0], task="touch"), replace(pair[1], task="push")], ["push", "touch"])
    with pytest.raises(UsageError, match="label before = is empty"):
        policies_of(["=own_policies:Mine"])


def test_a_function_reads_success_and_its_mistakes_are_named(own: Path) -> None:
    del own
    frames = np.zeros((2, 3, 4, 4, 3), np.uint8)
    frames[1, -1] = 9
    states = np.zeros((2, 3, 2), np.float32)
    assert FunctionReader("own_policies:success").chances("touch", frames, states).tolist() == [0, 1]
    with pytest.raises(UsageError, match=r"gave 1\.5; it must be a chance"):
        FunctionReader("own_policies:doubtful").chances("touch", frames, states)
    with pytest.raises(UsageError, match="failed on an episode of task 'touch': ValueError: no lamp"):
        FunctionReader("own_policies:broken").chances("touch", frames, states)


def _table(folder: Path, text: str) -> Path:
    path = folder / "counts.csv"
    path.write_text(text)
    return path


def test_counts_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    found = read_counts(
        _table(tmp_path, "task, trials,policy,successes,who\nwipe,20,a,13,me\nwipe,10,b,0,me\nfold,5,a,5,you\n")
    )
    assert {task: {label: (c.successes, c.trials) for label, c in own.items()} for task, own in found.items()} == {
        "wipe": {"a": (13, 20), "b": (0, 10)},
        "fold": {"a": (5, 5)},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policy,task,wins,trials\na,wipe,1,2\n", "no column successes"),
        ("", "no column policy, task, successes, trials"),
        ("policy,task,successes,trials\n", "found none"),
        ("policy,task,successes,trials\na,wipe,3,2\n", "3 of 2 in line 2"),
        ("policy,task,successes,trials\na,wipe,1,2\nb,wipe,x,2\n", "'x' of '2' in line 3"),
        ("policy,task,successes,trials\na,wipe,0,0\n", "0 of 0 in line 2"),
        ("policy,task,successes,trials\na,,1,2\n", "in line 2"),
        ("policy,task,successes,trials\na,wipe,1,2\na,wipe,1,2\n", "'a' in 'wipe' again in line 3"),
        ("policy,task,successes,trials\n\n\na,wipe,3,2\n", "3 of 2 in line 4"),
        ("policy,task,successes,trials\na,wipe,1,2,3\n", "expected 4 columns, found 5 in line 2"),
        ("policy,task,successes,trials\na,wipe,1," + 20 * "9" + "\n", "1 of 9+ in line 2"),
        ("policy,task,successes,successes,trials\na,wipe,1,2,3\n", "column successes more than once"),
    ],
)
def test_what_is_wrong_with_counts_is_said_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_counts(_table(tmp_path, text))
    with pytest.raises(DataError, match="no file"):
        read_counts(tmp_path / "absent.csv")


def test_parts_are_kept_by_all_that_decides_them(tmp_path: Path) -> None:
    parts, world, starts, manner = (
        Parts(tmp_path / "parts"),
        place(token_forecaster()),
        small_starts(2),
        Manner(steps=1),
    )
    key = key_of(world, contender(Constant), starts, Bright(), manner)
    assert parts.get(key) is None
    made = play(world, contender(Constant), starts, Bright(), replace(manner, films=1))
    parts.put(key, made)
    kept = parts.get(key)
    assert kept is not None
    assert kept.succeeded is None
    for name in ("chances", "commands", "motion", "films"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(made, name))
    others = [
        key_of(still(), contender(Constant), starts, Bright(), manner),
        key_of(replace(world, given="shuffled"), contender(Constant), starts, Bright(), manner),
        key_of(world, contender(Constant, "other"), starts, Bright(), manner),
        key_of(world, contender(Constant), starts.rows(0, 1), Bright(), manner),
        key_of(world, contender(Constant), starts, Bright(), replace(manner, seed=1)),
        key_of(world, contender(Constant), starts, Bright(), manner, content_of(np.ones(3))),
    ]
    assert len({key, *others}) == 7
    assert key_of(world, contender(Constant), starts, Bright(), replace(manner, limit=99.0)) == key
    (path,) = (tmp_path / "parts").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="Delete it; it will be played again"):
        parts.get(key)


def test_the_entropy_of_tokens_is_a_signal_of_worlds_that_stream_it() -> None:
    manner = Manner(steps=1, signal="token_entropy")
    played = play(place(token_forecaster()), contender(Constant), small_starts(2), Bright(), manner)
    assert played.signal is not None
    assert (played.signal > 0).all()
    assert np.isfinite(played.signal).all()
    with pytest.raises(UsageError, match="certainty"):
        play(still(), contender(Constant), small_starts(2), Bright(), manner)
