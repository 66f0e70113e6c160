"""Config files: YAML plus `key=value` overrides to a checked `Config`, and back."""

import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from detection3d.config import Config
from detection3d.errors import UserError

SHIPPED = Path(__file__).parent / "configs"  # in an installed wheel
CHECKOUT = Path(__file__).parent.parent / "configs"

# Two ways to say how long a training is: an override of the one takes the place of the other.
_ALTERNATIVES = {"training.steps": "epochs", "training.epochs": "steps"}


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply overrides and check everything.

    Args:
        path: a YAML file, or the name of a shipped config such as "tiny".
        overrides: settings such as "training.steps=100"; the value is YAML.

    Raises:
        UserError: the file is missing or isn't YAML, a key occurs twice or is unknown (the nearest known one is named),
            or a value has the wrong type or is out of its range.
    """
    source = find_config(path)
    try:
        tree = _read_yaml(source.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{source}: a config file holds sections such as 'model:' and 'training:'; found {tree!r}")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(source), [override.partition("=")[0] for override in overrides])


def parse_config(tree: Mapping[str, Any], source: str, overridden: Sequence[str] = ()) -> Config:
    """Check a tree of plain values.

    Args:
        tree: of a config.
        source: its name in errors.
        overridden: keys whose values do not stand in the source, which errors say.

    Raises:
        UserError: as `load_config`.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        reasons = _explain_all([dict(item) for item in error.errors()], tree, overridden)
        settings = "1 setting" if len(reasons) == 1 else f"{len(reasons)} settings"
        raise UserError("\n".join([f"{source}: {settings} can't be used:", *reasons])) from error


def dump_config(config: Config) -> str:
    """Return the complete config, defaults included, as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


def find_config(path: Path | str) -> Path:
    """Return the file that `path` means: itself, or a shipped config of that name.

    Raises:
        UserError: there is no such file; the shipped names are listed.
    """
    candidates = [Path(path)]
    candidates += [folder / f"{path}{suffix}" for folder in (SHIPPED, CHECKOUT) for suffix in ("", ".yaml")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = sorted({file.stem for folder in (SHIPPED, CHECKOUT) for file in folder.glob("*.yaml")})
    raise UserError(f"{path}: no such config file; shipped configs: {', '.join(names)}")


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice in a section: yaml by itself keeps the last one and forgets the others."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    reason = f"the key {key.value!r} occurs twice; give it once"
                    raise yaml.constructor.ConstructorError(None, None, reason, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r}: write key=value, such as training.steps=100")
    try:
        value = _read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not YAML: {error}") from error
    *parents, last = key.split(".")
    node: Any = tree
    for name in parents:
        node = _child(node, name, key)
    node[_place(node, last, key)] = value
    if isinstance(node, dict) and key in _ALTERNATIVES and value != 0:  # 0 is "not by this one"
        node.pop(_ALTERNATIVES[key], None)


def _child(node: Any, name: str, key: str) -> Any:
    place = _place(node, name, key)
    child = node[place] if isinstance(node, list) else node.get(place)
    if not isinstance(child, dict | list):  # "method: graddrop" becomes a section when a part of it is set
        child = node[place] = {"kind": child} if isinstance(child, str) else {}
    return child


def _place(node: Any, name: str, key: str) -> Any:
    return _index(node, name, key) if isinstance(node, list) else name


def _index(node: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise UserError(f"override {key!r}: {name!r} is not an index of a list of {len(node)}")
    return int(name)


def _explain_all(items: Sequence[dict[str, Any]], tree: Mapping[str, Any], overridden: Sequence[str]) -> list[str]:
    paths = [_user_path(item, tree) for item in items]
    lines = []
    for item, path in zip(items, paths, strict=True):
        # pydantic counts an entry that it could not use as missing from the list
        follows = item["type"] == "too_short" and any(other[: len(path)] == path != other for other in paths)
        if not follows:
            name = ".".join(path)
            here = any(name == key or name.startswith(f"{key}.") for key in overridden)
            lines.append(f"  {_explain(item, path)}{'; given by an override, not in the file' if here else ''}")
    return lines


def _user_path(item: dict[str, Any], tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Return where the setting stands in the file: pydantic's location without the members of unions that it names."""
    path = []
    node: Any = tree
    for part in item["loc"]:
        keys = node if isinstance(node, Mapping) else range(len(node)) if isinstance(node, list) else ()
        if part in keys:
            node = node[part]
        elif not (item["type"] == "missing" and part == item["loc"][-1]):
            continue
        path.append(str(part))
    return tuple(path)


def _explain(item: dict[str, Any], path: tuple[str, ...]) -> str:
    location = [str(part) for part in item["loc"]]
    name = ".".join(path)
    match item["type"]:
        case "extra_forbidden":
            known = _known_keys(Config, location[:-1])
            if (whole := _other_kind(location, path)) is not None:
                return f"{name}: unknown key; known: {', '.join(known)}; {whole}"
            near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
            advice = f"did you mean {'.'.join([*path[:-1], near[0]])!r}?" if near else f"known: {', '.join(known)}"
            return f"{name}: unknown key; {advice}"
        case "missing" if path[-1].isdigit():
            return f"{name}: missing; the list is too short"
        case "missing":
            return f"{name}: missing; it has no default"
        case "model_type":
            return f"{name}: a section with keys {', '.join(_known_keys(Config, location))}; found {item['input']!r}"
        case "union_tag_invalid":
            return f"{name}: unknown kind {item['ctx']['tag']!r}; known: {item['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return f"{name}.kind: missing; it has no default"
        case _:
            found = "" if isinstance(item["input"], dict) else f" (found {item['input']!r})"
            # Checks across sections name the setting themselves.
            return f"{f'{name}: ' if path else ''}{item['msg'].removeprefix('Value error, ')}{found}"


def _other_kind(location: Sequence[str], path: Sequence[str]) -> str | None:
    """Say what to do about a key that another kind of the same section has; None where none has it.

    Args:
        location: pydantic's, in which the kind follows the section's name.
        path: as the user wrote it.
    """
    kind, section = location[-2] if len(location) > 2 else "", location[:-2]
    if len(path) < 2 or kind == path[-2] or path[-1] not in _known_keys(Config, section):
        return None
    return f"it is of another kind; to change the kind replace the whole: '{'.'.join(path[:-1])}={{kind: {kind}, ...}}'"


def _known_keys(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Return the keys of the section at `location`; steps that name a list index or a union member are passed over."""
    current: list[type[BaseModel]] = [model]
    for name in location:
        below = [
            inner
            for section in current
            if name in section.model_fields
            for inner in _sections(section.model_fields[name].annotation)
        ]
        current = below or [section for section in current if _kind(section) == name] or current
    return sorted({key for section in current for key in section.model_fields})


def _kind(section: type[BaseModel]) -> Any:
    return section.model_fields["kind"].default if "kind" in section.model_fields else None


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, tuple, list) or hasattr(annotation, "__metadata__"):
        return [section for part in get_args(annotation) for section in _sections(part)]
    return []
