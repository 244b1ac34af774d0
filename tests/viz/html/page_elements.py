"""What a page embeds, for those who read it without a browser."""

import json
import re
from pathlib import Path
from typing import Any

_ELEMENT = re.compile(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', re.DOTALL)


def elements(path: Path) -> dict[str, Any]:
    """Return the plain JSON data of a page, by the id of its element."""
    return {name: json.loads(text) for name, text in _ELEMENT.findall(path.read_text())}
