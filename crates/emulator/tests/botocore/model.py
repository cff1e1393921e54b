"""The service model as botocore ships it: what it demands of a value, and values at its limits.

Nothing here knows a name of the service's: what the model gains, these tests gain.
"""

import copy
import functools
import re
import sys
import unicodedata

import botocore.loaders

MODEL = botocore.loaders.Loader().load_service_model("iotsecuretunneling", "service-2")
SHAPES = MODEL["shapes"]
OPERATIONS = sorted(MODEL["operations"])
#: How many tags a list without an upper limit is tried with.
MANY = 100


def shape_of(operation, side):
    """The name of an operation's `input` or `output`."""
    return MODEL["operations"][operation][side]["shape"]


def errors_of(operation):
    """The errors that the model gives an operation."""
    return {error["shape"] for error in MODEL["operations"][operation].get("errors", [])}


def modelled_errors():
    """All errors of the model."""
    return {name for name, shape in SHAPES.items() if shape.get("exception")}


@functools.cache
def _category(initial):
    """A Unicode category by its first letter, as the inside of a class in Python's `re`."""
    points = (p for p in range(sys.maxunicode + 1) if unicodedata.category(chr(p)).startswith(initial))
    ranges = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in ranges)


@functools.cache
def _pattern(name):
    """A shape's pattern in Python's words, which lack `\\p{..}`."""
    pattern = SHAPES[name].get("pattern")
    return pattern and re.compile(re.sub(r"\\p\{(\w)\}", lambda found: _category(found[1]), pattern))


def limits(name):
    """The least and the greatest length of a string (also where it stands in the pattern only) or a
    list, or value of an integer; None is none."""
    shape = SHAPES[name]
    quantifier = re.search(r"\{(\d+),(\d+)\}\$?$", shape.get("pattern", ""))
    least, most = (int(n) for n in quantifier.groups()) if quantifier else (None, None)
    return shape.get("min", least), shape.get("max", most)


def _within(name, number):
    least, most = limits(name)
    return (least is None or number >= least) and (most is None or number <= most)


def violations(name, value, path=""):
    """The paths, in AWS's notation, at which a value of the right type is not what the model demands."""
    shape = SHAPES[name]
    kind = shape["type"]
    if kind == "structure":
        found = set()
        for member, target in shape["members"].items():
            at = f"{path}.{member}" if path else member
            if value.get(member) is not None:
                found |= violations(target["shape"], value[member], at)
            elif member in shape.get("required", []):
                found.add(at)
        return found
    if kind == "list":
        found = set() if _within(name, len(value)) else {path}
        of = shape["member"]["shape"]
        for number, item in enumerate(value, 1):
            # A structure is named by its number; of strings AWS names the list.
            structure = SHAPES[of]["type"] == "structure"
            found |= violations(of, item, f"{path}.{number}.member" if structure else path)
        return found
    if kind == "string":
        # Astral characters count once: the model's limits are of code points.
        ok = _within(name, len(value)) and value in shape.get("enum", [value])
        ok = ok and (not _pattern(name) or _pattern(name).fullmatch(value) is not None)
    elif kind == "integer":
        ok = _within(name, value)
    else:
        ok = True
    return set() if ok else {path}


def unlike(name, value, path="answer"):
    """What of an answer is not as the model says: unknown members, wrong types, broken constraints."""
    shape = SHAPES[name]
    kind = shape["type"]
    types = {"structure": dict, "list": list, "string": str, "boolean": bool, "integer": int, "timestamp": (int, float)}
    if not isinstance(value, types[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{path} is not a {kind}"]
    if kind == "structure":
        members = shape["members"]
        wrong = [f"{path}.{member} is not in the model" for member in value.keys() - members.keys()]
        missing = set(shape.get("required", [])) - value.keys()
        wrong += [f"{path}.{member} is missing" for member in missing]
        known = value.keys() & members.keys()
        return wrong + [w for m in known for w in unlike(members[m]["shape"], value[m], f"{path}.{m}")]
    if kind == "list":
        # Not its length: a tunnel without tags has an empty TagList, of which the model demands one.
        return [w for item in value for w in unlike(shape["member"]["shape"], item, f"{path}[]")]
    return [f"{path} breaks its constraints"] if violations(name, value, path) else []


def example(name, context):
    """A value that has all members, lists of two. `context` gives what must exist, by the shape's name."""
    shape = SHAPES[name]
    if name in context:
        return context[name]
    if "enum" in shape:
        return shape["enum"][-1]
    kind = shape["type"]
    if kind == "structure":
        return {member: example(target["shape"], context) for member, target in shape["members"].items()}
    if kind == "list":
        return [another(shape["member"]["shape"], context, n) for n in range(2)]
    return {"string": "a", "integer": limits(name)[0] or 1, "boolean": False}[kind]


def another(name, context, number):
    """An example that is unlike those of other numbers, and unlike all variants."""
    value = example(name, context)
    if isinstance(value, dict):
        return {member: f"n{number}" for member in value}
    return f"n{number}"


def probes():
    """A character of each Unicode category that JSON can carry, and all of ASCII."""
    first = {}
    for point in range(0x80, sys.maxunicode + 1):
        first.setdefault(unicodedata.category(chr(point)), chr(point))
    first.pop("Cs")
    return [chr(point) for point in range(0x80)] + sorted(first.values())


def edges(name):
    """Numbers at the limits and one beyond."""
    least, most = limits(name)
    around = {n for limit in (least, most) if limit is not None for n in (limit - 1, limit, limit + 1)}
    return sorted(around | ({MANY} if most is None else set()))


def variants(name, context):
    """Values of the right type that try each of the shape's own constraints on both sides."""
    shape = SHAPES[name]
    kind = shape["type"]
    if kind == "boolean":
        yield from (True, False)
    elif kind == "integer":
        yield from (*edges(name), -(2**31), 2**31 - 1)
    elif kind == "list":
        for length in edges(name):
            if length >= 0:
                yield [another(shape["member"]["shape"], context, n) for n in range(length)]
    elif "enum" in shape:
        for word in shape["enum"]:
            yield from (word, word.lower(), word[:-1], word + "S", " " + word)
        yield ""
    elif kind == "string":
        fillers = [c for c in ("a", "ж", "\U0001d538") if c == "a" or not _pattern(name) or _pattern(name).fullmatch(c)]
        yield from (filler * length for filler in fillers for length in edges(name) if length >= 0)
        if _pattern(name):
            yield from (f"a{probe}a" for probe in probes())
            # What a regular expression takes for the end that is none.
            yield from ("a\n", "\na")


def constrained(name):
    """Whether the model forbids any value of a shape's type."""
    return any(key in SHAPES[name] for key in ("min", "max", "pattern", "enum"))


def cases(name, context, build=lambda value: value, path=""):
    """All (path, request, whether the model forbids any at that path): every member varied alone, in a
    request that has all members."""
    whole = example(name, context)
    shape = SHAPES[name]

    def put(key, value):
        changed = copy.deepcopy(whole)
        changed[key] = value
        return build(changed)

    if shape["type"] == "structure":
        for member, target in shape["members"].items():
            at = f"{path}.{member}" if path else member
            forbids = member in shape.get("required", []) or constrained(target["shape"])
            without = copy.deepcopy(whole)
            del without[member]
            yield at, build(without), forbids
            for value in variants(target["shape"], context):
                yield at, put(member, value), forbids
            yield from cases(target["shape"], context, functools.partial(put, member), at)
    elif shape["type"] == "list":
        of = shape["member"]["shape"]
        at = f"{path}.2.member" if SHAPES[of]["type"] == "structure" else path
        for value in variants(of, context):
            yield at, put(1, value), True
        yield from cases(of, context, functools.partial(put, 1), at)
