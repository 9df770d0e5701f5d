"""Hashes of content and of files, to compare them."""

import hashlib
import json
from pathlib import Path
from typing import Any


def content_hash(content: Any) -> str:
    """16 hexadecimal digits of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
