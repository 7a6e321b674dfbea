"""Turn a plain config tree into a frozen RunConfig, or into one Problem per unknown key, wrong type or missing key."""

import dataclasses
import difflib
import functools
import json
import typing

from pydantic import TypeAdapter, ValidationError

from r1train.config.schema import RunConfig
from r1train.errors import Problem

MISSING = "???"
EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "dataclass_type": "a mapping of keys to values",
}
UNKNOWN_KEY = "unexpected_keyword_argument"
# Keys of older versions that decided no result; configs that runs have recorded may still hold them.
RETIRED = frozenset({"optim.distributed"})
Path = tuple[str | int, ...]


def build(tree: dict, schema: type = RunConfig) -> tuple[typing.Any, list[Problem]]:
    """(instance of schema, problems). None instead of an instance unless unknown keys are the only problems.

    Types are strict as in JSON: no "3", 3.5 or true for an integer; an integer is fine for a float, a list for a tuple.
    """
    tree = typing.cast(dict, _without_missing(tree))
    adapter = _adapter(schema)
    try:
        return adapter.validate_json(json.dumps(tree), strict=True, extra="forbid"), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    at_path: dict[Path, list[typing.Any]] = {}
    for item in errors:
        path = _path(item["loc"], tree, is_missing=item["type"] == "missing")
        at_path.setdefault(path, []).append(item)
    problems = [_problem(items, path, tree, schema) for path, items in at_path.items()]
    if any(item["type"] != UNKNOWN_KEY for item in errors):
        return None, problems
    return adapter.validate_json(json.dumps(tree), strict=True, extra="ignore"), problems


def build_recorded(tree: dict) -> tuple[typing.Any, list[Problem]]:
    """As build, for what a run of this or an older version left in resolved.yaml: retired keys are no problem there."""
    return build(_without_retired(tree, ()))


def _without_retired(node: dict, path: Path) -> dict:
    """The tree without retired keys, none of which lies below a list."""
    kept = {key: value for key, value in node.items() if dotted((*path, key)) not in RETIRED}
    return {
        key: _without_retired(value, (*path, key)) if isinstance(value, dict) else value for key, value in kept.items()
    }


@functools.cache
def _adapter(schema: type) -> TypeAdapter[typing.Any]:
    """Built once: it takes longer than a validation."""
    return TypeAdapter(schema)


def dotted(path: Path) -> str:
    """("data", "tasks", 0) -> "data.tasks.0"."""
    return ".".join(map(str, path))


def _without_missing(node: object) -> object:
    """The tree without the values that no option stated, so that they are reported as missing."""
    if isinstance(node, dict):
        return {key: _without_missing(value) for key, value in node.items() if value != MISSING}
    if isinstance(node, list):
        return [_without_missing(value) for value in node]
    return node


def _path(loc: tuple, tree: object, *, is_missing: bool) -> Path:
    """pydantic's location without the names of union members, which are not part of the tree."""
    path: list[str | int] = []
    node = tree
    for index, part in enumerate(loc):
        if isinstance(node, dict) and part in node or isinstance(node, list) and isinstance(part, int):
            node = node[part]
            path.append(part)
        elif is_missing and index == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _problem(items: list[typing.Any], path: Path, tree: dict, schema: type) -> Problem:
    """One problem for all errors of one key: a union reports one error per member."""
    item = items[0]
    key, kind = dotted(path), item["type"]
    if kind == "missing":
        return Problem(key, None, "required, but nothing states it", f"give {key}=... or choose an option that has it")
    value = _value_at(tree, path)
    if kind == UNKNOWN_KEY:
        return _unknown_key(path, value, tree, schema)
    if kind == "literal_error":
        return Problem(key, value, "not one of the allowed values", f"write {item['ctx']['expected']}")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_tag(key, value, item["ctx"])
    expected = " or ".join(dict.fromkeys(EXPECTED.get(item["type"], item["msg"]) for item in items))
    return Problem(key, value, f"wrong type: {_type_name(value)} where {expected} belongs", f"write {expected}")


def _unknown_tag(key: str, value: dict, context: dict) -> Problem:
    """A tagged union's member cannot be told: the tag is missing or names none of them."""
    tag = context["discriminator"].strip("'")
    if tag not in value:
        return Problem(f"{key}.{tag}", None, "required, but nothing states it", f"choose an option: {key}=...")
    return Problem(f"{key}.{tag}", value[tag], "not a known kind", f"write one of {context['expected_tags']}")


def _value_at(tree: object, path: Path) -> typing.Any:
    node: typing.Any = tree
    for part in path:
        node = node[part]
    return node


def _type_name(value: object) -> str:
    names = {
        dict: "a mapping",
        list: "a list",
        str: "a string",
        bool: "true/false",
        int: "an integer",
        float: "a number",
    }
    return "null" if value is None else names[type(value)]


def _unknown_key(path: Path, value: object, tree: dict, schema: type) -> Problem:
    known = known_keys(schema, path[:-1], tree)
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    where = dotted(path[:-1]) or "the top level"
    fix = f"write {dotted((*path[:-1], close[0]))}" if close else f"remove it; {where} knows {', '.join(known)}"
    return Problem(dotted(path), value, "unknown key", fix)


def known_keys(schema: type, path: Path, tree: dict) -> list[str]:
    """Field names of the dataclass that the path leads to."""
    kind: typing.Any = schema
    node: typing.Any = tree
    for part in path:
        node = node[part]
        is_record = dataclasses.is_dataclass(kind)
        kind = typing.get_type_hints(kind)[str(part)] if is_record else typing.get_args(kind)[0]
        kind = _member(kind, node)
    return [field.name for field in dataclasses.fields(kind)]


def _member(kind: typing.Any, node: typing.Any) -> typing.Any:
    """The dataclass within `X | None`, or the tagged union's member that the node's tag names; else the kind itself."""
    classes = [member for member in typing.get_args(kind) if dataclasses.is_dataclass(member)]
    if not classes or typing.get_origin(kind) is tuple:
        return kind
    return next((member for member in classes if _tag(member) in node.items()), classes[0])


def _tag(member: typing.Any) -> tuple[str, str] | None:
    """(field, value) that marks a member of a tagged union: its first field, where that has one allowed value."""
    name, kind = next(iter(typing.get_type_hints(member).items()))
    values = typing.get_args(kind)
    return (name, values[0]) if typing.get_origin(kind) is typing.Literal and len(values) == 1 else None
