"""Parameters of a node, stated once: a frozen dataclass whose fields carry type, default, unit, range and reason.

The same class is built in tests without ROS, declared as ROS parameters with ranges by `declare`, and printed as the
tables of docs/ros_parameters.md by `table`. To be read, options need the standard library alone (see `scenarios.py`).
"""

from __future__ import annotations

import array
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

Settings = TypeVar("Settings")
NUMBERS = (int, float)


def parameter(
    default: Any,
    why: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A dataclass field that is a parameter. `why` is its reason and its documentation; a list default is copied."""
    metadata = {"why": why, "unit": unit, "low": low, "high": high, "choices": tuple(choices or ())}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(field: dataclasses.Field) -> Any:
    """What the parameter is where nobody sets it."""
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default  # type: ignore[misc]


def build(settings: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """The settings with these values, each checked; `where` names their source in the error."""
    from d2ppo_core.errors import UserError

    fields = {field.name: field for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"{where}: there is no parameter {', '.join(unknown)}; known are {', '.join(fields)}")
    hints = get_type_hints(settings)
    good = {name: checked(fields[name], hints[name], value, where) for name, value in values.items()}
    return settings(**good)


def checked(field: dataclasses.Field, kind: Any, value: Any, where: str) -> Any:
    """One value of the right type, finite and inside its range; an int is taken where a float is meant."""
    from d2ppo_core.errors import UserError

    about, name = field.metadata, f"{where}: {field.name}"
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    plain = kind if isinstance(kind, type) else getattr(kind, "__origin__", object)
    if plain is list and isinstance(value, (tuple, array.array)):  # ROS hands numbers over as arrays
        value = list(value)
    if not isinstance(value, plain) or (plain in NUMBERS and isinstance(value, bool)):
        raise UserError(f"{name} is {value!r}, which is no {plain.__name__} ({about['why']})")
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{name} is {number}, which is no finite number ({about['why']})")
        if isinstance(number, NUMBERS) and not _inside(number, about):
            raise UserError(f"{name} is {number}{_unit(about)}; it must be {_range(about)} ({about['why']})")
    if about["choices"] and value not in about["choices"]:
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(map(str, about['choices']))} ({about['why']})")
    return value


def _inside(number: float, about: Mapping[str, Any]) -> bool:
    low, high = about["low"], about["high"]
    return (low is None or number >= low) and (high is None or number <= high)


def _unit(about: Mapping[str, Any]) -> str:
    return f" {about['unit']}" if about["unit"] else ""


def _range(about: Mapping[str, Any]) -> str:
    low, high, unit = about["low"], about["high"], _unit(about)
    if low is not None and high is not None:
        return f"from {low} to {high}{unit}"
    return f"at least {low}{unit}" if low is not None else f"at most {high}{unit}"


def _bounds(about: Mapping[str, Any], most: float) -> tuple[float, float]:
    low, high = about["low"], about["high"]
    return -most if low is None else float(low), most if high is None else float(high)


def table(settings: type) -> list[tuple[str, str, str, str]]:
    """(name, default with unit, range, reason) of each parameter."""
    rows = []
    for field in dataclasses.fields(settings):
        about = field.metadata
        limits = _range(about) if about["low"] is not None or about["high"] is not None else ""
        allowed = " | ".join(map(str, about["choices"])) or limits
        rows.append((field.name, f"{default_of(field)!r}{_unit(about)}", allowed, about["why"]))
    return rows


def merged(settings: Settings, values: Mapping[str, Any], where: str) -> Settings:
    """The settings with some values changed, each checked."""
    known = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return build(type(settings), known | dict(values), where)


def declare(node: Any, settings: type[Settings], changeable: bool = False) -> Settings:
    """Declare each field as a ROS parameter (described, with its range) and build the settings of them.

    Unless `changeable`, parameters are read once: nothing of a running robot changes under its feet.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    from d2ppo_core.errors import UserError

    values = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        if node.has_parameter(field.name):  # declared before, to choose the settings
            values[field.name] = node.get_parameter(field.name).value
            continue
        about, default = field.metadata, default_of(field)
        descriptor = ParameterDescriptor(
            description=about["why"] + (f" [{about['unit']}]" if about["unit"] else ""),
            additional_constraints=" | ".join(map(str, about["choices"])),
            read_only=not changeable,
            dynamic_typing=True,
        )
        if isinstance(default, float):
            low, high = _bounds(about, 1e300)
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
        elif isinstance(default, int) and not isinstance(default, bool):
            low, high = map(int, _bounds(about, 2**62))
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=0)]
        try:
            values[field.name] = node.declare_parameter(field.name, default, descriptor).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise UserError(f"{node.get_name()}: {field.name}: {error}") from error
    return build(settings, {name: value for name, value in values.items() if value is not None}, node.get_name())
