"""What MkDocs does not do by itself: pages from outside of docs/, and links as a git host knows them.

The pages are written for a git host, where a link is relative to its file and may lead to any file of the repository.
Here a link to a page of the site stays one, and a link to any other file becomes one to the repository. A link that
leads nowhere is a warning, which `mkdocs build --strict` refuses; MkDocs itself checks the anchors.
"""

import logging
import os
from posixpath import join, normpath, relpath
from urllib.parse import urlsplit

from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString
from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.hooks.site")

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Pages that are not in docs/: their file in the repository, and their name in the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "crates/emulator/README.md": "emulator.md",
    "deploy/chart/README.md": "chart.md",
    "dev/cluster/README.md": "control-plane.md",
}
SOURCES = {name: source for source, name in PAGES.items()}


def source_of(name):
    """The file in the repository of a page of the site."""
    return SOURCES.get(name) or join("docs", name)


def name_of(source):
    """The page of the site that a file in the repository is, if it is one."""
    if source in PAGES:
        return PAGES[source]
    if source.startswith("docs/") and os.path.isfile(join(ROOT, source)):
        return source.removeprefix("docs/")
    return None


class Page(Treeprocessor):
    """Makes of the page that is being rendered what a git host makes of it."""

    name = None
    repository = None

    def run(self, root):
        # In a table's cell a git host takes the backslash of \| away, also in code; Python-Markdown leaves it there.
        for cell in root.iter("td"):
            for code in cell.iter("code"):
                code.text = AtomicString(code.text.replace("\\|", "|"))
        for element in root.iter():
            for attribute in ("href", "src"):
                link = element.get(attribute)
                if link:
                    element.set(attribute, self.turned(link))

    def turned(self, link):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or not parts.path:
            return link
        source = source_of(self.name)
        target = normpath(join(os.path.dirname(source), parts.path))
        if name := name_of(target):
            return relpath(name, os.path.dirname(self.name) or ".") + link[len(parts.path):]
        path = join(ROOT, target)
        if target.startswith("..") or not os.path.exists(path):
            log.warning("%s has a link to %s, which is no file of the repository", source, link)
        kind = "tree" if os.path.isdir(path) else "blob"
        return f"{self.repository}/{kind}/HEAD/{target}{link[len(parts.path):]}"


class AsOnAGitHost(Extension):
    def extendMarkdown(self, md):
        # After the links are parsed (20), before MkDocs resolves them (0).
        md.treeprocessors.register(Page(md), "git-host", 10)


def on_config(config):
    Page.repository = config.repo_url.rstrip("/")
    config.markdown_extensions.append(AsOnAGitHost())
    return config


def on_files(files, config):
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=join(ROOT, source)))
    return files


def on_page_markdown(markdown, page, config, files):
    Page.name = page.file.src_uri
    page.edit_url = f"{Page.repository}/edit/HEAD/{source_of(Page.name)}"
    return markdown
