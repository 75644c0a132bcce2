"""A training configuration read from TOML."""

from __future__ import annotations

import difflib
import tomllib
import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from snrecon.errors import InputError
from snrecon.training.config import Config
from snrecon.training.config_check import check


def load_config(path: str | Path) -> Config:
    """Read a configuration file.

    Raises:
        InputError: if the file cannot be read, is not TOML, has an unknown or ill-typed key, or a
            value that makes no sense.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise InputError(f"{path}: the configuration cannot be read: {reason}.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: this is not valid TOML: {error}.") from error
    network = table.get("network")
    if isinstance(network, dict):
        rest = {key: value for key, value in network.items() if key != "name"}
        table["network"] = {**{k: v for k, v in network.items() if k == "name"}, "settings": rest}
    config: Config = _build(Config, table, str(path), "")
    check(config, str(path))
    return config


def _build(kind: Any, table: Any, name: str, prefix: str) -> Any:
    """An instance of the dataclass ``kind`` from a TOML table."""
    if not isinstance(table, dict):
        raise InputError(f"{name}: {prefix.rstrip('.')} must be a table, not {table!r}.")
    known = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    values = {}
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
            hint = f" did you mean {prefix}{close[0]}?" if close else ""
            raise InputError(f"{name}: there is no setting {prefix}{key};{hint}")
        values[key] = _convert(hints[key], value, name, f"{prefix}{key}")
    for key, item in known.items():
        required = item.default is MISSING and item.default_factory is MISSING
        if required and key not in values:
            raise InputError(f"{name}: the setting {prefix}{key} is missing.")
    return kind(**values)


def _convert(kind: Any, value: Any, name: str, key: str) -> Any:
    """``value`` as the annotated type, whole numbers counting as floats."""
    if is_dataclass(kind):
        return _build(kind, value, name, f"{key}.")
    if get_origin(kind) is list and isinstance(value, list):
        (inner,) = get_args(kind)
        return [_convert(inner, one, name, key) for one in value]
    if get_origin(kind) is dict and isinstance(value, dict):
        inner = get_args(kind)[1]
        # The arguments of a network stand beside its name in the file.
        table = "network" if key == "network.settings" else key
        return {k: _convert(inner, one, name, f"{table}.{k}") for k, one in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = isinstance(kind, type) and not isinstance(kind, types.GenericAlias)
    if plain and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    wanted = getattr(kind, "__name__", str(kind))
    names = {"str": "text", "float": "a number", "int": "a whole number", "list": "a list",
             "dict": "a table"}
    raise InputError(f"{name}: {key} must be {names.get(wanted, wanted)}, not {value!r}.")
