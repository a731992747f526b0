"""Several commands write one Markdown file, each a part of its own."""

import pathlib
import re


def write(path: pathlib.Path, text: str) -> None:
    """Put `text`, which begins with a heading "# ...", in the place of the old part."""
    old = path.read_text("utf-8") if path.exists() else ""
    parts = [part.strip() for part in re.split(r"(?m)^(?=# )", old) if part.strip()]
    heading = text.partition("\n")[0]
    for i, part in enumerate(parts):
        if part.partition("\n")[0] == heading:
            parts[i] = text.strip()
            break
    else:
        parts.append(text.strip())
    path.write_text("\n\n".join(parts) + "\n", "utf-8")
