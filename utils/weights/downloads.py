"""Files from the web: downloaded once into torch.hub's folder, checked, complete or absent."""

import hashlib
import http.client
import ipaddress
import re
import string
import urllib.error
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit

import torch

from utils.runtime.errors import UserError, reporting_value_errors
from utils.runtime.files import atomic_write
from utils.runtime.progress import download_bar
from utils.weights.google_drive import WebPage, direct_address, read_page
from utils.weights.reading import is_web_page, read_open_file

TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 20
MAX_PAGE = 1 << 20  # bytes of a web page that are read
HEADERS = {"User-Agent": "torch.hub"}  # some servers refuse Python's own
WEB_PAGE = "a web page came, not a file"


class DownloadError(Exception):
    """Says why a download failed."""


def is_url(text: str) -> bool:
    """Return whether a text is an address and not a path."""
    return "://" in text


def fetch(url: str, name: str | None = None, report: Callable[[str], None] | None = None) -> Path:
    """Return the local file of an address, downloaded unless it is in torch.hub's folder already.

    url: https, http of this machine, a link by which Google Drive shares a file, or file, which is read where
    it is. name: of the file in torch.hub's folder; None takes name_in_cache(url). report: is called with a
    line before a download.
    Raises UserError, which says where to put the file by hand, if it cannot be downloaded or is not what its
    name says. Then no file is left. Each of several processes that fetch a file at once downloads it.
    """
    with reporting_value_errors(url):  # an address that cannot be taken apart
        path = local_path(url)
    if path is None:
        url = direct_address(url)
        path = Path(torch.hub.get_dir(), "checkpoints", name or name_in_cache(url))
        if not path.exists():
            if report:
                report(f"downloading {url} to {path}")
            download(url, path)
            return path
    expected = hash_in_name(path.name)
    if expected and path.is_file() and not digest(path).startswith(expected):
        # Many files are from torch before 1.6 and hold no checksums: only the hash shows damage.
        raise UserError(f"{path} is damaged, as the hash in its name shows: replace it, or delete it")
    return path


def local_path(url: str) -> Path | None:
    """Return the path in a file:// address, None for one to download; UserError for any other kind."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(urllib.request.url2pathname(parts.path))
    if not may_download(url):
        raise UserError(f"{url}: only https:// and file:/// are taken; download the file and give its path")
    return None


def may_download(url: str) -> bool:
    """Return whether an address is https, or http of this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def is_loopback(host: str) -> bool:
    """Return whether a host, a name or a number, is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def name_in_cache(url: str) -> str:
    """Return the name of a URL's file in torch.hub's folder: as torch.hub names it, if that holds a hash.

    Other names, such as best.pth, are those of many files, so the name gets the start of the URL's hash.
    """
    last = urlsplit(url).path.rpartition("/")[2]
    name = re.sub(r"[^\w.-]", "_", last, flags=re.ASCII)[-100:]
    if hash_in_name(name):
        return name
    stem, dot, ending = name.rpartition(".")
    url_hash = hashlib.sha256(url.encode()).hexdigest()[:8]
    return f"{stem}_{url_hash}.{ending}" if dot else f"{name}_{url_hash}"


def hash_in_name(name: str) -> str:
    """Return the first digits of a file's SHA-256, which end its name, as in resnet18-f37072fd.pth, or ""."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return found[1] if found else ""


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, path: Path) -> None:
    """Download a file; UserError if that fails, and then no file is left."""
    try:
        with open_file(url) as response, atomic_write(path, "wb") as file:
            save(response, file, path.name)
            file.flush()
            check_download(Path(file.name), path.name)
    except (DownloadError, OSError, http.client.HTTPException, ValueError) as error:
        way_out = f"put the file at {path} by hand"
        raise UserError(f"cannot download {url}: {reason_of(error)}; {way_out}") from error


def reason_of(error: Exception) -> str:
    """Return why a download failed."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        error = error.reason if isinstance(error.reason, Exception) else DownloadError(error.reason)
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended before the file did"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).splitlines()) or type(error).__name__


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an address that `check_step` accepts."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        check_step(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_step(url: str, next_url: str) -> None:
    """Raise DownloadError if an address leads to one that is less safe."""
    left_https = urlsplit(url).scheme == "https" and urlsplit(next_url).scheme != "https"
    if left_https or not may_download(next_url):
        raise DownloadError(f"it leads to {next_url}, which is not https")


def open_file(url: str) -> http.client.HTTPResponse:
    """Return the answer of a server that holds a file, past Google Drive's warning page.

    Raises DownloadError if the answer is another web page.
    """
    cookies = urllib.request.HTTPCookieProcessor(CookieJar())
    opener = urllib.request.build_opener(SafeRedirects, cookies)
    response = request(opener, url)
    if not is_html(response):
        return response
    page = take_page(response)
    if page.file_address is None:
        raise DownloadError(page_fault(page.title))
    file_url = urljoin(response.url, page.file_address)
    check_step(response.url, file_url)
    response = request(opener, file_url)
    if is_html(response):
        raise DownloadError(page_fault(take_page(response).title))
    return response


def request(opener: urllib.request.OpenerDirector, url: str) -> http.client.HTTPResponse:
    """Return the answer of a server."""
    ascii_url = quote(url, safe=string.punctuation)
    response: Any = opener.open(urllib.request.Request(ascii_url, headers=HEADERS), timeout=TIMEOUT)
    assert isinstance(response, http.client.HTTPResponse)  # only http and https come here
    return response


def is_html(response: http.client.HTTPResponse) -> bool:
    """Return whether an answer is a web page."""
    return response.headers.get_content_type() == "text/html"


def take_page(response: http.client.HTTPResponse) -> WebPage:
    """Return the web page in an answer, and close the connection."""
    with response:
        return read_page(response.read(MAX_PAGE).decode(errors="replace"))


def page_fault(title: str) -> str:
    """Return why a download failed that brought a web page with a title."""
    return f"{WEB_PAGE} ({title})" if title else WEB_PAGE


def save(response: http.client.HTTPResponse, file: IO[bytes], name: str) -> None:
    """Write an answer to a file; DownloadError if the connection ends early."""
    total = response.length  # None if the server does not say it
    with download_bar(total, name) as bar:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and file.tell() != total:
        raise DownloadError(f"the connection ended after {file.tell()} of {total} bytes")


def check_download(part: Path, name: str) -> None:
    """Raise DownloadError unless a file that was downloaded is what its name says, or else a checkpoint."""
    with open(part, "rb") as file:
        if is_web_page(file.read(500)):
            raise DownloadError(WEB_PAGE)
        expected = hash_in_name(name)
        if not expected:
            check_readable(file)
    if expected and not (found := digest(part)).startswith(expected):
        raise DownloadError(f"its SHA-256 starts with {found[: len(expected)]}, not as its name says")


def check_readable(file: BinaryIO) -> None:
    """Raise DownloadError unless a file is a checkpoint, whose own checksums show whether it is whole."""
    try:
        read_open_file(file, "what came")
    except UserError as error:
        raise DownloadError(str(error)) from error
