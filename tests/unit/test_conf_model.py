"""`app.conf` against a plain model: five dicts, the stronger over the weaker."""

from __future__ import annotations

import os

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from localq.config import Settings
from localq.settings import SETTINGS

VALUES = {
    "task_default_queue": st.sampled_from(["a", "b", "c"]), "worker_concurrency": st.integers(1, 9),
    "task_always_eager": st.booleans(), "result_expires": st.integers(0, 9), "imports": st.lists(st.just("m")),
    "broker_heartbeat": st.integers(0, 9), "email_host": st.sampled_from(["x", "y"]),
}  # fmt: skip
KNOWN = sorted(set(VALUES) & set(SETTINGS))
some = st.fixed_dictionaries({}, optional=VALUES)
variables = st.fixed_dictionaries({}, optional={
    "task_default_queue": st.sampled_from(["a", "b"]), "worker_concurrency": st.integers(1, 9),
    "task_always_eager": st.booleans(), "broker_heartbeat": st.integers(0, 9),
})  # fmt: skip


class Model(RuleBasedStateMachine):
    """Whatever is done to settings, they are what the layers say, and every change is heard of."""

    @initialize(environment=variables, given=some)
    def start(self, environment, given):
        self.set = {f"LOCALQ_{name.upper()}": str(value) for name, value in environment.items()}
        os.environ.update(self.set)
        self.conf = Settings(given)
        self.default = {name: SETTINGS[name].default for name in KNOWN}
        self.environment, self.source, self.added, self.changes = environment, {}, {}, dict(given)
        self.heard = 0
        self.conf.on_change(self.hear)
        self.is_read = False

    def hear(self):
        self.heard += 1

    def teardown(self):
        for name in getattr(self, "set", ()):
            del os.environ[name]

    def expected(self):
        return {**self.default, **self.environment, **self.source, **self.added, **self.changes}

    def heard_of(self, act):
        before = self.heard
        act()
        assert self.heard == before + self.is_read

    @rule(values=some)
    def update(self, values):
        self.heard_of(lambda: self.conf.update(values))
        self.changes.update(values)

    @rule(values=some)
    def update_by_old_names(self, values):
        self.heard_of(lambda: self.conf.update({SETTINGS[n].old if n in SETTINGS else n: v for n, v in values.items()}))
        self.changes.update(values)

    @rule(values=some)
    def set_one_by_one(self, values):
        for name, value in values.items():
            setattr(self.conf, name, value)
        self.changes.update(values)

    @rule(name=st.sampled_from(sorted(VALUES)), data=st.data())
    def setdefault(self, name, data):
        value = data.draw(VALUES[name])
        given = {**self.environment, **self.source, **self.added, **self.changes}
        if name not in given:
            self.changes[name] = value
        assert self.conf.setdefault(name, value) == given.get(name, value)
        self.is_read = True

    @rule(name=st.sampled_from(sorted(VALUES)))
    def take_back(self, name):
        if name in self.changes:
            del self.conf[name]
            del self.changes[name]

    @rule(values=some, force=st.booleans(), is_old=st.booleans())
    def read_from(self, values, force, is_old):
        named = {SETTINGS[n].old if is_old and n in SETTINGS else n: v for n, v in values.items()}
        was_read = self.conf.read_from(named, force=force) is not None
        assert was_read == (force or self.is_read)
        self.source, self.is_read = dict(values), was_read

    @rule(values=some, is_late=st.booleans())
    def add_defaults(self, values, is_late):
        self.conf.add_defaults((lambda: values) if is_late else values)
        if is_late and not self.is_read:
            assert self.conf["task_default_queue"]  # read, so that promises are kept in the order they were made
            self.is_read = True
        self.added.update(values)

    @rule()
    def go_on_with_a_copy(self):
        self.conf = self.conf.copy()
        self.conf.on_change(self.hear)
        self.is_read = True

    @invariant()
    def is_what_the_layers_say(self):
        if not hasattr(self, "conf") or not self.is_read:
            return
        expected = self.expected()
        assert {name: self.conf[name] for name in expected} == expected
        assert ("email_host" in self.conf) == ("email_host" in expected)
        given = {**self.environment, **self.source, **self.added, **self.changes}
        assert self.conf.without_defaults() == given
        assert [name for name in VALUES if self.conf.value_set_for(name)] == [name for name in VALUES if name in given]
        for name in KNOWN:
            old = SETTINGS[name].old
            assert self.conf[old] == getattr(self.conf, old) == getattr(self.conf, name) == expected[name]

    @rule()
    def look(self):
        assert self.conf.task_default_queue == self.expected()["task_default_queue"]
        self.is_read = True


TestSettingsAgainstAModel = Model.TestCase
