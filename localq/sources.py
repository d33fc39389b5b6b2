"""Where settings come from: objects, modules, TOML files, the environment, the command line; and by which names.

Each reader turns one of them into a plain dict under today's names; `checked` says what is wrong with it. Keeps
nothing, and does not know which of two sources is the stronger: `config` does.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from localq.exceptions import ConfigNotFound, ImproperlyConfigured
from localq.registry import nearest
from localq.settings import ANY, NAMES, OLD_NAMES, OURS, SETTINGS, Setting, fault_of

logger = logging.getLogger("localq.config")

#: What a configuration module also contains, and what is no setting.
NO_SETTINGS = (ModuleType, type, FunctionType, BuiltinFunctionType, MethodType)

#: What a path may lead to by mistake.
NO_SOURCE = (str, bytes, int, float, type(None), FunctionType, BuiltinFunctionType, MethodType)


class Source(NamedTuple):
    """Something to read settings from.

    Attributes:
        given: an object, class, mapping, module, `module`, `module:attribute`, or the path of a TOML file.
        namespace: the beginning of the names that are settings (`CELERY`); empty if all are.
        base: the directory that the path of a file is relative to.
        silent: it need not exist.
        told_by: the variable that named it.
    """

    given: Any
    namespace: str = ""
    base: str | None = None
    silent: bool = False
    told_by: str = ""

    def __str__(self) -> str:
        known = self.given if isinstance(self.given, str | os.PathLike) else getattr(self.given, "__name__", None)
        what = str(known) if known else f"a {type(self.given).__name__}"
        return f"{what} (named by {self.told_by})" if self.told_by else what

    @property
    def is_code(self) -> bool:
        """Whether it is a module or a class, where not every name need be a setting."""
        is_file = isinstance(self.given, os.PathLike) or str(self.given).endswith(".toml")
        return not is_file and not isinstance(self.given, Mapping)

    def read(self) -> dict[str, Any]:
        """Return its settings under today's names, checked.

        Raises:
            ConfigNotFound: there is no such module, attribute or file.
            ImproperlyConfigured: every fault that was found, in one message.
        """
        try:
            found = self._find()
            return checked(_renamed(_values(found, self.namespace), self.namespace, self), self)
        except ConfigNotFound:
            if self.silent:
                return {}
            raise
        except Exception as exc:
            exc.add_note(f"while reading settings from {self}")
            raise

    def _find(self) -> Any:
        if isinstance(self.given, os.PathLike) or (isinstance(self.given, str) and self.given.endswith(".toml")):
            return _toml(Path(self.base or ".", self.given).absolute())
        return _imported(self.given) if isinstance(self.given, str) else self.given


def environment_source(namespace: str = "") -> Source | None:
    """Return the source that the environment names, or None.

    Raises:
        ImproperlyConfigured: it names two.
    """
    module, file = os.environ.get("LOCALQ_CONFIG_MODULE"), os.environ.get("LOCALQ_CONFIG_FILE")
    if module and file:
        raise ImproperlyConfigured(
            f"LOCALQ_CONFIG_MODULE={module} and LOCALQ_CONFIG_FILE={file} are both set: unset one of them"
        )
    if file:
        return Source(Path(file), namespace, os.getcwd(), told_by="LOCALQ_CONFIG_FILE")
    variable = "LOCALQ_CONFIG_MODULE" if module else "CELERY_CONFIG_MODULE"
    name = os.environ.get(variable)
    return Source(name, namespace, told_by=variable) if name else None


# -- Reading ----------------------------------------------------------------------------------------


def _imported(path: str) -> Any:
    """Return the object that `module`, `module:attribute` or `module.attribute` names."""
    module, colon, attribute = path.partition(":")
    found = _module(module)
    if found is None and not colon and "." in path:
        module, _, attribute = path.rpartition(".")
        found = _module(module)
    if found is None:
        hint = f"; give the module's name: {path[:-3]!r}" if path.endswith(".py") else ""
        raise ConfigNotFound(f"settings cannot be read from {path!r}: there is no module {module!r}{hint}")
    for part in filter(None, attribute.split(".")):
        if not hasattr(found, part):
            raise ConfigNotFound(f"settings cannot be read from {path!r}: {module} has no attribute {part!r}")
        found = getattr(found, part)
    return found


def _module(name: str) -> ModuleType | None:
    """Import a module, from the current directory too; None if there is none. Its own errors are the user's."""
    here = os.getcwd()
    is_new = here not in sys.path
    if is_new:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            return None
        raise
    finally:
        if is_new and here in sys.path:
            sys.path.remove(here)


def _toml(file: Path) -> Any:
    """Return a file's table: `[localq]`, in a pyproject.toml `[tool.localq.settings]`, else the whole."""
    # Imported here: 6 ms, and few projects keep settings in a file.
    import tomllib

    try:
        found = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise ConfigNotFound(f"settings cannot be read from {file}: there is no such file") from exc
    except (OSError, ValueError) as exc:
        raise ImproperlyConfigured(f"settings cannot be read from {file}: {exc}") from exc
    if file.name == "pyproject.toml":
        return found.get("tool", {}).get("localq", {}).get("settings", {})
    return found.get("localq", found)


def _values(found: Any, namespace: str) -> dict[str, Any]:
    """Return what an object holds that may be a setting."""
    if isinstance(found, Mapping):
        return {name: found[name] for name in found if not _is_other(name, namespace)}
    if isinstance(found, NO_SOURCE):
        raise ImproperlyConfigured(f"settings cannot be read from {found!r}: give a module, a class, or a mapping")
    values = {}
    for name in dir(found):
        if name.startswith("_") or name == "TYPE_CHECKING" or _is_other(name, namespace):
            continue
        value = getattr(found, name)
        if known_name(name, namespace) in SETTINGS or not _is_code(value):
            values[name] = value
    return values


def _is_code(value: Any) -> bool:
    return isinstance(value, NO_SETTINGS) or type(value).__module__ in ("typing", "__future__")


def _is_other(name: object, namespace: str) -> bool:
    """Whether a name of a source with a namespace is somebody else's (Django's `DEBUG`)."""
    return (
        bool(namespace)
        and isinstance(name, str)
        and not name.upper().startswith(_beginning(namespace))
        and known_name(name, namespace) not in SETTINGS
    )


# -- Names ------------------------------------------------------------------------------------------


#: Django's word, so that one line in its settings is enough; and our own keyword of `LocalQ`.
_WORDS = {"TIME_ZONE": "timezone", "durability": "store_durability", "DURABILITY": "store_durability"}


def _beginning(namespace: str) -> str:
    return namespace.rstrip("_").upper() + "_"


def known_name(name: str, namespace: str = "") -> str:
    """Return today's name of a setting: of an old one (`CELERYD_POOL`), or one in a namespace; else the name itself."""
    if name in SETTINGS:
        return name
    inner = ""
    if namespace and name.upper().startswith(_beginning(namespace)):
        inner = name[len(_beginning(namespace)) :].lower()
        if inner in SETTINGS:
            return inner
    return _WORDS.get(name) or _WORDS.get(inner) or OLD_NAMES.get(name, name)


def _renamed(values: Mapping[Any, Any], namespace: str, source: Source) -> dict[Any, Any]:
    """Put values under today's names; of two names of one setting the newer wins."""
    if not namespace:
        _refuse_mixture(values, source)
    found: dict[Any, Any] = {}
    for name in sorted(values, key=lambda name: _age(name, namespace), reverse=True):
        now = known_name(name, namespace) if isinstance(name, str) else name
        if namespace and now not in SETTINGS and isinstance(name, str):
            now = name[len(_beginning(namespace)) :].lower()
        found[now] = values[name]
    return found


def _age(name: Any, namespace: str) -> int:
    if name == "TIME_ZONE":
        return 3
    if name in OLD_NAMES and not (namespace and OLD_NAMES[name] != known_name(name, namespace)):
        return 2
    return 1 if name in SETTINGS and namespace else 0


def _refuse_mixture(values: Mapping[Any, Any], source: Source) -> None:
    """Refuse old names beside new ones, as Celery does: such a file is half-way through a change."""
    new = [name for name in values if name in SETTINGS]
    old = [name for name in values if name in OLD_NAMES]
    to_old = len(old) > len(new)
    renames = {name: SETTINGS[name].old for name in new} if to_old else {name: OLD_NAMES[name] for name in old}
    left = sorted(name for name, right in renames.items() if right not in values)
    if new and old and left:
        lines = "\n".join(f"  {name:<36} -> {renames[name]}" for name in left)
        other = "\nor give all of them their new names" if to_old else ""
        raise ImproperlyConfigured(
            f"{source} mixes settings' old names (of before Celery 4) and new ones; rename\n{lines}{other}"
        )


# -- Checking -----------------------------------------------------------------------------------------


def checked(values: Mapping[Any, Any], source: Source | None = None) -> dict[str, Any]:
    """Return values that may be set, a single text made one of several names where names are asked for.

    Raises:
        ImproperlyConfigured: every fault that was found, in one message.
    """
    found = {name: _as_names(name, value) for name, value in values.items()}
    faults = [fault for name, value in found.items() if (fault := _fault(name, value))]
    if faults:
        raise ImproperlyConfigured((f"{source}: " if source else "") + "; ".join(faults))
    private = [repr(name) for name in found if name not in SETTINGS]
    if private:
        what = f"setting {private[0]} is" if len(private) == 1 else f"settings {', '.join(private)} are"
        # A module has variables of its own, and its author need not hear of them in every process.
        level = logging.INFO if source is not None and source.is_code else logging.WARNING
        logger.log(level, "%s not localq's; kept in app.conf%s", what, f" (from {source})" if source else "")
    return found


def _as_names(name: Any, value: Any) -> Any:
    return (value,) if isinstance(value, str) and name in SETTINGS and SETTINGS[name].kinds == NAMES else value


def _fault(name: Any, value: Any) -> str:
    if name in SETTINGS:
        return fault_of(name, value)
    if not isinstance(name, str) or not name or name.startswith("_"):
        return f"no setting is named {name!r}: a name is a text that does not begin with _"
    if name.startswith(OURS):
        return f"no setting is named {name!r}{nearest(name, SETTINGS)}"
    meant = _misspelt(name)
    return f"no setting is named {name!r}; did you mean {meant!r}?" if meant else ""


def _misspelt(name: str) -> str | None:
    """Return the setting whose name is one slip of the finger away. More, and private names would be refused."""
    if not _slipped:
        _slipped.update(
            {slip: word for each in SETTINGS.values() if each.is_ours for word in (each.old, each.name)
             for slip in _slips(word)}
        )  # fmt: skip
        _slipped.update(dict.fromkeys(_slips("durability"), "durability"))
    return next((_slipped[slip] for slip in _slips(name) if slip in _slipped), None)


#: Name less one letter -> name; made when the first unknown name comes.
_slipped: dict[str, str] = {}


def _slips(name: str) -> list[str]:
    """Two names that differ by one letter (more, less, other, or two swapped) have one of these in common."""
    return [name, *(name[:at] + name[at + 1 :] for at in range(len(name)))]


# -- Texts --------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Return the settings that environment variables give: `LOCALQ_<NAME>`, and Celery's two.

    Raises:
        ImproperlyConfigured: every value that cannot be read, with its variable.
    """
    found: dict[str, Any] = {}
    faults = _misspelt_variables()
    for variable, name in _variables().items():
        try:
            found[name] = value = _as_names(name, value_of(SETTINGS[name], os.environ[variable]))
            fault = fault_of(name, value)
        except ValueError as exc:
            fault = f"{name}: {exc} ({SETTINGS[name].doc})"
        if fault:
            faults.append(f"variable {variable}: {fault}")
    if faults:
        raise ImproperlyConfigured("; ".join(faults))
    return found


def _variables() -> dict[str, str]:
    """Return the variables that are set, and what each sets; the stronger of two comes last."""
    set_ones = [name for name, value in os.environ.items() if value]
    found = {"LOCALQ_DURABILITY": "store_durability"} if "LOCALQ_DURABILITY" in set_ones else {}
    if "LOCALQ_STORE" not in set_ones:
        celerys = {"CELERY_BROKER_URL": "broker_url", "CELERY_RESULT_BACKEND": "result_backend"}
        found |= {variable: name for variable, name in celerys.items() if variable in set_ones}
    for variable in set_ones:
        name = variable.removeprefix("LOCALQ_").lower()
        if variable.startswith("LOCALQ_") and name in SETTINGS:
            found[variable] = name
    return found


def _misspelt_variables() -> list[str]:
    """Say of each variable that sets nothing which one was probably meant."""
    faults = []
    for variable, value in os.environ.items():
        name = variable.removeprefix("LOCALQ_").lower()
        if not value or not variable.startswith("LOCALQ_") or name in SETTINGS or name in _VARIABLES:
            continue
        slips = {*_slips(name)}
        meant = next((each for each in _VARIABLES if not slips.isdisjoint(_slips(each))), None) or _misspelt(name)
        if meant is not None:
            hint = f"; did you mean 'LOCALQ_{meant.upper()}'?"
        else:
            hint = nearest(variable, [f"LOCALQ_{each.upper()}" for each in SETTINGS], _ALIKE)
        if hint:
            faults.append(f"variable {variable} sets nothing{hint}")
    return faults


#: How alike variables must be, LOCALQ_ included, for one to be a mistake.
_ALIKE = 0.9
#: Variables that are no settings, some of them flags of the command line; without the LOCALQ_ before them.
_VARIABLES = (
    "app", "config_file", "config_module", "durability", "fault", "store", "worker_exclude_queues", "worker_hostname",
    "worker_loglevel", "worker_no_color", "worker_queues",
)  # fmt: skip


def value_of(setting: Setting, text: str) -> Any:
    """Read a setting's value from a text.

    Raises:
        ValueError: it is none.
    """
    kinds = setting.kinds
    if kinds == ANY and setting.default is not None:
        kinds = (type(setting.default),)
    if text.strip().lower() in ("none", "null") and (setting.default is None or type(None) in kinds):
        return None
    if dict in kinds and (text.lstrip()[:1] in ("{", "[") or str not in kinds):
        return _json(text)
    if kinds[0] in NAMES and str not in kinds:
        return (
            _json(text) if text.lstrip().startswith("[") else [each.strip() for each in text.split(",") if each.strip()]
        )
    for kind in (bool, int, float):
        if kind in kinds and (kind is bool or _is(kind, text)):
            return _truth(text) if kind is bool else kind(text)
    if str in kinds or kinds == ANY:
        return text
    raise ValueError(f"{text!r} is no number")


def _is(kind: Callable[[str], Any], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _truth(text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"expected true or false, got {text!r}")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not JSON: {exc}") from exc


#: What `name=(type)value` may ask for.
_CASTS: dict[str, Callable[[str], Any]] = {
    "string": str, "str": str, "any": str, "int": int, "float": float, "bool": _truth, "json": _json, "list": _json,
    "tuple": _json, "dict": _json,
}  # fmt: skip


def from_words(words: Iterable[str], namespace: str = "") -> dict[str, Any]:
    """Read `worker.concurrency=4`, `task_routes=(json){...}`, `.pool=solo` (in the namespace) from a command line.

    Raises:
        ImproperlyConfigured: a word cannot be read.
    """
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().lower().replace(".", "_")
        if not equals or not name:
            raise ImproperlyConfigured(f"{word!r} sets nothing: write name=value, as worker.concurrency=4")
        if name.startswith("_"):
            # Celery's own default here is `celery`, which is the beginning of no name of today.
            name = name[1:] if namespace.lower() in ("", "celery") else f"{namespace.lower()}_{name[1:]}"
        try:
            found[name] = _cast(name, text)
        except ValueError as exc:
            raise ImproperlyConfigured(f"{name}: {exc}") from exc
    return found


def _cast(name: str, text: str) -> Any:
    cast = re.match(r"\((\w+)\)", text)
    if cast is None:
        return value_of(SETTINGS[name], text) if name in SETTINGS else text
    if cast[1] not in _CASTS:
        raise ValueError(f"no type is named {cast[1]!r}{nearest(cast[1], _CASTS)}")
    return _CASTS[cast[1]](text[cast.end() :])
