"""Reading a JSON list entry by entry, so that the Python objects of a large file never exist all at once."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from utils.runtime.errors import UserError, reporting_errors
from utils.runtime.files import check_fetched

CHUNK = 2**20  # characters to read at once
MAX_ENTRY = 2**26  # characters of an entry; so a file that is damaged at its start is not read to its end
BLANKS = re.compile(r"[ \t\n\r]*")
FOLLOWERS = set(" \t\n\r,]")  # what may stand behind an entry
DECODER = json.JSONDecoder()


def read_json_list(path: Path) -> Iterator[Any]:
    """Yield the entries of a JSON list; UserError if the file is malformed or holds something else."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file")
    check_fetched(path)
    with open(path, encoding="utf-8-sig") as file:
        window = Window(path, file)
        if not window.skip("["):
            raise UserError(f"{path} must be a JSON list: it does not start with [")
        if not window.skip("]"):
            yield window.entry()
            while window.skip(","):
                yield window.entry()
            if not window.skip("]"):
                raise window.error("a comma or ] is missing before it")
        if not window.is_at_end():
            raise window.error("the list ends before it")


class Window:
    """The part of a JSON file that is parsed next."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path = path
        self.file = file
        self.text = ""
        self.place = 0  # in the text, of what comes next
        self.num_entries = 0

    def skip(self, mark: str) -> bool:
        """Skip blanks and, if it comes next, a mark; return whether it does."""
        self.skip_blanks()
        is_next = self.text.startswith(mark, self.place)
        self.place += len(mark) if is_next else 0
        return is_next

    def is_at_end(self) -> bool:
        """Skip blanks; return whether nothing comes next."""
        self.skip_blanks()
        return self.place == len(self.text)

    def skip_blanks(self) -> None:
        """Move to the next character that is not blank, or to the end of the file."""
        while True:
            blanks = BLANKS.match(self.text, self.place)
            assert blanks is not None  # it matches nothing, too
            self.place = blanks.end()
            if self.place < len(self.text) or not self.read_on():
                return

    def entry(self) -> Any:
        """Parse the next entry."""
        self.skip_blanks()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.place)
            except (ValueError, RecursionError) as error:
                if not self.read_on():
                    raise self.error(getattr(error, "msg", error)) from None
            else:
                if self.text[end : end + 1] not in FOLLOWERS and self.read_on():
                    continue  # the rest of a number may not have been read
                self.place = end
                self.num_entries += 1
                return value

    def read_on(self) -> bool:
        """Read more of the file; return False at its end, and if a single entry is above MAX_ENTRY."""
        rest = self.text[self.place :]
        if len(rest) > MAX_ENTRY:
            return False
        with reporting_errors(f"{self.path} is not valid JSON"):
            more = self.file.read(max(CHUNK, len(rest)))
        self.text = rest + more
        self.place = 0
        return more != ""

    def error(self, reason: object) -> UserError:
        """Return the error for what comes next."""
        return UserError(f"{self.path}, entry {self.num_entries} is not valid JSON ({reason})")
