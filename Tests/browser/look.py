#!/usr/bin/env python3
"""Looks at the page of the port for watching in a real browser, and prints what it found as JSON.

usage: look.py URL DIRECTORY      screenshots go to DIRECTORY

Chromium is driven by its own debugging protocol over two pipes, without any library.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time

SECONDS = 60
DESKTOP = {"width": 1280, "height": 1150, "deviceScaleFactor": 1, "mobile": False}
# The map of a disk of which a backup runs.
MAP = ("[...document.querySelectorAll('canvas')].find((canvas) => "
       "/read by the client .[1-9]/.test(canvas.getAttribute('aria-label')))")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


class Browser:
    """A headless Chromium with one tab."""

    def __init__(self, profile):
        to_child, self._out = os.pipe()
        self._in, from_child = os.pipe()
        words = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu",
                 "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
                 f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        command = f'exec "$@" 3<&{to_child} 4>&{from_child}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", *words], pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(to_child)
        os.close(from_child)
        self._rest = b""
        self._number = 0
        self.deadline = time.monotonic() + SECONDS
        self.seen = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call(
            "Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _next(self):
        while b"\0" not in self._rest:
            if time.monotonic() > self.deadline:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._in, 1 << 16)
            if not piece:
                raise EOFError("the browser has gone")
            self._rest += piece
        line, self._rest = self._rest.split(b"\0", 1)
        return json.loads(line)

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.seen.append(answer)

    def value(self, expression):
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression):
        while not self.value(expression):
            if time.monotonic() > self.deadline:
                raise TimeoutError(f"never true: {expression}")
            time.sleep(0.1)

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=code)

    def shoot(self, path):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))


def look(browser, url, directory):
    report = {}
    browser.call("Emulation.setDeviceMetricsOverride", **DESKTOP)
    browser.call("Emulation.setEmulatedMedia",
                 features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.call("Page.navigate", url=url)
    browser.wait(f"!!{MAP} && {MAP}.width > 0")
    browser.wait("/left|everything is read/.test(document.querySelector('#jobs').textContent)")
    report["text"] = browser.value("document.querySelector('main').innerText")
    report["status"] = browser.value("document.querySelector('#status').textContent")
    report["legend"] = browser.value(f"{MAP}.parentElement.innerText")
    report["label"] = browser.value(f"{MAP}.getAttribute('aria-label')")
    report["colors"] = colors(browser)
    browser.shoot(os.path.join(directory, "page-light.png"))
    report["keyboard"] = keyboard(browser)
    browser.value("document.activeElement.blur()")
    browser.call("Emulation.setEmulatedMedia",
                 features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.value("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
    report["dark"] = browser.value("getComputedStyle(document.body).backgroundColor")
    report["darkColors"] = colors(browser)
    browser.shoot(os.path.join(directory, "page-dark.png"))
    browser.call("Emulation.setDeviceMetricsOverride", **PHONE)
    browser.call("Emulation.setEmulatedMedia",
                 features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.value("new Promise((go) => setTimeout(go, 300))")
    report["phoneWidth"] = browser.value("innerWidth")
    report["phoneContent"] = browser.value("document.scrollingElement.scrollWidth")
    browser.shoot(os.path.join(directory, "page-phone.png"))
    report.update(complaints(browser, url))
    return report


def colors(browser):
    """How many pixels of the map have each of the colours of its legend."""
    return browser.value("""(() => {
      const canvas = %s;
      const style = getComputedStyle(canvas);
      const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      const counts = {};
      for (const name of ['hole', 'data', 'changed-1', 'changed-2', 'preserved', 'read']) {
        const hex = style.getPropertyValue('--' + name).trim();
        const want = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
        let count = 0;
        for (let at = 0; at < pixels.length; at += 4) {
          if (want.every((part, index) => pixels[at + index] === part)) count += 1;
        }
        counts[name] = count;
      }
      return counts;
    })()""" % MAP)


def keyboard(browser):
    """Goes to the first map by Tab alone, and from cell to cell by arrows."""
    browser.value("document.body.focus()")
    for _ in range(60):
        browser.press("Tab", 9)
        if browser.value("document.activeElement.tagName") == "CANVAS":
            break
    else:
        return []
    told = []
    for key, code in (("ArrowRight", 39), ("ArrowRight", 39), ("ArrowDown", 40), ("End", 35)):
        browser.press(key, code)
        told.append(browser.value("document.activeElement.nextElementSibling.textContent"))
    return told


def complaints(browser, url):
    """What the browser has complained about, and whom it has asked besides this server."""
    errors, strangers, failed = [], [], []
    # Said of this script itself, which counts pixels.
    own = "Multiple readback operations"
    for event in browser.seen:
        method, facts = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            errors.append(json.dumps(facts["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning"):
            errors.append(json.dumps(facts["args"])[:500])
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            errors.append(facts["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            if not facts["request"]["url"].startswith(url):
                strangers.append(facts["request"]["url"])
        elif method == "Network.responseReceived" and facts["response"]["status"] >= 400:
            failed.append(facts["response"]["url"])
    errors = [error for error in errors if own not in error]
    return {"errors": errors, "strangers": strangers, "failed": failed}


def main():
    url, directory = sys.argv[1:3]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            print(json.dumps(look(browser, url, directory), indent=1))
        finally:
            browser.close()


main()
