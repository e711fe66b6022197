"""How the code is built: files and lines per room, what is long, import circles, names that occur twice; a picture.

    python tools/structure.py [--before REV] [--picture docs/figures/architecture.svg]

A room is a folder of ``edge_sel``, or a file that lies in none. Lines are of code: without docstrings, comments and
what is empty. ``--before`` puts the counts of a git revision beside today's.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from structure_picture import Room, draw

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("edge_sel", "tools", "tests")
MOST = 10

Sources = Mapping[str, str]
"""Path in the repository -> text, of Python files."""
Links = Mapping[str, set[str]]
"""Name -> the names it imports."""


def read_sources(revision: str | None = None) -> dict[str, str]:
    """The Python files as they lie here, or as they were in a git revision."""
    if revision is None:
        paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
        return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".py") else None
            if file is not None and member.name.split("/")[0] in FOLDERS:
                found[member.name] = file.read().decode("utf-8")
    return found


def product(sources: Sources) -> dict[str, str]:
    """Module -> text, of ``edge_sel`` only; a package by its own name."""
    return {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): text
        for path, text in sources.items()
        if path.startswith("edge_sel/")
    }


def room(module: str) -> str:
    """The folder or the single file of ``edge_sel`` that a module lies in; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


# --- what there is


def place_of(path: str) -> str:
    """The room of a file, with ``tools`` and ``tests`` as rooms, and what lies in none as one."""
    first, *others = PurePosixPath(path).parts
    return first if first != "edge_sel" else f"{first}/{others[0] if len(others) > 1 else '*.py'}"


def code_lines(text: str) -> int:
    """Lines with code on them: no docstrings, no comments, nothing empty."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        for statement in getattr(node, "body", []) if isinstance(getattr(node, "body", []), list) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):  # of attributes too
                docstrings |= {*range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)}
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            used |= {*range(token.start[0], token.end[0] + 1)}
    return len(used - docstrings)


def counts(sources: Sources) -> tuple[Counter[str], Counter[str]]:
    """Room -> files, and room -> lines of code."""
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for path, text in sources.items():
        files[place_of(path)] += 1
        lines[place_of(path)] += code_lines(text)
    return files, lines


def functions(sources: Sources) -> Iterator[tuple[int, str]]:
    """Length in lines and place of every function."""
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{path}:{node.lineno} {node.name}"


def imports(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> modules of ours it names, also inside functions and for type checkers only."""
    links: dict[str, set[str]] = {}
    for module, text in modules.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                below = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
                named |= below or {str(node.module)}
        links[module] = (named & modules.keys()) - {module}
    return links


def reached(start: str, links: Links) -> set[str]:
    """All that can be reached, however deep; ``start`` itself only through a circle."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = links.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def circles(links: Links) -> list[list[str]]:
    """Groups of modules that import each other: the strongly connected components of more than one."""
    far = {name: reached(name, links) for name in links}
    groups = {tuple(sorted({name, *(other for other in far[name] if name in far[other])})) for name in links}
    return sorted(list(group) for group in groups if len(group) > 1)


def public_names(text: str) -> Iterator[str]:
    """Top-level classes, functions and aliases of types; no constants."""
    for node in ast.parse(text).body:
        names = [node.name] if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) else []
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [t.id for t in targets if isinstance(t, ast.Name) and t.id[0].isupper() and not t.id.isupper()]
        yield from (name for name in names if not name.startswith("_"))


def twice(modules: Mapping[str, str]) -> list[str]:
    """Public names that more than one module defines, and file names that stand in more than one room."""
    names, files = defaultdict(list), defaultdict(set)
    for module, text in sorted(modules.items()):
        files[module.rpartition(".")[2] + ".py"].add(room(module))
        for name in set(public_names(text)):
            names[name].append(module)
    found = [f"{name}: {', '.join(places)}" for name, places in sorted(names.items()) if len(places) > 1]
    return found + [f"{name}: {', '.join(sorted(rooms))}" for name, rooms in sorted(files.items()) if len(rooms) > 1]


# --- the rooms


def first_line(text: str) -> str:
    """Of the module's docstring."""
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def picture(sources: Sources) -> str:
    """The rooms as SVG. Single files that import no folder stand together, and no arrow goes to them."""
    modules = product(sources)
    links: dict[str, set[str]] = defaultdict(set)
    for module, named in imports(modules).items():
        links[room(module)] |= {room(name) for name in named} - {room(module)}
    folders = {room(module) for module in modules if module.count(".") > 1}
    common = {name for name in links.keys() - folders if not reached(name, links) & folders} - {""}
    links = {name: links[name] - common - {""} for name in sorted(links.keys() - common - {"", "__main__"})}
    packages = {module.rpartition(".")[0] for module in modules}
    rooms = {
        name: Room(
            knows=first_line(modules[f"edge_sel.{name}"]),
            parts=sorted(m.split(".")[2] for m in packages if m.startswith(f"edge_sel.{name}.")),
            imports=sorted(n for n in links[name] if not any(n in reached(other, links) for other in links[name])),
        )
        for name in links
    }
    return draw(rooms, {name: first_line(modules[f"edge_sel.{name}"]) for name in sorted(common)})


# --- the report


def report(sources: Sources, before: Sources | None) -> Iterator[str]:
    """All of it, line by line."""
    modules = product(sources)
    now, then = counts(sources), counts(before) if before is not None else None
    yield f"{'room':18}" + ("  files before  now  lines before     now" if then else "  files   lines")
    rooms = sorted(now[0].keys() | (then[0].keys() if then else set()))
    product_rooms = [name for name in rooms if name.startswith("edge_sel")]
    for title, names in (
        *((name, [name]) for name in rooms),
        ("edge_sel in sum", product_rooms),
        ("all in sum", rooms),
    ):
        files, lines = (sum(counted[name] for name in names) for counted in now)
        if then:
            files_then, lines_then = (sum(counted[name] for name in names) for counted in then)
            yield f"{title:18}{files_then:14}{files:5}{lines_then:14}{lines:8}"
        else:
            yield f"{title:18}{files:7}{lines:8}"
    for title, found in (
        ("longest functions of edge_sel and tools", functions({p: t for p, t in sources.items() if p[:5] != "tests"})),
        ("longest files", ((len(text.splitlines()), path) for path, text in sources.items())),
    ):
        yield title
        yield from (f"  {length:5}  {place}" for length, place in sorted(found, reverse=True)[:MOST])
    yield "import circles"
    yield from (f"  {', '.join(circle)}" for circle in circles(imports(modules)) or [["none"]])
    yield "names that occur twice"
    yield from (f"  {line}" for line in twice(modules) or ["none"])


def main() -> None:
    """Print the report; draw the picture if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="REV", help="a git revision whose line counts stand beside today's")
    parser.add_argument("--picture", metavar="FILE.svg", type=Path, help="draw the rooms into this file")
    arguments = parser.parse_args()
    sources = read_sources()
    if arguments.picture:
        arguments.picture.write_text(picture(sources), encoding="utf-8")
    print(*report(sources, read_sources(arguments.before) if arguments.before else None), sep="\n")


if __name__ == "__main__":
    main()
