"""The embedded default corpus: functions of the standard library and of installed distributions.

Files are found through the distributions' RECORD lists and read with ``ast``; nothing is imported. A package here is
a distribution, or the whole standard library under the name ``python``. Which functions become rows, and which
evaluation sets, is decided in ``environment_sets``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import inspect
import itertools
import math
import os
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boom_ray.config.corpus import PythonEnvironmentSource

STANDARD_LIBRARY = "python"
SUMMARY_CHARACTERS = 300
CODE_CHARACTERS = 4000

_SKIPPED = re.compile(r"(^|/)(_?tests?|testing|conftest.*|test_.*|.*_test|_?vendor(ed)?|_?third_?party.*|__pycache__)/")
_SKIPPED_FILE = re.compile(r"(^|/)(test_.*|.*_tests?|tests?|conftest|__main__)\.py$")
_NOT_STANDARD = ("site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "ensurepip", "config-")
_BYTES_PER_FUNCTION = 4000  # measured: 1,323 documented functions in 5.1 MB of 141 distributions
_MARGIN = (
    1.25  # read a little more than a package's share: duplicates go, and others hold less than their size promises
)


@dataclass(frozen=True)
class Package:
    """A distribution's Python files, in the order of their hashes; ``quota`` functions are read from them."""

    name: str
    root: str
    files: tuple[str, ...]
    size: int
    quota: int = 0


@dataclass(frozen=True)
class Function:
    """A documented function: its qualified name, its docstring's summary, and its source without the docstring."""

    package: str
    module: str
    name: str
    summary: str
    code: str

    @property
    def qualified_name(self) -> str:
        return f"{self.module}.{self.name}"


def fingerprint(source: PythonEnvironmentSource) -> dict[str, Any]:
    """What the corpus depends on: the interpreter and the RECORD digest of every installed distribution.

    Distributions that ``list_packages`` leaves out do not count. Takes about 0.1 s; reads no source file.
    """
    installed = sorted(
        (name, distribution.version, hashlib.sha256(record.encode()).hexdigest()[:16])
        for name, distribution, record in _distributions()
    )
    return {"python": platform.python_version(), "distributions": [list(entry) for entry in installed]}


def list_packages(source: PythonEnvironmentSource) -> list[Package]:
    """All packages with Python files, the standard library first, then by name, each with its quota of functions.

    The quotas grow with the square root of a package's size, so that large packages have enough functions for
    clusters and classes while small ones still count. They add up to ``max_functions`` and a quarter;
    ``environment_sets.select`` takes away what is too much.
    """
    packages = [_standard_library(), *sorted(_installed(), key=lambda p: p.name)]
    packages = [p for p in packages if p.files]
    quotas = share_out([p.size / _BYTES_PER_FUNCTION + 1 for p in packages], source)
    return [replace(p, quota=quota) for p, quota in zip(packages, quotas, strict=True)]


def share_out(sizes: Sequence[float], source: PythonEnvironmentSource) -> list[int]:
    """``min(size, k sqrt(size), max_per_package)`` for each package, with the largest k that keeps to the total."""

    def shares(k: float) -> list[int]:
        return [max(1, int(min(size, k * math.sqrt(size), source.max_per_package))) for size in sizes]

    low, high = 0.0, math.sqrt(max(sizes, default=0)) + 1
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle)) <= source.max_functions * _MARGIN else (low, middle)
    return shares(low)


def read_package(package: Package) -> list[Function]:
    """The first ``quota`` documented functions of a package, files in hash order; unreadable files are passed over."""
    return list(itertools.islice(_functions(package), package.quota))


def read_source(text: bytes, package: str, module: str) -> Iterator[Function]:
    """Functions and methods of one source file that have a docstring and do something.

    Left out: functions inside functions, bodies that only pass or raise, summaries of under three words.

    Raises:
        SyntaxError, ValueError: the text is no Python source.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's files
        tree = ast.parse(text)
    lines = text.decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n")
    for prefix, node in _definitions(tree, ""):
        summary = _summary(node)
        code = _code(node, lines) if summary else None
        if summary and code:
            yield Function(package, module, prefix + node.name, summary, code)


def _functions(package: Package) -> Iterator[Function]:
    for file in package.files:
        try:
            text = (Path(package.root) / file).read_bytes()
            if b'"""' in text or b"'''" in text:
                yield from read_source(text, package.name, _module(file))
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # a template, another version's syntax, or a file that has gone: no part of the corpus


_Definition = ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    """Functions and methods with the names of their classes; what stands under ``if`` and ``try`` counts too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _Definition):
            yield prefix, node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _definitions(node, prefix)


def _summary(node: _Definition) -> str:
    """The docstring's first paragraph on one line; empty where there is none of at least three words."""
    docstring = ast.get_docstring(node, clean=False)
    if not docstring:
        return ""
    paragraph = inspect.cleandoc(docstring).split("\n\n", 1)[0]
    summary = " ".join(paragraph.replace("\0", "").split())[:SUMMARY_CHARACTERS].rstrip()
    return summary if len(re.findall(r"[^\W\d_]{2,}", summary)) >= 3 else ""


def _code(node: _Definition, lines: list[str]) -> str | None:
    """The function's lines without decorators and docstring; None where the rest does nothing."""
    docstring, *body = node.body
    if not any(map(_acts, body)) or docstring.lineno == node.lineno or body[0].lineno == docstring.end_lineno:
        return None
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    code = "\n".join(_dedented(line, node.col_offset) for line in kept if line.strip())
    return code[:CODE_CHARACTERS].strip() if "\0" not in code else None


def _dedented(line: str, columns: int) -> str:
    return (line[columns:] if not line[:columns].strip() else line).rstrip()


def _acts(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Pass | ast.Raise):
        return False
    return not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))


def _module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _distributions() -> Iterator[tuple[str, importlib.metadata.Distribution, str]]:
    """``(name, distribution, RECORD)`` of every distribution installed in this environment but boom_ray itself.

    Only the interpreter's own site folders count: ``import ray`` puts a folder of bundled distributions on
    ``sys.path``, and the environment must be the same before and after it.
    """
    sites = [entry for entry in sys.path if os.path.basename(entry) in ("site-packages", "dist-packages")]
    seen = {"boom-ray"}
    for distribution in importlib.metadata.distributions(path=sites):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        record = distribution.read_text("RECORD")
        if name and record and name not in seen:
            seen.add(name)
            yield name, distribution, record


def _installed() -> Iterator[Package]:
    for name, distribution, record in _distributions():
        sizes = {}
        for line in record.splitlines():
            file, _, size = (line.rsplit(",", 2) + ["", ""])[:3]
            if _wanted(file):
                sizes[file] = int(size) if size.isdigit() else 0
        yield Package(name, str(distribution.locate_file("")), _in_hash_order(name, sizes), sum(sizes.values()))


def _standard_library() -> Package:
    root = sysconfig.get_path("stdlib")
    sizes = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(_NOT_STANDARD)]  # here may lie all that is installed
        for path in (os.path.join(folder, file) for file in files):
            name = os.path.relpath(path, root)
            if _wanted(name):
                sizes[name] = os.path.getsize(path)
    return Package(STANDARD_LIBRARY, root, _in_hash_order(STANDARD_LIBRARY, sizes), sum(sizes.values()))


def _wanted(file: str) -> bool:
    plain = file.endswith(".py") and not file.startswith(("..", "/", '"'))
    return plain and not _SKIPPED.search(file) and not _SKIPPED_FILE.search(file)


def _in_hash_order(package: str, files: dict[str, int]) -> tuple[str, ...]:
    def place(file: str) -> bytes:
        return hashlib.blake2b(f"{package}/{file}".encode(), digest_size=8).digest()

    return tuple(sorted(files, key=place))
