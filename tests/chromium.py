"""A real Chromium, and what any page is asked in it."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

WIDTHS = (1280, 390)
TABS = 80
OVERLAPS = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.textContent.trim() || parent.closest("script,option,noscript,.skip")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const frame = parent.closest(".scroll")?.getBoundingClientRect();
    for (const r of range.getClientRects()) {
      const box = { left: r.left, right: r.right, top: r.top, bottom: r.bottom, node };
      if (frame) {
        box.left = Math.max(box.left, frame.left); box.right = Math.min(box.right, frame.right);
        box.top = Math.max(box.top, frame.top); box.bottom = Math.min(box.bottom, frame.bottom);
      }
      if (box.right - box.left > 1 && box.bottom - box.top > 1) found.push(box);
    }
  }
  const bad = [];
  for (let i = 0; i < found.length; i++) for (let j = i + 1; j < found.length; j++) {
    const a = found[i], b = found[j];
    if (a.node === b.node) continue;
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 3) bad.push([a.node.textContent, b.node.textContent]);
  }
  return [found.length, bad];
}"""
REACHABLE = """() => [...document.querySelectorAll(
  'a[href],button:not(:disabled),select,input,summary,[tabindex="0"]')]
  .filter((own) => !own.closest("details:not([open]) > :not(summary), dialog:not([open])"))
  .map((own, i) => { own.dataset.stop = i; return i; })"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs bevcask[browser]")
    names = (os.environ.get("BEVCASK_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        tell = pytest.fail if os.environ.get("BEVCASK_REQUIRE_CHROMIUM") else pytest.skip
        tell("no Chromium: apt install chromium, or set BEVCASK_CHROMIUM to one")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()
