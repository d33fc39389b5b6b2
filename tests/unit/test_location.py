"""Where the store is: asked for, from the environment, or beside the code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localq import LocalQ
from localq.exceptions import ImproperlyConfigured
from localq.storage.location import Location, is_foreign, locate, parse


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch):
    monkeypatch.delenv("LOCALQ_STORE", raising=False)


@pytest.fixture
def made_by(tmp_path):
    file = tmp_path / "proj" / "tasks.py"
    file.parent.mkdir()
    file.write_text("")
    return str(file)


def test_without_a_word_it_is_beside_the_file_that_made_the_app(made_by):
    assert locate(None, made_by, "proj") == Location("sqlite", str(Path(made_by).parent / ".localq"))


def test_two_files_in_two_directories_have_two_stores(made_by, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "tasks.py").write_text("")
    assert locate(None, made_by, "proj").path != locate(None, str(other / "tasks.py"), "proj").path


def test_what_the_app_was_told_beats_the_environment(made_by, monkeypatch):
    monkeypatch.setenv("LOCALQ_STORE", "/elsewhere")
    assert locate("here", made_by, "proj").path == str(Path(made_by).parent / "here")
    assert locate(None, made_by, "proj").path == "/elsewhere"


def test_relative_means_to_the_file_that_made_the_app(made_by, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    folder = Path(made_by).parent
    assert locate("jobs", made_by, None).path == str(folder / "jobs")
    assert locate(Path("jobs"), made_by, None).path == str(folder / "jobs")
    assert locate("sqlite:///jobs", made_by, None).path == str(folder / "jobs")


def test_relative_in_the_variable_means_to_the_current_directory(made_by, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCALQ_STORE", "jobs")
    assert locate(None, made_by, None).path == str(tmp_path / "jobs")


@pytest.mark.parametrize(("given_", "expected"), [
    ("sqlite:////abs/store", Location("sqlite", "/abs/store")),
    ("sqlite:///rel/store", Location("sqlite", "/base/rel/store")),
    ("/abs/store", Location("sqlite", "/abs/store")),
    ("rel/store", Location("sqlite", "/base/rel/store")),
    ("diskcache:////abs/store", Location("diskcache", "/abs/store")),
    ("memory:", Location("memory", "")),
    ("memory://", Location("memory", "")),
    ("sqlite:////a%20b", Location("sqlite", "/a b")),
])  # fmt: skip
def test_paths_and_urls_are_read_as_sqlalchemy_reads_them(given_, expected):
    assert parse(given_, Path("/base")) == expected


def test_a_home_directory_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("~/jobs", Path("/base")).path == "/home/me/jobs"


@pytest.mark.parametrize("url", ["sqlite:", "sqlite:jobs", "sqlite://jobs", "diskcache:/jobs"])
def test_a_url_without_a_place_says_how_to_write_one(url):
    with pytest.raises(ImproperlyConfigured, match=r"//relative/path or"):
        parse(url, Path("/base"))


@given(st.text(st.characters(exclude_characters="\0/:~%", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")))  # fmt: skip
def test_any_name_is_a_directory_below_the_base(name):
    assert parse(name, Path("/base")) == Location("sqlite", f"/base/{name}")


@pytest.mark.parametrize("url", [
    "redis://localhost:6379/0", "rediss://x", "amqp://guest@localhost//", "pyamqp://", "rpc://", "sqs://",
    "db+postgresql://x/y", "cache+memcached://x", "mongodb://x", "filesystem://",
])  # fmt: skip
def test_urls_of_brokers_and_backends_are_known_as_foreign(url):
    assert is_foreign(url)


@pytest.mark.parametrize("url", ["sqlite:///x", "memory:", "jobs", "/var/redis", "diskcache:////x", "redis"])
def test_our_own_places_are_not_foreign(url):
    assert not is_foreign(url)


# -- Where nothing can be kept beside the code -----------------------------------------------------


def test_code_that_is_no_file_keeps_its_store_in_the_state_directory_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = locate(None, None, "proj")
    assert Path(found.path).parent == tmp_path / "state" / "localq"
    assert Path(found.path).name.startswith("proj-")
    assert found.path in found.note


def test_installed_code_keeps_its_store_in_the_state_directory(tmp_path, monkeypatch):
    import click as installed

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = locate(None, installed.__file__, "proj")
    assert Path(found.path).is_relative_to(tmp_path / "state")


def test_a_zip_keeps_its_store_in_the_state_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = locate(None, str(tmp_path / "app.zip" / "tasks.py"), "proj")
    assert Path(found.path).is_relative_to(tmp_path / "state")


def test_two_origins_have_two_stores_and_one_origin_has_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, again, other = (locate(None, f"/zip.zip/{name}.py", "proj").path for name in ("a", "a", "b"))
    assert one == again != other


# -- As the app says it ----------------------------------------------------------------------------


def test_making_an_app_touches_no_disk(tmp_path):
    app = LocalQ("proj", store=tmp_path / "store", set_as_current=False)
    assert app.backend.url == f"sqlite:///{tmp_path}/store"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["broker", "backend", "broker_url", "result_backend"])
def test_celerys_keywords_may_name_the_store(word, tmp_path):
    app = LocalQ("proj", set_as_current=False, **{word: f"sqlite:///{tmp_path}/store"})
    assert app.backend.location.path == f"{tmp_path}/store"


@pytest.mark.parametrize("word", ["broker", "backend", "broker_url", "result_backend"])
def test_a_foreign_broker_in_code_is_ignored_with_one_warning_that_hides_its_password(word, tmp_path, caplog):
    app = LocalQ("proj", store=tmp_path / "store", set_as_current=False, **{word: "redis://me:secret@host/0"})
    assert app.backend.location.path == str(tmp_path / "store")
    assert app.backend.location.path == str(tmp_path / "store")
    warnings = [r for r in caplog.records if r.levelname == "WARNING" and "is ignored" in r.getMessage()]
    assert len(warnings) == 1
    assert str(tmp_path / "store") in caplog.text
    assert "secret" not in caplog.text


def test_a_foreign_broker_on_the_command_line_is_an_error(tmp_path):
    app = LocalQ("proj", store=tmp_path / "store", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match="no broker"):
        app.backend.use("redis://host/0")


def test_the_file_that_made_the_app_is_the_users_not_ours():
    class Mine(LocalQ):
        pass

    assert Mine("proj", store="memory:", set_as_current=False).made_by == __file__
    assert LocalQ("proj", store="memory:", set_as_current=False).made_by == __file__


def test_an_app_made_by_no_file_says_so():
    scope: dict[str, object] = {}
    exec("from localq import LocalQ\napp = LocalQ('x', store='memory:', set_as_current=False)", scope)
    assert scope["app"].made_by is None


if sys.platform != "linux":
    pytest.skip("paths of Linux", allow_module_level=True)
