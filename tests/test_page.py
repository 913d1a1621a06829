import base64
import io
import re

from PIL import Image

from faststy.page import embed, glossary, page


def test_an_embedded_picture_does_not_tell_where_it_was_taken(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"  # GPS, of which this is the latitude's side
    exif[0x010F] = "a camera's maker"
    Image.new("RGB", (40, 20), (9, 99, 200)).save(tmp_path / "a.jpg", exif=exif)
    assert Image.open(tmp_path / "a.jpg").getexif().get_ifd(0x8825)
    tag = embed(tmp_path / "a.jpg", 20, "a <b>")
    assert 'alt="a &lt;b&gt;"' in tag
    assert "width=20 height=10" in tag
    data = re.search('base64,([^"]+)', tag)[1]
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert shown.size == (20, 10)
    assert not shown.getexif()


def test_an_embedded_picture_lies_on_white_without_a_fringe():
    seen = Image.new("L", (80, 40))
    seen.paste(255, (0, 0, 43, 40))
    white = seen.convert("RGB")  # and black where nobody sees it
    white.putalpha(seen)
    data = re.search('base64,([^"]+)', embed(white, 20, ""))[1]
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert shown.convert("L").getextrema()[0] > 250


def test_a_name_that_is_not_unicode_costs_no_page():
    text = page("a\udcff", f"{'a' * 100}\udcff.jpg λ")
    assert "<title>a? · faststy</title>" in text
    assert "a?.jpg λ" in text.encode().decode()


def test_a_glossary_has_each_word_with_its_meaning():
    text = glossary({"lost": "content < 0.2", "a & b": "both"})
    assert "<dt>lost<dd>content &lt; 0.2<dt>a &amp; b<dd>both</dl>" in text
