"""Start scripts in processes that have imported torch already, which takes seconds in a process of its own.

A server imports the packages, and nothing of this project. For each script it forks itself, and the copy runs
the script as `python SCRIPT` does: as __main__, importing the project anew.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import IO, Any


class Preloaded:
    """A script in a copy of the server. Its methods are those of subprocess.Popen that tests use."""

    def __init__(self, request: dict[str, Any]) -> None:
        """See `run` for what a request holds."""
        out, out_of_script = os.pipe()
        err, err_of_script = os.pipe()
        status, status_of_monitor = os.pipe()
        given = [out_of_script, err_of_script, status_of_monitor]
        socket.send_fds(start_server(), [json.dumps(request).encode()], given)
        for file in given:
            os.close(file)
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
        self.status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self.status.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            wait_for([self.status], timeout)
            self.returncode = int(self.status.readline())
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def communicate(self, timeout: float = 1e6) -> tuple[str, str]:
        """Return the rest of stdout and of stderr, after the end of the script."""
        deadline = time.monotonic() + timeout
        content = {self.stdout: b"", self.stderr: b""}
        unfinished: list[IO[Any]] = list(content)
        while unfinished:
            for stream in wait_for(unfinished, max(0, deadline - time.monotonic())):
                part = os.read(stream.fileno(), 2**16)
                content[stream] += part
                if not part:
                    unfinished.remove(stream)
        self.wait(max(0, deadline - time.monotonic()))
        return content[self.stdout].decode(), content[self.stderr].decode()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def wait_for(files: list[IO[Any]], timeout: float | None) -> list[IO[Any]]:
    """Return the files that can be read without waiting, as soon as there is one."""
    ready, _, _ = select.select(files, [], [], timeout)
    if not ready:
        raise subprocess.TimeoutExpired("a preloaded script", timeout)
    return ready


@functools.cache
def start_server() -> socket.socket:
    """Start the server of this process; return the socket that takes requests."""
    requests, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, str(its_end.fileno())]
    server = subprocess.Popen(command, pass_fds=[its_end.fileno()], start_new_session=True)
    its_end.close()

    def stop() -> None:
        requests.shutdown(socket.SHUT_RDWR)  # to close it would not do: workers that tests left have copies
        server.wait()

    atexit.register(stop)
    return requests


def serve(requests: socket.socket) -> None:
    """Start a monitor for each request, until the tests are over."""
    while True:
        content, files, _, _ = socket.recv_fds(requests, 2**20, 3)
        if not content:
            return
        if os.fork() == 0:
            requests.close()
            monitor(json.loads(content), *files)
            return
        for file in files:
            os.close(file)
        with contextlib.suppress(ChildProcessError):  # no monitor is left
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def monitor(request: dict[str, Any], out: int, err: int, status: int) -> None:
    """Start the script in a copy of this process, write its number and, after its end, its exit status."""
    script = os.fork()
    if script == 0:
        os.close(status)
        os.dup2(out, 1)
        os.dup2(out if request["stderr_in_stdout"] else err, 2)
    os.close(out)
    os.close(err)
    if script == 0:
        run(request)
        return
    os.write(status, f"{script}\n".encode())
    ended = os.waitstatus_to_exitcode(os.waitpid(script, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # the test did not wait
        os.write(status, f"{ended}\n".encode())


def run(request: dict[str, Any]) -> None:
    """Run a script as Python does.

    request: "words", the path of the script and its arguments; "folder", to run in; "environment"; whether
    "alone", in a session of its own; whether "stderr_in_stdout"; "files", how many it may open, or None.
    """
    if request["alone"]:
        os.setsid()
    if request["files"] is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["files"], request["files"]))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["words"]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [os.path.dirname(sys.argv[0]), *filter(None, paths)]
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    status = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            status = end.code or 0
    except BaseException:  # noqa: BLE001  Python ends every script in this way
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)  # without a second for the removal of all modules


if __name__ == "__main__":
    from narrow import use_narrow_resnet18

    use_narrow_resnet18()
    gc.freeze()  # the copies then share this memory
    serve(socket.socket(fileno=int(sys.argv[1])))
