"""What the examples of a page print and draw: compared with the page, or written into it.

A page shows the output of an example directly below it: a ``text`` block below Python, a
``console`` block below a command. A picture ``![...](pictures/PAGE-NAME.svg)`` below them is the
file NAME.svg that the example has saved. With the environment variable UPDATE_DOCS=1 the outputs
and pictures are written instead of compared.
"""

import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

UPDATE = os.environ.get("UPDATE_DOCS") == "1"

# The output below an example: its text, and the sentence above it where the words may differ too.
_OUTPUT = re.compile(
    r"\n+(?P<remark>\*The output differs from run to run[^\n]*\*\n\n)?"
    r"```(?:text|console)\n(?P<shown>.*?)^```\n",
    re.MULTILINE | re.DOTALL,
)
_PICTURE = re.compile(r"\n*!\[[^\]]+\]\((?P<path>pictures/[\w-]+\.svg)\)\n")
_KINDS = {"python": "text", "sh": "console"}
_NUMBER = re.compile(r"[-+]?(\d+(,\d{3})*(\.\d+)?|\.\d+)(e[-+]?\d+)?")
_TIME = re.compile(r"# ?(µs|ms|s|min|h|seconds?|minutes?|hours?)\b")


def same_words(text: str) -> list[str]:
    """The lines of a text, with # for each number, the unit of a time as one word, and one space
    for several: what must not differ between two machines."""
    lines = []
    for line in text.strip().splitlines():
        line = _TIME.sub("TIME", _NUMBER.sub("#", line))
        lines.append(re.sub(r"([-=─])\1+", r"\1", " ".join(line.split())))
    return lines


class PageOutputs:
    """The outputs on one page, in a file of the folder docs or beside it."""

    def __init__(self, page: Path, *, all_shown: bool = True) -> None:
        """With ``all_shown``, every example that prints needs its output on the page."""
        self._page, self._all_shown = page, all_shown
        self._text = page.read_text()
        self._written: list[tuple[int, int, str]] = []  # start, end, new text

    def run(self, kind: str, end: int, run: Callable[[], object], where: str) -> None:
        """Run one example; compare or write what it prints and draws.

        ``end`` is the position in the page behind the example's closing fence and its newline.
        """
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            run()
        sys.stdout.write(out.getvalue())
        printed = out.getvalue().replace(f"{Path.cwd()}/", "").rstrip()
        printed = "\n".join(line.rstrip() for line in printed.splitlines())
        found = _OUTPUT.match(self._text, end)
        if UPDATE:
            self._write(kind, end, printed, found)
        else:
            self._compare(printed, found, where)
        end = found.end() if found else end
        while picture := _PICTURE.match(self._text, end):
            self._draw(picture["path"])
            end = picture.end()

    def _write(self, kind: str, end: int, printed: str, found: re.Match[str] | None) -> None:
        stop, remark = (found.end(), found["remark"] or "") if found else (end, "")
        if found or (printed and self._all_shown):
            block = f"\n{remark}```{_KINDS[kind]}\n{printed}\n```\n" if printed else ""
            self._written.append((end, stop, block))

    def _compare(self, printed: str, found: re.Match[str] | None, where: str) -> None:
        if not found:
            assert not printed or not self._all_shown, (
                f"{where} prints, and no output is below it; UPDATE_DOCS=1 writes it:\n{printed}"
            )
            return
        shown, now = same_words(found["shown"]), same_words(printed)
        if found["remark"]:
            shown, now = ([line.split(" ")[0] for line in lines] for lines in (shown, now))
        assert shown == now, (
            f"the output of {where} on the page is not that of this run:\n{printed}"
        )

    def _draw(self, path: str) -> None:
        """Compare the words of a picture with those of the file that was saved, or copy it."""
        new = Path(path.removeprefix(f"pictures/{self._page.stem}-"))
        assert new.is_file(), f"{self._page.name} shows {path}, and no example saved {new}"
        old = self._page.parent / path
        if UPDATE:
            old.parent.mkdir(exist_ok=True)
            shutil.copy(new, old)
        assert words_in_picture(old) == words_in_picture(new)

    def close(self) -> None:
        """Write the page, if outputs are to be written and one has changed."""
        text = self._text
        for start, end, block in reversed(self._written):
            text = text[:start] + block + text[end:]
        if text != self._text:
            self._page.write_text(text)


def words_in_picture(path: Path) -> list[str]:
    """The texts in an SVG picture except numbers, such as titles and labels of axes."""
    texts = re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(), re.DOTALL)
    words = [" ".join(same_words(re.sub(r"<[^>]+>", "", text))) for text in texts]
    assert words, f"{path.name} has no text"
    return [text for text in words if text.strip("#−. ")]
