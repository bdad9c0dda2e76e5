"""w^l, δ_i^{l+1} and ∇_y of a docstring, which is plain text, as indices above and below."""

import re
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

# One letter has an index, a bracket or a norm, so that names such as squared_norms have none.
_SHORT = r"-?(?:in|out|test|ip|ij|il|[A-Za-z0-9]{1,2})(?![A-Za-z0-9_])"
_INDEX = rf"[_^](?:\{{[^{{}}]*\}}|\([^()]*(?:\([^()]*\))?[^()]*\)|{_SHORT})"
_INDEXED = re.compile(
    rf"(?:(?<![A-Za-z0-9_])(?:E|[^\W\d_])[\u0300-\u036f]?|[)\]‖ḡãΣ∇∂])((?:{_INDEX})+)"
)
_ONE = re.compile(_INDEX)
_WORDS = (
    nodes.literal,
    nodes.literal_block,
    nodes.doctest_block,
    nodes.math,
    nodes.math_block,
    nodes.image,
)


class Indices(SphinxPostTransform):
    """Of all text but code and equations."""

    default_priority = 900
    formats = ("html",)

    def run(self, **_: Any) -> None:
        """Every text in place."""
        for text in [*self.document.findall(nodes.Text)]:
            parent = text.parent
            while parent is not None and not isinstance(parent, _WORDS):
                parent = parent.parent
            if parent is None and (parts := indexed(text.astext())):
                text.parent.replace(text, parts)


def indexed(text: str) -> list[nodes.Node]:
    """The text in parts, indices apart; none where there is no index."""
    parts: list[nodes.Node] = []
    end = 0
    for found in _INDEXED.finditer(text):
        parts.append(nodes.Text(text[end : found.start(1)]))
        for sign, *index in _ONE.findall(found[1]):
            inside = "".join(index).strip("{}").replace("-", "−")
            kind = nodes.superscript if sign == "^" else nodes.subscript
            parts.append(kind("", "", *(indexed(inside) or [nodes.Text(inside)])))
        end = found.end(1)
    return [*parts, nodes.Text(text[end:])] if parts else []
