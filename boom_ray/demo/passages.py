"""The texts that are searched: passages of a folder's files, or the functions of the Python environment."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeVar

from boom_ray.config import BoomError
from boom_ray.config.corpus import PythonEnvironmentSource

_LONGEST = 500  # characters of a passage: a paragraph, and about what a small encoder reads
_ENOUGH = 160  # characters after which a blank line ends it
_EXCERPT = 200
_READ = 10  # times --limit: passages that are read at most, before those that are searched are taken evenly from them
_LARGEST_FILE = 1 << 20  # bytes: what is larger was written by a program
_WORD = re.compile(r"[^\W_]{2}")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Passage:
    """A text to be found. ``place``: ``file:line``, or the qualified name of a function. ``excerpt``: one line of it,
    of a function what its docstring says, which no model has read."""

    place: str
    text: str
    excerpt: str


@dataclass(frozen=True)
class Texts:
    """Passages with distinct texts, taken evenly from the ``found`` ones; where they are from, and how many files were
    left out, by reason."""

    passages: tuple[Passage, ...]
    origin: str
    found: int
    left_out: Mapping[str, int] = field(default_factory=dict)


def from_folder(folder: Path, limit: int) -> Texts:
    """The passages of a folder's text files, ``limit`` at most, in the order of the files' names.

    A file is text if it is UTF-8 without zero bytes, whatever its name. Hidden files and folders are passed over, links
    are not followed. Of more than ``limit`` passages every n-th is taken; of a folder with more than ten times as many,
    files in the order of a hash are read until there are so many. Either way they are a sample of the whole folder.

    Raises:
        BoomError: not a folder, or nothing in it is text.
    """
    if not folder.is_dir():
        raise BoomError(f"--folder {folder} is not a folder.")
    left_out, found, seen = Counter[str](), dict[str, list[Passage]](), set[str]()
    names = sorted(_names(folder, left_out), key=_hash)
    for number, name in enumerate(names):
        if len(seen) >= _READ * limit:
            left_out["not read"] = len(names) - number
            break
        text, reason = _read(folder / name)
        if text is None:
            left_out[reason] += 1
        else:
            found[name] = list(_passages(name, text, seen))
    if not seen:
        raise BoomError(f"--folder {folder} has no text to search{_told(left_out)}. Give one with text or code files.")
    passages = list(chain.from_iterable(found[name] for name in sorted(found)))
    files = sum(map(bool, found.values()))
    return Texts(tuple(_evenly(passages, limit)), f"{files:,} files in {folder}", len(passages), dict(+left_out))


def from_environment(limit: int) -> Texts:
    """Functions of the standard library and of installed distributions, as the quickstart's corpus has them: code
    without its docstring; the same share of every package where there are more than ``limit``."""
    from boom_ray.data.environment_sets import deduplicate
    from boom_ray.data.python_environment import list_packages, read_package

    source = PythonEnvironmentSource(source="python_environment", max_functions=max(100, limit))
    functions = _evenly(deduplicate(chain.from_iterable(map(read_package, list_packages(source)))), limit)
    packages = len({function.package for function in functions})
    passages = tuple(Passage(f.qualified_name, f.code, one_line(f.summary)) for f in functions)
    return Texts(passages, f"{packages:,} packages of this Python environment", len(passages))


def describe(texts: Texts) -> str:
    """One line: how many passages, where from, and what was left out."""
    count = len(texts.passages)
    share = f"{count:,}" if count == texts.found else f"{count:,} of {texts.found:,}"
    return f"{share} passages of {texts.origin}{_told(texts.left_out)}"


def split(text: str) -> Iterator[tuple[int, str]]:
    """Passages of at most 500 characters, each with the number of its first line.

    A passage ends at the first blank line after 160 characters, else with the last line, or word of a long line, that
    fits. What holds no word is left out.
    """
    block: list[str] = []
    first = 1
    for number, line in _lines(text):
        size = sum(map(len, block)) + len(block)
        if block and (size + len(line) > _LONGEST or (not line and size >= _ENOUGH)):
            yield from _finished(first, block)
            block = []
        if not block:
            first = number
        if block or line:
            block.append(line)
    yield from _finished(first, block)


def one_line(text: str) -> str:
    """A text on one line for a terminal: nothing in it but printable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _evenly(items: Sequence[Item], limit: int) -> list[Item]:
    count = min(limit, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _finished(first: int, block: list[str]) -> Iterator[tuple[int, str]]:
    passage = "\n".join(block).rstrip()
    if _WORD.search(passage):
        yield first, passage


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines; a line that is longer than a passage comes in pieces of the same number."""
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        line = line.rstrip()
        pieces = textwrap.wrap(line, _LONGEST, break_on_hyphens=False) if len(line) > _LONGEST else [line]
        yield from ((number, piece) for piece in pieces)


def _passages(name: str, text: str, seen: set[str]) -> Iterator[Passage]:
    for line, part in split(text):
        if part not in seen:
            seen.add(part)
            yield Passage(f"{name}:{line}", part, one_line(part)[:_EXCERPT])


def _names(folder: Path, left_out: Counter[str]) -> Iterator[str]:
    """Paths below a folder of all that is not hidden and no folder."""

    def unreadable(_: OSError) -> None:
        left_out["unreadable"] += 1

    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        left_out["links"] += sum(os.path.islink(os.path.join(place, name)) for name in folders)
        for name in files:
            if not name.startswith("."):
                yield Path(place, name).relative_to(folder).as_posix()


def _read(file: Path) -> tuple[str | None, str]:
    """A file's text, or None and the reason to leave it out."""
    try:
        mode = file.lstat().st_mode
        if not stat.S_ISREG(mode):
            return None, "links" if stat.S_ISLNK(mode) else "unreadable"
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            return None, "larger than 1 MB"
        return (None, "binary") if b"\0" in content else (content.decode("utf-8-sig"), "")
    except UnicodeDecodeError:
        return None, "binary"
    except OSError:
        return None, "unreadable"


def _told(left_out: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()) if count)
    return f" (files left out: {counts})" if counts else ""


def _hash(name: str) -> bytes:
    return hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
