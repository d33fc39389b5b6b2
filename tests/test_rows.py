"""Every row of Celery's behaviour that an issue promised is shown by a test, or said to differ on purpose."""

from __future__ import annotations

import re
from functools import cache

import pytest
import rows


@pytest.fixture(scope="module")
def found():
    return cache(rows.marked)()


def test_every_row_of_a_finished_issue_is_shown_or_differs(found):
    missing = [row for row in rows.required() if row not in found and row not in rows.listed()["differs"]]
    titles = rows.titles()
    assert not missing, "no test is marked with\n" + "\n".join(f"  {row}  {titles[row]}" for row in missing)


def test_a_mark_names_a_row(found):
    assert {row: tests[0] for row, tests in found.items() if not re.fullmatch(r"[FNPRX]\d{1,3}", row)} == {}


def test_a_row_that_differs_is_one_of_the_list_and_has_its_reason():
    for row, reason in rows.listed()["differs"].items():
        assert row in rows.titles()
        assert len(reason.split()) > 3


def test_no_row_belongs_to_two_issues():
    issues = rows.listed()["issue"].values()
    assert sum(map(len, issues)) == len(rows.titles())


def test_the_table_has_each_row_and_its_tests(found):
    marked = [
        "tests/x/test_x.py::test_y[one]",
        "tests/x/test_x.py::test_y[two]",
        "a/test_parity.py::test_z[app-what_it_is]",
    ]
    lines = rows.table({**found, "F001": marked}).splitlines()
    assert len(lines) == 2 + len(rows.titles())
    assert f"| F001 | {rows.titles()['F001']} | parity/programs/app.py::what_it_is<br>x/test_x.py::test_y |" in lines


def test_what_is_collected_is_what_is_marked(tmp_path):
    (tmp_path / "test_two.py").write_text(
        "import pytest\n@pytest.mark.row('F001', 'N29')\n@pytest.mark.crash\ndef test_a(): pass\ndef test_b(): pass\n"
    )
    found = rows.marked(str(tmp_path))
    assert {row: [test.rpartition("::")[2] for test in tests] for row, tests in found.items()} == {
        "F001": ["test_a"], "N29": ["test_a"]
    }  # fmt: skip
