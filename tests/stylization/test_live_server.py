"""The page of live painting: what it gives, what it refuses, and how it works in a browser."""

import http.client
import importlib.util
import io
import itertools
import json
import re
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from faststy.errors import FaststyError
from faststy.stylization import live_server
from faststy.stylization.live import Live
from faststy.stylization.live_server import LiveServer, read_dials

spec = importlib.util.spec_from_file_location(
    "live_screenshot", Path(__file__).parents[2] / "tools" / "live_screenshot.py"
)
live_screenshot = importlib.util.module_from_spec(spec)
spec.loader.exec_module(live_screenshot)


class Tinter:
    """Stands in for a stylizer: rain paints red, night blue, at the strength that is set."""

    styles = ("rain", "starry_night")
    model = SimpleNamespace(repairer=None)
    backend = "a test"

    def painter(self, **dials):
        self.dials = {"strength": 1.0, **dials}
        return self

    def set(self, **dials):
        for name in set(dials.get("style", {})) - set(self.styles):
            raise FaststyError(f"unknown style '{name}'")
        self.dials |= dials

    def __call__(self, frame):
        style, strength = self.dials["style"], self.dials["strength"]
        red, blue = style.get("rain", 0), style.get("starry_night", 0)
        tint = np.array([255 * red, 0, 255 * blue])
        return (frame + strength * (tint - frame)).astype(np.uint8)


def green_frames():
    while True:
        time.sleep(0.01)
        yield np.full((90, 160, 3), (0, 200, 0), np.uint8)


buffer = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
RED = buffer.getvalue()


@pytest.fixture
def server():
    with (
        Live(Tinter(), green_frames(), style={"rain": 1.0}) as live,
        LiveServer(live, source="a <b>test</b>", thumbnails=[RED] * 2) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, knows=True, **headers):
    """Status, headers and body, for who knows the token, or does not."""
    if knows:
        path += f"{'&' if '?' in path else '?'}token={server.token}"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        connection.request(method, path, body, names)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def turn(server, dials, knows=True, **headers):
    kind = {"Content_Type": "application/json", **headers}
    body = dials if isinstance(dials, str) else json.dumps(dials)
    return ask(server, "POST", "/dials", body, knows, **kind)


def test_it_listens_on_this_computer_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/?token={server.token}"


def test_nobody_looks_without_the_token(server):
    """Other users of this computer can reach the port, too."""
    for path in ("/", "/state", "/frame", "/style/1", "/frame?token=", "/frame?token=x", "/other"):
        for cookie in ("", f"token={server.token}", f"faststy-{server.server_port}={server.token}"):
            status, _, body = ask(server, "GET", path, knows=False, Cookie=cookie)
            assert status == 403
            assert server.token.encode() not in body
            assert json.loads(body)["error"].startswith("open the whole address that faststy live")
    assert turn(server, {"strength": 0.5}, knows=False)[0] == 403
    assert server.live.dials["strength"] == 1.0
    assert ask(server, "GET", f"/state?token={server.token}x", knows=False)[0] == 403
    assert ask(server, "GET", f"/state?token={server.token}", knows=False)[0] == 200
    assert len(server.token) > 40


def test_the_browser_keeps_nothing_that_it_would_tell_other_ports(server):
    """They share their cookies, and may be another user's."""
    for path in ("/", "/state", "/frame", "/style/1", "/other"):
        assert "Set-Cookie" not in ask(server, "GET", path)[1]


def test_each_request_of_the_page_holds_the_token():
    page = live_server.PAGE.read_text("utf-8")
    asked = re.findall(r"""["`](/(?:frame|dials|state|style)[^"`]*)""", page)
    assert len(asked) == 4
    assert all(re.search(r"[?&]\$\{token\}$", each) for each in asked)


def test_each_server_has_a_token_of_its_own(server):
    with LiveServer(server.live, source="", thumbnails=[]) as other:
        assert other.token != server.token


def test_the_page_the_state_and_the_thumbnails(server):
    status, headers, page = ask(server, "GET", "/")
    assert status == 200
    assert b"<title>faststy live</title>" in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    state = json.loads(ask(server, "GET", "/state")[2])
    assert state == {
        "source": "a <b>test</b>",
        "styles": ["rain", "starry_night"],
        "dials": {
            "style": {"rain": 1.0},
            "strength": 1.0,
            "repair": 0.0,
            "keep_color": False,
            "stroke": None,
        },
        "has_repair": False,
        "backend": "a test",
    }
    assert Image.open(io.BytesIO(ask(server, "GET", "/style/1")[2])).size == (8, 8)


def test_frames_and_dials(server):
    status, headers, data = ask(server, "GET", "/frame?after=0")
    assert status == 200
    both = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert both.shape == (180, 160, 3)
    np.testing.assert_allclose(both[:80].mean((0, 1)), [0, 200, 0], atol=4)
    np.testing.assert_allclose(both[100:].mean((0, 1)), [255, 0, 0], atol=4)
    assert abs(time.time() - float(headers["X-Captured"]) / 1000) < 30
    assert turn(server, {"style": {"rain": 0.5, "starry_night": 0.5}, "strength": 0.5})[0] == 200
    for _ in range(3):  # one may have been shown before, and one begun
        before = int(headers["X-Number"])
        status, headers, data = ask(server, "GET", f"/frame?after={before}")
        assert int(headers["X-Number"]) > before
    painting = np.asarray(Image.open(io.BytesIO(data))).astype(int)[100:]
    np.testing.assert_allclose(painting.mean((0, 1)), [64, 100, 64], atol=4)


LINK = {
    "Sec_Fetch_Site": "cross-site",
    "Sec_Fetch_Mode": "navigate",
    "Sec_Fetch_Dest": "document",
}


def test_a_link_on_another_page_leads_here(server):
    status, headers, body = ask(server, "GET", "/", **LINK)  # a terminal may be such a page
    assert status == 200
    assert body == live_server.PAGE.read_bytes()
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {"Host": "evil.example"}),
        ("GET", "/", {**LINK, "Host": "evil.example"}),
        ("GET", "/", {**LINK, "Sec_Fetch_Dest": "iframe"}),
        ("GET", "/frame", LINK),
        ("GET", "/frame", {"Host": "127.0.0.1:1"}),
        ("GET", "/state", {"Host": "evil.example:PORT"}),
        ("GET", "/state", {"Origin": "http://evil.example"}),
        ("GET", "/frame", {"Sec_Fetch_Site": "cross-site"}),
        ("POST", "/dials", {"Origin": "null", "Content_Type": "application/json"}),
    ],
)
def test_other_pages_are_refused(server, method, path, headers):
    headers = {k: v.replace("PORT", str(server.server_port)) for k, v in headers.items()}
    status, _, body = ask(server, method, path, "{}" if method == "POST" else None, **headers)
    assert status == 403
    assert json.loads(body) == {"error": "this page is for this computer only"}


def test_localhost_is_this_computer_too(server):
    host = f"localhost:{server.server_port}"
    assert ask(server, "GET", "/state", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/live.html",
        "/../live.py",
        "/%2e%2e/live.py",
        "/style/9",
        "/style/../../live.py",
        "//etc/passwd",
        "/etc/passwd",
        "/style/",
        "/nonsense?a=b",
    ],
)
def test_no_other_file_is_served(server, path):
    assert ask(server, "GET", path)[0] == 404


@pytest.mark.parametrize("after", ["", "-1", "x", "9" * 10_000, "%00", "%D9%A1"])
def test_odd_numbers_of_frames_do_no_harm(server, after):
    assert ask(server, "GET", f"/frame?after={after}")[0] in (200, 400)
    assert ask(server, "GET", "/frame?after=0")[0] == 200


@pytest.mark.parametrize(
    ("dials", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[" * 4000, ""),
        ("[]", "dials are one JSON object"),
        ('{"strength": NaN}', "strength is nan; expected a number from 0 to 1"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"strength": "1"}, "strength is '1'"),
        ({"repair": True}, "repair is True"),
        ({"keep_color": 1}, "keep_color is 1"),
        ({"stroke": "2"}, "stroke is '2'; expected 1, 2, 4 or null"),
        ({"stroke": 3}, "stroke is 3"),
        ({"stroke": True}, "stroke is True"),
        ({"stroke": 2.0}, "stroke is 2.0"),
        ({"style": "rain"}, "style is no object of numbers"),
        ({"style": {"rain": None}}, "style is no object of numbers"),
        ({"style": {"snow": 1}}, "unknown style"),
        ({"half_life": 0}, "there is no dial 'half_life'"),
        ('{"strength": %s}' % ("9" * 350), "strength is 999"),
        ('{"style": {"rain": %s}}' % ("9" * 350), "style is no object of numbers"),
        ('{"style": {"\\ud800": 1}}', "unknown style '\ud800'"),
        ('{"\\ud800": 1}', "there is no dial '\\ud800'"),
    ],
)
def test_wrong_dials_are_refused_and_change_nothing(server, dials, reason):
    before = dict(server.live.dials)
    status, _, body = turn(server, dials)
    assert status == 400
    assert reason in json.loads(body)["error"]
    assert server.live.dials == before


def test_requests_are_bounded(server):
    assert turn(server, " " * 5000)[0] == 413
    assert turn(server, "{}", Content_Length="9" * 30)[0] == 413
    assert turn(server, "{}", Content_Length="9" * 5000)[0] == 413
    assert turn(server, "{}", Content_Length="-1")[0] == 413
    assert turn(server, "{}", Content_Type="text/plain")[0] == 415
    assert ask(server, "POST", "/other", "{}", Content_Type="application/json")[0] == 404
    assert ask(server, "DELETE", "/")[0] == 501
    assert ask(server, "GET", "/" + "a" * 70_000)[0] == 414


def test_connections_are_bounded_and_silent_ones_are_closed(server, monkeypatch):
    monkeypatch.setattr(live_server._Handler, "timeout", 1.0)
    address = ("127.0.0.1", server.server_port)
    idle = [socket.create_connection(address, 10) for _ in range(live_server.MOST_CONNECTIONS)]
    time.sleep(0.2)
    assert len(server._guests) == live_server.MOST_CONNECTIONS
    begin = time.monotonic()
    assert ask(server, "GET", "/state")[0] == 200  # the owner takes the place of the first
    assert idle.pop(0).recv(1) == b""
    assert time.monotonic() - begin < 0.7
    for connection in idle:
        assert connection.recv(1) == b""  # closed after their time
        connection.close()
    assert ask(server, "GET", "/state")[0] == 200


def test_who_has_shown_the_token_keeps_its_place(server):
    known = [
        http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        for _ in range(live_server.MOST_CONNECTIONS)
    ]
    for _ in range(2):
        for connection in known:
            connection.request("GET", f"/style/0?token={server.token}")
            assert connection.getresponse().read() == RED
        with socket.create_connection(("127.0.0.1", server.server_port), 10) as one_more:
            assert one_more.recv(1) == b""  # closed at once
    for connection in known:
        connection.close()


def test_several_look_and_one_goes_away_in_the_middle(server):
    """Each sees new paintings, in order; who breaks off disturbs nobody and keeps no place."""
    lines = (f"GET /frame?token={server.token} HTTP/1.1", f"Host: 127.0.0.1:{server.server_port}")
    request = "\r\n".join([*lines, "", ""]).encode()
    for _ in range(2 * live_server.MOST_CONNECTIONS):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as gone:
            gone.sendall(request)
        time.sleep(0.02)
    seen = [[0], [0]]

    def look(numbers):
        for _ in range(10):
            status, headers, _ = ask(server, "GET", f"/frame?after={numbers[-1]}")
            assert status == 200
            numbers.append(int(headers["X-Number"]))

    threads = [threading.Thread(target=look, args=(numbers,)) for numbers in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for numbers in seen:
        assert len(numbers) == 11
        assert all(b > a for a, b in itertools.pairwise(numbers))


def test_a_camera_that_stalls_is_told(server, monkeypatch):
    monkeypatch.setattr(live_server, "PATIENCE", 0.1)
    _, headers, _ = ask(server, "GET", "/frame?after=0")
    server.live._stopped = True
    number = int(headers["X-Number"])
    for _ in range(50):
        status, headers, _ = ask(server, "GET", f"/frame?after={number}")
        if status == 204:
            return
        number = int(headers["X-Number"])
    raise AssertionError("frames without a camera")


def test_a_camera_that_failed_is_told(server):
    server.live.error = "unplugged"
    number = 0
    for _ in range(50):
        status, headers, body = ask(server, "GET", f"/frame?after={number}")
        if status == 503:
            break
        number = int(headers["X-Number"])
        server.live._stopped = True  # no further frames
    assert json.loads(body) == {"error": "unplugged"}


def test_a_taken_port_is_one_sentence(server):
    port = server.server_port
    with pytest.raises(FaststyError, match=f"port {port} cannot be used .* another by --port"):
        LiveServer(server.live, source="", thumbnails=[], port=port)


def test_dials_that_are_right_pass_unchanged():
    dials = {"strength": 0, "repair": 1.0, "keep_color": False, "style": {"a": 0.5, "b": 2}}
    dials |= {"stroke": 2}
    assert read_dials(dials) == dials
    assert read_dials({}) == {}


@pytest.mark.skipif(live_screenshot.find_chromium() is None, reason="there is no chromium here")
def test_the_page_in_a_browser(server):
    live = server.live

    def colour_at(x):
        return f"""(() => {{ const c = document.querySelector('canvas');
            return [...c.getContext('2d').getImageData(c.width * {x}, 45, 1, 1).data]; }})()"""

    def wait_for_dial(name, value):
        end = time.monotonic() + 20
        while live.dials[name] != value and time.monotonic() < end:
            time.sleep(0.02)
        assert live.dials[name] == value

    with live_screenshot.Chromium(900, 700) as browser:
        browser.open(server.url)
        browser.wait_for("document.querySelector('#message')?.hidden")
        assert (
            browser.run("document.querySelector('#source').textContent") == "a <b>test</b> · a test"
        )
        assert browser.run(
            "[...document.querySelectorAll('.style b')].map(b => b.textContent)"
        ) == [
            "rain",
            "starry night",
        ]
        # the camera is left of the divider, the painting right of it
        assert browser.run(colour_at(0.2))[1] > 150
        assert browser.run(colour_at(0.8))[0] > 200
        browser.press("#stage", x=0.9)
        browser.wait_for(f"{colour_at(0.8)}[1] > 150")
        browser.press("#stage", x=0.1)
        browser.wait_for(f"{colour_at(0.2)}[0] > 200")

        browser.press(".style[data-style='starry_night']")
        wait_for_dial("style", {"starry_night": 1})
        browser.wait_for(f"{colour_at(0.8)}[2] > 200")
        assert browser.run("document.querySelector('.style[aria-pressed=true] b').textContent") == (
            "starry night"
        )

        browser.press("#strength", x=0.02)
        browser.wait_for("Number(document.querySelector('#strength').value) < 0.1")
        browser.wait_for(f"{colour_at(0.8)}[1] > 150")
        assert live.dials["strength"] < 0.1
        assert browser.run("document.querySelector('#repair').disabled")

        assert browser.run("document.querySelector('#mix').disabled")
        browser.run(
            "(o => { o.value = 'rain'; o.dispatchEvent(new Event('input', {bubbles: true})); })"
            "(document.querySelector('#other'))"
        )
        wait_for_dial("style", {"starry_night": 0.5, "rain": 0.5})
        browser.press("#keep_color")
        wait_for_dial("keep_color", True)
        browser.run(
            "(o => { o.value = '2'; o.dispatchEvent(new Event('input', {bubbles: true})); })"
            "(document.querySelector('#stroke'))"
        )
        wait_for_dial("stroke", 2)

        browser.wait_for("Number(document.querySelector('#fps').textContent) > 0")
        browser.wait_for("Number(document.querySelector('#latency').textContent) >= 0")
        assert browser.picture().size == (900, 700)
        assert browser.errors == []


@pytest.mark.skipif(live_screenshot.find_chromium() is None, reason="there is no chromium here")
@pytest.mark.parametrize(
    ("width", "height"), [(390, 844), (640, 360), (844, 390), (800, 600), (1280, 800)]
)
def test_nothing_is_cut_off_or_overlaps(monkeypatch, width, height):
    """With twelve styles, from a phone's width on; and a tab that is seen again shows new dials."""
    names = tuple(f"style_number_{i}" for i in range(12))
    monkeypatch.setattr(Tinter, "styles", names)
    with (
        Live(Tinter(), green_frames(), style={names[0]: 1.0}) as live,
        LiveServer(live, source="a test", thumbnails=[]) as server,
        live_screenshot.Chromium(width, height) as browser,
    ):
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            browser.open(server.url)
            browser.wait_for("document.querySelector('#message')?.hidden")
            room = browser.run(
                "document.documentElement.clientWidth"
            )  # less than width: it scrolls
            assert browser.run("document.documentElement.scrollWidth") == room
            parts = browser.run(
                """["header", "#stage", "#styles", "#strength", "#mixing", "#more"].map((e) => {
                const box = document.querySelector(e).getBoundingClientRect();
                return [box.left, box.right, box.top, box.bottom]; })"""
            )
            for left, right, top, bottom in parts:
                assert 0 <= left < right <= width
                assert top < bottom
            assert parts[1][3] - parts[1][2] > 180  # the picture is no stamp
            for above, below in itertools.pairwise(parts[:4]):
                assert above[3] <= below[2]
            assert parts[1][1] - parts[1][0] >= 0.35 * width  # the picture is not squeezed

            live.set(strength=0.3, style={names[5]: 1.0})
            browser.run("document.dispatchEvent(new Event('visibilitychange'))")
            browser.wait_for("document.querySelector('#strength').value === '0.3'")
            chosen = "document.querySelector('.style[aria-pressed=true]').dataset.style"
            assert browser.run(chosen) == names[5]
        finally:
            server.shutdown()


@pytest.mark.skipif(live_screenshot.find_chromium() is None, reason="there is no chromium here")
def test_the_dials_are_those_of_a_server_that_started_again(monkeypatch):
    """And what it does not take is told, and turned back."""
    # Each request has a connection of its own: none outlives its server, as none does a process.
    monkeypatch.setattr(live_server.secrets, "token_urlsafe", lambda: "same")
    monkeypatch.setattr(live_server._Handler, "protocol_version", "HTTP/1.0")
    with live_screenshot.Chromium(900, 700) as browser:
        port = 0
        for dials in ({"rain": 1.0}, {"starry_night": 1.0}):
            with (
                Live(Tinter(), green_frames(), style=dials) as live,
                LiveServer(live, source="a test", thumbnails=[RED] * 2, port=port) as server,
            ):
                threading.Thread(target=server.serve_forever, args=(0.01,)).start()
                try:
                    if not port:
                        browser.open(server.url)
                    name = next(iter(dials))
                    pressed = "document.querySelector('.style[aria-pressed=true]')?.dataset.style"
                    browser.wait_for(f"{pressed} === '{name}'")
                    browser.wait_for("document.querySelector('#message').hidden")
                    assert browser.run("document.querySelectorAll('.style').length") == 2
                    port = server.server_port
                    if name == "starry_night":
                        browser.run("choose('snow'); mixed = true; send()")
                        told = "document.querySelector('#message').textContent"
                        browser.wait_for(f"{told} === \"unknown style 'snow'\"")
                        browser.wait_for(f"{pressed} === 'starry_night'")
                        assert browser.run("!document.querySelector('#message').hidden")
                finally:
                    server.shutdown()
            if name == "rain":
                browser.wait_for(
                    "document.querySelector('#message').textContent.includes('stopped')"
                )


@pytest.mark.skipif(live_screenshot.find_chromium() is None, reason="there is no chromium here")
def test_a_page_of_an_earlier_run_says_what_to_open(monkeypatch):
    monkeypatch.setattr(live_server._Handler, "protocol_version", "HTTP/1.0")
    message = "document.querySelector('#message')"
    with live_screenshot.Chromium(900, 700) as browser:
        port = 0
        for done in (f"{message}?.hidden", f"{message}.textContent.startsWith('open the whole')"):
            with (
                Live(Tinter(), green_frames(), style={"rain": 1.0}) as live,
                LiveServer(live, source="a test", thumbnails=[RED] * 2, port=port) as server,
            ):
                threading.Thread(target=server.serve_forever, args=(0.01,)).start()
                try:
                    if not port:
                        browser.open(server.url)
                    browser.wait_for(done)
                    port = server.server_port
                    if "open" in done:
                        browser.open(server.url)
                        browser.wait_for(f"{message}?.hidden")
                finally:
                    server.shutdown()


@pytest.mark.skipif(live_screenshot.find_chromium() is None, reason="there is no chromium here")
def test_a_mixture_of_more_than_two_is_kept(monkeypatch):
    """The page has dials for two styles; what else is in the mixture stays and is shown."""
    names = ("rain", "starry_night", "ink", "wood_cut")
    monkeypatch.setattr(Tinter, "styles", names)
    mixture = {"rain": 0.4, "starry_night": 0.3, "ink": 0.2, "wood_cut": 0.1}

    def until(true):
        end = time.monotonic() + 20
        while not true() and time.monotonic() < end:
            time.sleep(0.02)
        assert true(), live.dials

    with (
        Live(Tinter(), green_frames(), style=mixture) as live,
        LiveServer(live, source="a test", thumbnails=[RED] * 4) as server,
        live_screenshot.Chromium(900, 700) as browser,
    ):
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            browser.open(server.url)
            browser.wait_for("document.querySelector('#message')?.hidden")
            shown = "[...document.querySelectorAll('#mixing output, #rest')].map(e => e.innerText)"
            assert browser.run(shown) == ["30 %", "and ink 20 %, wood cut 10 %"]
            browser.press("#strength", x=0.3)
            until(lambda: live.dials["strength"] < 1)
            assert live.dials["style"] == mixture

            browser.press("#mix", x=0.99)  # as far as the others leave room
            until(lambda: live.dials["style"]["starry_night"] > 0.6)
            turned = live.dials["style"]
            assert turned["starry_night"] == pytest.approx(0.7, abs=0.02)
            assert sum(turned.values()) == pytest.approx(1)
            assert [turned["ink"], turned["wood_cut"]] == pytest.approx([0.2, 0.1])

            browser.run(
                "(o => { o.value = 'ink'; o.dispatchEvent(new Event('input', {bubbles: true})); })"
                "(document.querySelector('#other'))"
            )
            until(lambda: "starry_night" not in live.dials["style"])
            assert live.dials["style"]["wood_cut"] == pytest.approx(0.1)
            assert browser.run(shown)[1] == "and wood cut 10 %"

            browser.press(".style[data-style='starry_night']")  # one's own choice
            until(lambda: "wood_cut" not in live.dials["style"])
            assert set(live.dials["style"]) == {"starry_night", "ink"}
            assert browser.run("document.querySelector('#rest').hidden")
            assert browser.errors == []
        finally:
            server.shutdown()
