"""An independent reader of our HTML: the standard library's parser."""

import html.parser
import re
import xml.etree.ElementTree as ET

_VOID = {"meta", "br", "hr", "img", "input", "link", "line", "path", "use"}


class Reader(html.parser.HTMLParser):
    """Checks that tags balance; collects ids, links, headings and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.text = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in _VOID:
            self.open.append(tag)
        self._keep(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self._keep(tag, attrs)

    def _keep(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def svgs(page):
    """Every plot's SVG, parsed as XML."""
    found = re.findall(r"<svg xmlns.*?</svg>", page, flags=re.DOTALL)
    return [ET.fromstring(text) for text in found]
