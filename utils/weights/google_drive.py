"""Google Drive: the address of a shared file, and the page that warns of a large one before it is sent."""

import re
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import urlencode

DRIVE = "https://drive.google.com/uc?export=download&id="
SHARED = re.compile(r"https://drive\.google\.com/(?:file/d/|open\?id=)([\w-]+)")


class WebPage(NamedTuple):
    """A web page: its title, and the address of the file that it offers, None if it is no warning page."""

    title: str
    file_address: str | None


def direct_address(url: str) -> str:
    """Return the address of the file itself for the link by which Drive shares it; other URLs unchanged."""
    shared = SHARED.match(url)
    return f"{DRIVE}{shared[1]}" if shared else url


def read_page(text: str) -> WebPage:
    """Read a web page, such as Drive's warning that it cannot check a large file for viruses.

    The warning is a form whose hidden fields confirm the download.
    """
    parser = WebPageParser()
    parser.feed(text)
    title = " ".join(parser.title.split())
    if parser.action is None:
        return WebPage(title, None)
    separator = "&" if "?" in parser.action else "?"
    return WebPage(title, f"{parser.action}{separator}{urlencode(parser.fields)}")


class WebPageParser(HTMLParser):
    """Collects the title of a page, and the address and the hidden fields of its form download-form."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self.inside: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "title":
            self.inside.add("title")
        elif tag == "form" and values.get("id") == "download-form":
            self.inside.add("form")
            self.action = values.get("action", "")
        elif tag == "input" and "form" in self.inside and values.get("type") == "hidden":
            self.fields[values.get("name", "")] = values.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        self.inside.discard(tag)

    def handle_data(self, data: str) -> None:
        if "title" in self.inside:
            self.title += data
