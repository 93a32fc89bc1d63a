"""The paths of an archive's members: which are taken, by their text alone, and how one that is not is told."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from tinyexp.errors import DataError

MAX_PART, MAX_PATH = 255, 1024  # bytes of UTF-8: what Linux and a Mac take

_DRIVE = re.compile(r"(\./+)*[A-Za-z]:")


class Tree:
    """Paths, of which no two may be one: here, or on a disk that does not tell case or ways to write é apart."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._seen: dict[str, tuple[str, str, bool]] = {}  # folded path -> path, member, a folder that was not listed
        self._folders: set[str] = set()

    def add(self, path: str, member: str, *, is_folder: bool) -> str:
        """The path, normalised. Raises DataError for one that breaks a rule, or is another's."""
        if rule := broken_rule(path):
            raise refusal(self._archive, member, rule if path == member else f"would be at {shown(path)}, which {rule}")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts and not is_folder:  # "./" is the folder itself, which many a tar lists
            raise refusal(self._archive, member, "has an empty name")
        for depth in range(len(parts) - 1, 0, -1):
            parent = "/".join(parts[:depth])
            if parent in self._folders:
                break
            self._take(parent, member, is_folder=True, listed=False)
        path = "/".join(parts)
        self._take(path, member, is_folder=is_folder, listed=True)
        return path

    def _take(self, path: str, member: str, *, is_folder: bool, listed: bool) -> None:
        folded = path.lower() if path.isascii() else _fold(path)
        if folded in self._seen:
            other, its_member, implied = self._seen[folded]
            if not (implied and is_folder and other == path):
                told = f"and {shown(its_member)} would be in one place, here or on a disk that does not tell case apart"
                raise refusal(self._archive, member, told)
        self._seen[folded] = (path, member, not listed)
        if is_folder:
            self._folders.add(path)


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def broken_rule(path: str) -> str | None:
    """What is wrong with a path, read as text alone."""
    parts = path.split("/")
    if not path:
        return "has an empty name"
    if not path.isprintable() and any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in path):
        return "has a control character, or one that is not UTF-8, in its name"
    if path.startswith("/"):
        return "has an absolute path"
    if ".." in parts:
        return "has a part .. in its path"
    if "\\" in path:
        return "has a backslash in its path"
    if _DRIVE.match(path):
        return "has a drive letter in its path"
    size = len(path.encode())
    if size > MAX_PATH or (size > MAX_PART and max(len(part.encode()) for part in parts) > MAX_PART):
        return f"has a name that is too long: at most {MAX_PART} bytes a part, {MAX_PATH} in all"
    return None


def refusal(archive: Path, member: str, rule: str) -> DataError:
    return DataError(
        f"{archive} is refused, nothing was unpacked: its member {shown(member)} {rule}. "
        "Fetch it from a source that you trust, or pack its files anew"
    )


def shown(name: str) -> str:
    """Control characters would write on a terminal what they like."""
    text = repr(name)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-90:]}"
