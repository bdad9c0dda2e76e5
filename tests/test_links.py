"""A built site is searched for what leads nowhere."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import check_links

HERE = '<h2 id="here">Here</h2>'


@pytest.mark.parametrize(
    ("link", "wrong"),
    [("b.html", ""), ("b.html#there", ""), ("#here", ""), ("sub/c.png", ""), ("sub/d%20e.png", ""),
     ("https://example.org/none", ""), ("#", ""), ("sub/", ""),
     ("none.html", "no such file"), ("sub/none.png", "no such file"), ("../b.html", "no such file"),
     ("b.html#none", "no such place"), ("#none", "no such place")],
)  # fmt: skip
def test_a_link_that_leads_nowhere_is_found(link, wrong, tmp_path, capsys):
    site = tmp_path / "site"
    (site / "sub").mkdir(parents=True)
    for name in ("sub/c.png", "sub/d e.png"):
        (site / name).write_bytes(b"")
    (site / "b.html").write_text('<a name="there" href="a.html">back</a>', "utf-8")
    kind = "img src" if link.endswith("png") else "a href"
    (site / "a.html").write_text(f'{HERE}<{kind}="{link}">', "utf-8")
    _, found = check_links.wrong(site)
    assert found == ([f"a.html: {link}: {wrong}"] if wrong else [])
    assert check_links.main(str(site)) == bool(wrong)
    assert f"{len(found)} lead nowhere" in capsys.readouterr().out


def test_a_site_without_links_is_no_site(tmp_path, capsys):
    assert check_links.main(str(tmp_path)) == 1
    assert "0 links inside" in capsys.readouterr().out
