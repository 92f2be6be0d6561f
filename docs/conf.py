"""The site of `make site`: Sphinx reads the documents where they lie in the repository."""

from html import escape
import importlib.util
from pathlib import Path
import shutil

from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).parent.parent
FOLDERS = ["vdm", "configs", "examples", "experiments", "tests"]
CODE = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
CODE |= {parent for path in CODE for parent in path.parents if parent.is_relative_to(ROOT) and parent != ROOT}

project = html_title = "vdm"
extensions = ["myst_nb"]
root_doc = "README"
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
include_patterns = ["*.md", "docs/**.md", "docs/**.ipynb", "weights/**.md"]
exclude_patterns = [".*", "build", "runs", "site"]

myst_enable_extensions = ["dollarmath"]  # $x$ in a line, as on GitHub; ```math stands by itself
myst_fence_as_directive = ["math"]
myst_heading_anchors = 6  # anchors as GitHub makes them
nb_execution_mode = "off"  # the notebook is shown with the outputs that are committed
smartquotes = False
highlight_language = "none"  # of a block that names no language

html_theme = "furo"
pygments_dark_style = "github-dark"
html_css_files = ["site.css"]
html_copy_source = html_show_copyright = html_use_index = False
# MathJax, from a package: the site renders its formulas without a network.
mathjax = Path(importlib.util.find_spec("mathjax").submodule_search_locations[0])
mathjax_path = "tex-svg.js"
html_static_path = ["site.css", str(mathjax / "static/mathjax/es5" / mathjax_path)]

CONTENTS = """
```{toctree}
:hidden:
:caption: Guide
docs/guide/first_run
docs/guide/components
docs/guide/studies
docs/guide/data
docs/guide/trust
docs/guide/many_devices
```
```{toctree}
:hidden:
:caption: More
Notebook <docs/quickstart>
Derivation <docs/derivation>
Reference <docs/reference>
Contributing <CONTRIBUTING>
```
```{toctree}
:hidden:
:caption: Results
:glob:
Overview <docs/results/README>
docs/results/*
```
```{toctree}
:hidden:
:caption: Weights
:glob:
weights/*/README
```
"""


def add_contents(app, docname, source):
    if docname == root_doc:
        source[0] += CONTENTS


def link_to_code(app, doctree):
    """A link to a folder or to a file of Python leads to a page, and not to a download."""
    for kind in (addnodes.download_reference, addnodes.pending_xref):
        for node in list(doctree.findall(kind)):
            path = (ROOT / node["refdoc"]).parent.joinpath(node["reftarget"]).resolve()
            if path in CODE or (path / "README.md").exists():
                uri = app.builder.get_relative_uri(node["refdoc"], page_of(path))
                node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def code_pages(app):
    """Those pages: a file is highlighted, and a folder lists what is in it."""
    highlight = app.builder.highlighter.highlight_block
    for path in sorted(CODE):
        name = escape(str(path.relative_to(ROOT)))
        if path.is_dir():
            inside = sorted(p for p in CODE if p.parent == path)
            links = (f'<li><a href="{page_of(p, path)}.html"><code>{p.name}</code></a></li>' for p in inside)
            body = f"<ul>{''.join(links)}</ul>"
        else:
            body = highlight(path.read_text(), "python")
        yield page_of(path), {"title": name, "body": f"<h1><code>{name}</code></h1>{body}"}, "page.html"


def page_of(path, start=ROOT):
    inside = "README" if (path / "README.md").exists() else "index"
    return (path / inside if path.is_dir() else path).relative_to(start).as_posix()


def copy_home(app, exception):
    if not exception:
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("doctree-read", link_to_code, priority=100)  # before downloads are collected
    app.connect("html-collect-pages", code_pages)
    app.connect("build-finished", copy_home)
