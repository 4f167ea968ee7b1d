"""The table of excluded tests is consistent in itself. (Whether it fits CPython's suite: `run.py
--strict-excluded`.)
"""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def table():
    # By path: the harness is a folder of scripts, to run where nothing but unwait is installed.
    spec = importlib.util.spec_from_file_location("conformance_table", Path(__file__).with_name("table.py"))
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "conformance_table", module)
        spec.loader.exec_module(module)
        yield module


def test_every_row_names_a_module_its_tests_and_a_reason(table):
    for row in table.load():
        assert row.module.startswith("test_")
        assert row.tests
        assert len(row.reason.split()) >= 5, f"{row.module}: not a reason: {row.reason!r}"
        assert row.reason.endswith(".")


def test_every_pattern_is_a_class_and_a_test_or_a_whole_module(table):
    patterns = [pattern for row in table.load() for pattern in row.tests]
    assert [pattern for pattern in patterns if pattern != "*" and pattern.count(".") != 1] == []


def test_no_test_is_excluded_twice_on_one_python(table):
    for version in [(3, minor) for minor in range(11, 16)]:
        rows = [row for row in table.load() if row.applies_to(version)]
        names = [(row.module, pattern) for row in rows for pattern in row.tests]
        twice = [
            name
            for name in names
            if sum(row.module == name[0] and bool(row.pattern_of(".".join(name))) for row in rows) > 1
        ]
        assert twice == []
        assert len(names) == len(set(names))


def test_versions_bound_a_row_inclusively(table):
    row = table.Row("test_x", ("C.test_y",), "why", since=(3, 12), until=(3, 13))
    assert [row.applies_to((3, minor)) for minor in (11, 12, 13, 14)] == [False, True, True, False]


def test_reason_and_unmatched(table):
    rows = [table.Row("test_x", ("C.test_a*", "C.test_z"), "why"), table.Row("test_y", ("*",), "all")]
    assert table.reason(rows, "test_x.C.test_abc") == "why"
    assert table.reason(rows, "test_x.D.test_abc") is None
    assert table.reason(rows, "test_y.D.test_abc") == "all"
    assert table.unmatched(rows, ["test_x.C.test_abc", "test_y.D.test_abc"]) == ["test_x.C.test_z"]


def test_a_row_with_an_unknown_field_is_refused(table, tmp_path):
    path = tmp_path / "excluded.toml"
    path.write_text('[[excluded]]\nmodule = "test_x"\ntests = ["*"]\nreason = "why"\nuntill = "3.13"\n')
    with pytest.raises(TypeError):
        table.load(path)
