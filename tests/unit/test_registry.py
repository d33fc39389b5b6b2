"""Names for things that can be plugged in."""

from __future__ import annotations

import sys

import pytest

from localq.exceptions import ImproperlyConfigured
from localq.registry import Registry, nearest, symbol


def test_a_thing_is_found_by_its_name_and_its_aliases():
    known = Registry("pool", "localq.test")
    known.register("prefork", 1, "processes", "fork")
    assert [known.get(name) for name in ("prefork", "processes", "fork")] == [1, 1, 1]


def test_the_later_registration_wins():
    known = Registry("pool", "localq.test")
    known.register("solo", 1)
    known.register("solo", 2)
    assert known.get("solo") == 2


def test_a_place_is_imported_at_the_first_use_and_not_before(tmp_path, monkeypatch):
    (tmp_path / "lazy_thing_of_the_test.py").write_text("thing = object()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    known = Registry("pool", "localq.test")
    known.place("lazy", "lazy_thing_of_the_test:thing")
    assert "lazy_thing_of_the_test" not in sys.modules
    assert known.names() == ["lazy"]
    assert known.get("lazy") is known.get("lazy")
    assert "lazy_thing_of_the_test" in sys.modules


def test_an_installed_package_adds_things_by_an_entry_point(tmp_path, monkeypatch):
    info = tmp_path / "plug_of_the_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-of-the-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[localq.test_things]\nadded = json:dumps\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import json

    assert Registry("thing", "localq.test_things").get("added") is json.dumps


def test_an_unknown_name_is_an_error_that_names_the_nearest():
    known = Registry("pool", "localq.test", ImproperlyConfigured)
    known.register("prefork", 1)
    with pytest.raises(ImproperlyConfigured, match=r"no pool is named 'prefrok'; did you mean 'prefork'\?"):
        known.get("prefrok")


def test_an_unknown_name_far_from_all_has_no_suggestion():
    assert nearest("zzz", ["prefork", "solo"]) == ""


def test_a_symbol_is_named_with_a_colon_or_with_dots():
    import os.path

    assert symbol("os.path:join") is symbol("os.path.join") is os.path.join
