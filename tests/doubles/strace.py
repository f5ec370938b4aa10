"""What a running process asks of the kernel, and what the kernel is made to refuse it."""

import ast
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from dicom_node import command
from doubles.raw_peer import P_DATA
from doubles.tools import require_program

PATIENCE_SECONDS = 10.0
CALLS = (
    "openat,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,syncfs,link,linkat,rename,"
    "unlink,sendto,recvfrom,sendmsg"
)

_LINE = re.compile(r"(\d+) +(?:(\w+)\(|<\.\.\. (\w+) resumed>)(.*)")
_END = re.compile(r"(.*?)\) += (-?\d+)(.*)")
_UNFINISHED = " <unfinished ...>"
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One system call.

    Attributes:
        arguments: as strace writes them, file descriptors with their paths.
        begun, ended: numbers that tell what came before what.
        injected: the kernel never saw it.
    """

    name: str
    arguments: str
    result: int
    begun: int
    ended: int
    injected: bool

    @property
    def data(self) -> bytes:
        """The first bytes that it sends or gets."""
        return b"".join(ast.literal_eval(f"b{each}") for each in _QUOTED.findall(self.arguments))

    @property
    def status(self) -> int | None:
        """Status of the DIMSE response that it sends; None when it sends none."""
        if not self.name.startswith("send"):
            return None
        data = self.data
        if not data or data[0] != P_DATA:
            return None
        return command.number(command.decode_command(data[12:]), command.STATUS)


class Strace:
    """Watches processes and their threads for the length of a `with` block.

    Attributes:
        calls: what they asked for; known at the end.
    """

    def __init__(self, pids: Sequence[int], output: Path, inject: str | None = None) -> None:
        """Describe it: `inject` as strace's option, such as `fsync:error=EIO:when=1`."""
        self.calls: list[Call] = []
        self._output = output
        options = ["-f", "-y", "-x", "-s", "400", "-o", str(output), "-e", f"trace={CALLS}"]
        options += ["-e", f"inject={inject}"] if inject else []
        self._command = [require_program("strace", "strace"), *options]
        self._pids = pids

    def __enter__(self) -> Self:
        watched = [word for pid in self._pids for word in ("-p", str(pid))]
        self._process = subprocess.Popen(
            [*self._command, *watched], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for _ in self._pids:
            line = self._process.stderr.readline()
            assert "attached" in line, line
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            # It may wait for ever for the first thread of a process that it has seen end.
            self._process.kill()
            self._process.communicate()
        self.calls = read_calls(self._output.read_text())


def read_calls(text: str) -> list[Call]:
    """Return the calls in an output of strace, in the order in which they ended."""
    calls: list[Call] = []
    begun: dict[str, Call] = {}
    for number, line in enumerate(text.splitlines()):
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        thread, name, resumed, rest = found.groups()
        call = begun.pop(thread, None) if resumed else None
        if call is None:
            call = Call(
                name=name or resumed, arguments="", result=0, begun=number, ended=0, injected=False
            )
        if rest.endswith(_UNFINISHED):
            begun[thread] = replace(call, arguments=rest.removesuffix(_UNFINISHED))
            continue
        end = _END.fullmatch(rest)
        if end is not None:
            calls.append(
                replace(
                    call,
                    arguments=call.arguments + end[1],
                    result=int(end[2]),
                    ended=number,
                    injected="(INJECTED)" in end[3],
                )
            )
    return calls
