"""What values show of themselves, and what is recorded of them."""

from typing import NamedTuple

import pytest

from fngrad.programs.printed import preformatted, recorded, shown


class Pair(NamedTuple):
    a: int
    b: object

    def __repr__(self):
        return shown(self, lambda pair: f"<{pair.a} and {pair.b + 1}>")


def test_a_record_shows_the_fields_of_nested_tuples():
    assert repr(Pair(1, 2)) == "<1 and 3>"
    assert recorded([Pair(1, Pair(2, 3))]) == "[Pair(a=1, b=Pair(a=2, b=3))]"
    assert repr(Pair(1, 2)) == "<1 and 3>"


def test_a_record_has_no_addresses():
    assert recorded(object()) == "<object object>"


def test_a_record_that_fails_leaves_the_texts_for_people():
    class Rude:
        def __repr__(self):
            raise OSError("rude")

    with pytest.raises(OSError, match="rude"):
        recorded(Rude())
    assert repr(Pair(1, 2)) == "<1 and 3>"


def test_a_repr_does_not_fail():
    assert repr(Pair(1, "text")) == "Pair(...)"


def test_text_is_escaped_in_html():
    text = preformatted("<b> & more", "second line")
    assert text.endswith(">&lt;b&gt; &amp; more\nsecond line</pre>")
    assert text.startswith("<pre ")
