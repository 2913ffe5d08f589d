"""Rows that cannot be used: one file that names each by file, line and reason, and the limit on their share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from boom_ray.config import BoomError
from boom_ray.config.corpus import Corpus, FilesSource
from boom_ray.data.parts import Part, Unit
from boom_ray.stores.files import shown

_NAMED = 5

Counts = Mapping[str, Mapping[str, int]]


def write_quarantine(units: Sequence[Unit], parts: Sequence[Part], target: Path) -> None:
    """Join the quarantines of all parts; a part counts lines from the start of its span, here they are the file's."""
    before, file = 0, -1
    with open(target, "wb") as out:
        for unit, part in zip(units, parts, strict=True):
            before = before if unit.place == file else 0
            file = unit.place
            with open(part.quarantine, "rb") as rejects:
                if before:
                    for text in rejects:
                        entry = json.loads(text)
                        entry["line"] += before
                        out.write(json.dumps(entry).encode() + b"\n")
                else:
                    shutil.copyfileobj(rejects, out)
            before += part.lines


def check_bad_rows(counts: Counts, most: float, quarantine: Path) -> None:
    """Stop when more than the share ``most`` of the rows is bad.

    Raises:
        BoomError: names the first ones by file and line.
    """
    rows, bad = (sum(c[key] for c in counts.values()) for key in ("rows_in", "rejected"))
    if bad <= most * rows:
        return
    with open(quarantine, encoding="utf-8") as stream:
        named = [json.loads(line) for line, _ in zip(stream, range(_NAMED), strict=False)]
    shown = "".join(f"\n  {row['file']}:{row['line']}: {row['reason']}" for row in named)
    more = f"\n  and {bad - len(named)} more" if bad > len(named) else ""
    raise BoomError(
        f"{bad} of {rows} training rows cannot be used; corpus.max_bad_fraction allows {most:g} of them:{shown}{more}\n"
        f"Correct them, or raise corpus.max_bad_fraction to go on without them."
    )


def nothing_left(corpus: Corpus, counts: Counts) -> BoomError:
    """What to say when no row stays."""
    lost = {key: sum(c[key] for c in counts.values()) for key in ("rows_in", "rejected", "decontaminated")}
    where = ", ".join(shown(s.origin) if isinstance(s, FilesSource) else s.source for s in corpus.datasets)
    return BoomError(
        f"no training rows: {where} gave {lost['rows_in']} rows, of which {lost['rejected']} were bad and "
        f"{lost['decontaminated']} hold an evaluation text. Give other files in corpus.datasets."
    )
