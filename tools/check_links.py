"""Every link and picture of a built site leads to a file of it, and to a place in that file:
python tools/check_links.py folder"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One element's."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def wrong(folder: Path) -> tuple[int, list[str]]:
    """How many links lead inside, and those that lead nowhere."""
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in folder.rglob("*.html")}
    count, found = 0, []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#":
                continue
            count += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            inside = target in pages and parts.fragment
            if not target.exists():
                found.append(f"{path.relative_to(folder.resolve())}: {link}: no such file")
            elif inside and unquote(parts.fragment) not in pages[target].places:
                found.append(f"{path.relative_to(folder.resolve())}: {link}: no such place")
    return count, found


def main(folder: str) -> int:
    """Prints what leads nowhere; 1 if anything does."""
    count, found = wrong(Path(folder))
    print(*found, f"{count} links inside, {len(found)} lead nowhere", sep="\n")
    return 1 if found or not count else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
