"""The sessions of localq's developers: `nox` runs the usual ones, `nox -s crash` one of the long ones."""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.5"
nox.options.sessions = ["tests", "lint", "types", "examples"]
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.11", "3.12", "3.13"]
GROUPS = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    """Install this project, and groups of pyproject.toml."""
    session.install("-e", ".", *nox.project.dependency_groups(GROUPS, *groups))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the default tests; arguments go to pytest."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*nox.project.dependency_groups(GROUPS, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types; localq.testing needs pytest's."""
    install(session, "types", "test")
    session.run("mypy", *session.posargs)


@nox.session
def crash(session: nox.Session) -> None:
    """Kill processes by the hundred, and look at what they leave behind."""
    install(session, "test")
    session.run("pytest", "-n", "0", "-m", "crash", "--timeout=1800", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Put load on it for minutes."""
    install(session, "test")
    session.run("pytest", "-n", "0", "-m", "soak", "--timeout=3600", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run the examples, and the tests of what they print."""
    install(session, "test")
    session.run("python", "examples/quickstart/run.py")
    session.run("python", "examples/duplicates/main.py")
    session.run("python", "examples/fetching/run.py")
    session.run("pytest", "tests/examples", "tests/test_readme.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against other queues; arguments go to the runner (`nox -s bench -- --quick`)."""
    session.install("-e", ".", "-r", "benchmarks/requirements.txt")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """Compare what Celery was recorded to answer with a live Celery; needs the system's redis-server."""
    install(session, "test")
    session.install("celery[redis]==5.7.*")
    session.run("pytest", "-n", "0", "-m", "parity", "tests/parity", *session.posargs)
