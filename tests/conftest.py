"""Before any test loads PyTorch: one thread in each process, since pytest starts as many processes as there are cores.

Processes that tests start inherit it, and keep compiled modules: without, each takes most of a second to compile the
package again. `import worldline` then chooses how threads wait.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest

import worldline  # noqa: F401


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Evaluations without the conditions that the audit alone shows, which take longer than all rows of the table;
    their labels, by id. What they say of a built-in world is compared in test_figures.py."""
    from worldline.evaluation.result import label_of
    from worldline.evaluation.rows import CONDITIONS, ROWS

    labels = {id: label_of(id) for id in CONDITIONS if ROWS[id].study is not None}
    for id in labels:
        monkeypatch.delitem(ROWS, id)
    return labels


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo first: it takes longest of all slow tests, and as the last one it would run alone."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/test_demo.py"))
