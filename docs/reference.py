"""Writes docs/reference.md from the code: flags, fields, components, Python interface, files, exit codes.

  python docs/reference.py           # make reference
  python docs/reference.py --check   # exits with 1 where the page is not what the code says

What the page says stands in the code alone: in flags' help, docstrings with their "Attributes:", the comments
of vdm/config.py, and the FILES and EXIT_CODES beside what they describe.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import inspect
import itertools
import pathlib
import pkgutil
import re
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package beside this file, whichever is installed

from absl import flags  # noqa: E402

from vdm import config as config_lib, main, workdir  # noqa: E402
from vdm.component import REGISTRIES  # noqa: E402
from vdm.runtime import stop  # noqa: E402
from vdm.sweep import __main__ as sweep, saved, study  # noqa: E402

PAGE = ROOT / "docs" / "reference.md"

# What a script imports: the functions of `vdm` first.
INTERFACE = (
    "vdm.interface:load", "vdm.interface:config_of", "vdm.interface:train_model", "vdm.interface:Trained",
    "vdm.likelihood:judge", "vdm.likelihood:Report", "vdm.likelihood:on_host",
    "vdm.likelihood:table_of_betas", "vdm.likelihood:table_of_alphas", "vdm.likelihood:cascade",
)  # fmt: skip

HEAD = """# Reference

<!-- Written by docs/reference.py from the code. Change the code, and run `make reference`. -->

Contents: [`vdm.main`](#vdmmain) · [modes](#modes) · [`vdm.sweep`](#vdmsweep) ·
[fields of every run](#fields-of-every-run) · [components](#components) ·
[Python interface](#python-interface) · [files of a workdir](#files-of-a-workdir) ·
[files of a study](#files-of-a-study) · [exit codes](#exit-codes)
"""


def page() -> str:
    """The text of the page.

    Raises:
      ValueError: the code does not say what a field is.
    """
    parts = [
        HEAD,
        "## `vdm.main`",
        prose(main),
        table(("flag", "default", "meaning"), flag_rows(main.FLAGS, "vdm.main")),
        "### Modes",
        table(("`--mode`", "takes", "what it does"), mode_rows()),
        "## `vdm.sweep`",
        prose(sweep),
        table(("flag", "default", "meaning"), flag_rows(study.FLAGS, "vdm.sweep.study")),
        "## Fields of every run",
        "The sections `data`, `model`, `objective` and `optimizer` have the fields of their "
        "[components](#components).",
        table(("field", "type", "default", "meaning"), plain_field_rows()),
        "## Components",
        "In a section, the first name of a kind is the default. In place of a name, the import path "
        "`module:Class` of a [component of your own](guide/components.md) can be given.",
        table(("section or field", "kind", "is there"), kind_rows()),
        *(part for kind in REGISTRIES for part in of_kind(kind)),
        "## Python interface",
        *(part for path in INTERFACE for part in of_interface(path)),
        "## Files of a workdir",
        table(("file", "what it is"), file_rows(workdir.FILES)),
        "## Files of a study",
        table(("file", "what it is"), file_rows(saved.FILES)),
        "## Exit codes",
        table(("code", "meaning"), ((str(code), text) for code, text in stop.EXIT_CODES.items())),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


# ---- flags, modes, files -------------------------------------------------------------


def flag_rows(values: flags.FlagValues, module: str) -> Iterator[Sequence[str]]:
    """A row for each flag that a module defines, in the order of its code."""
    for flag in values.flags_by_module_dict()[module]:
        default = "" if flag.default in (None, []) else code(str(flag.default))
        # absl adds what a list is, and begins with the values of an enum.
        text = " ".join(flag.help.split()).removesuffix(".; repeat this option to specify a list of values")
        text = re.sub(r"^<(.*?)>: ", lambda values: f"{values[1].replace('|', ', ')}: ", text)
        yield code(f"--{flag.name}"), default, text.removesuffix(".")


def mode_rows() -> Iterator[Sequence[str]]:
    """A row for each mode of vdm.main: what it takes, and the summary of its function."""
    for mode, path in main.MODES.items():
        takes = (f"`--{flag}`" for flag, modes in main.FILES.items() if mode in modes)
        yield code(mode), ", ".join(takes), summary(pkgutil.resolve_name(path))


def file_rows(files: Mapping[str, str]) -> Iterator[Sequence[str]]:
    """A row for each entry of FILES."""
    for names, text in files.items():
        yield ", ".join(map(code, names.split(", "))), text


# ---- fields of every run -------------------------------------------------------------


def plain_field_rows() -> Iterator[Sequence[str]]:
    """A row for each field of config.default() and for each section that has a comment, with the comment."""
    for line in inspect.getsource(config_lib.default).splitlines():
        match = re.fullmatch(r"    c\.([\w.]+) = [^#]+(?:# (.*))?", line)
        if not match:
            continue
        value: Any = config_lib.default()
        for part in match[1].split("."):
            value = value[part]
        name, text = f"config.{match[1]}", match[2] or ""
        if not isinstance(value, config_lib.ConfigDict):
            yield code(name), type(value).__name__, code(repr(value)), said(text, name)
        elif text:
            yield code(name), "section", "", text


# ---- components ----------------------------------------------------------------------


def kind_rows() -> Iterator[Sequence[str]]:
    """A row for each section that describes a component, and for each field that lists some."""
    for path, kind, of in config_lib.places():
        yield (
            code(f"config.{path}"),
            link_to(kind),
            f"for {', '.join(map(code, of))}" if of else "in every run",
        )
    for path, kind in config_lib.LISTS.items():
        yield code(f"config.{path}"), link_to(kind), "in every run; names are joined by commas"


def of_kind(kind: str) -> Iterator[str]:
    """The heading, base class, components and fields of a kind."""
    base, classes = pkgutil.resolve_name(REGISTRIES[kind].base), REGISTRIES[kind].classes()
    yield f"### {kind.capitalize()}"
    for other in itertools.takewhile(lambda other: other != kind, REGISTRIES):
        if classes.items() <= REGISTRIES[other].classes().items():
            yield f"Of the kind {link_to(other)} these: {', '.join(map(named, classes))}."
            return
    yield f"Base class {path_of(base)}{'' if base in classes.values() else f': {summary(base)}'}."
    sections = any(cls.sections for cls in classes.values())
    rows = []
    for name, cls in classes.items():
        below = (f"[`{part}`](#{slug(of)})" for part, of in cls.sections.items())
        rows.append([named(name), summary(cls), *([", ".join(below)] if sections else []), path_of(cls)])
    yield table(("name", "what it is", *(["sections"] if sections else []), "class"), rows)
    fields = list(field_rows(kind))
    if fields:
        yield table(("field", "of", "default", "meaning"), fields)


def field_rows(kind: str) -> Iterator[Sequence[str]]:
    """A row for each field, default and meaning, with the components of the kind that have it."""
    classes = REGISTRIES[kind].classes()
    # A component may have the fields of another that it is built of, which says what they are.
    elsewhere = {name: text for cls in reversed(classes.values()) for name, text in attributes(cls).items()}
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, cls in classes.items():
        for field, default in cls.config_fields().items():
            own = (attributes(of).get(field) for of in cls.__mro__)
            text = next(filter(None, own), "") or elsewhere.get(field, "")
            key = field, code(repr(default)), said(text, f"{cls.__name__}.{field}")
            found.setdefault(key, []).append(name)
    for (field, default, text), names in found.items():
        of = "all" if len(names) == len(classes) else ", ".join(map(named, names))
        yield code(field), of, default, text


def named(name: str) -> str:
    """The name of a component, which is "any other name" where it stands for more than one."""
    return name if " " in name else code(name)


def attributes(cls: type) -> dict[str, str]:
    """{name: what it is} of the section "Attributes:" of a class's own docstring."""
    return entries(cls, "Attributes")


def entries(of: Any, section: str) -> dict[str, str]:
    """{name: what it is} of a section of the own docstring of a class or a function."""
    doc = inspect.cleandoc(vars(of).get("__doc__") or "" if isinstance(of, type) else of.__doc__ or "")
    found = re.search(rf"^{section}:\n((?:  .*\n?|\n)*)", doc, re.MULTILINE)
    lines = re.findall(r"^  (\S.*?): (.*(?:\n    .*)*)", found[1], re.MULTILINE) if found else []
    return {
        name: " ".join(text.split()).removesuffix(".") for names, text in lines for name in names.split(", ")
    }


def summary(of: Any) -> str:
    """The first paragraph of a docstring, as one line."""
    doc = inspect.cleandoc(vars(of).get("__doc__") or "" if isinstance(of, type) else of.__doc__ or "")
    return said(" ".join(doc.partition("\n\n")[0].split()).removesuffix("."), of.__name__)


def said(text: str, of: str) -> str:
    """The text; raises ValueError where it is empty."""
    if not text:
        raise ValueError(f"the code does not say what {of} is: describe it where it is defined.")
    return text


# ---- Python interface ------------------------------------------------------------------


def of_interface(path: str) -> Iterator[str]:
    """The heading, summary and arguments of a function; of a class, its attributes and methods."""
    of = pkgutil.resolve_name(path)
    yield f"### `{of.__name__}`"
    yield f"{path_of(of)}: {summary(of)}."
    if isinstance(of, type):
        yield table(("attribute", "meaning"), ((code(name), text) for name, text in attributes(of).items()))
        methods = [each for name, each in vars(of).items() if inspect.isfunction(each) and name[0] != "_"]
        yield table(("method", "what it does"), ((code(call(each)), summary(each)) for each in methods))
    elif entries(of, "Args"):
        defaults = {name: each.default for name, each in inspect.signature(of).parameters.items()}
        rows = []
        for name, text in entries(of, "Args").items():
            default = defaults[name.lstrip("*")]
            rows.append((code(name), "" if default is inspect.Parameter.empty else code(repr(default)), text))
        yield table(("argument", "default", "meaning"), rows)


def call(method: Any) -> str:
    """A method with the names of its arguments."""
    return f"{method.__name__}({', '.join(list(inspect.signature(method).parameters)[1:])})"


# ---- Markdown ------------------------------------------------------------------------


def prose(module: Any) -> str:
    """A module's docstring without its first line; what is indented there is code."""
    paragraphs = inspect.cleandoc(module.__doc__).split("\n\n")[1:]
    return "\n\n".join(
        "\n".join(f"  {line}" for line in text.splitlines()) if text.startswith("  ") else text
        for text in paragraphs
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    line = lambda cells: f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def code(text: str) -> str:
    return f"`{text}`"


def path_of(cls: type) -> str:
    """The import path of a class, linked to its file."""
    return f"[`{cls.__module__}:{cls.__name__}`](../{cls.__module__.replace('.', '/')}.py)"


def link_to(kind: str) -> str:
    return f"[{kind}](#{slug(kind)})"


def slug(kind: str) -> str:
    return kind.replace(" ", "-")


def run(args: Sequence[str]) -> int:
    """Writes the page, or with --check compares it; returns the exit code."""
    if args not in ([], ["--check"]):
        print(__doc__)
        return stop.BAD_INPUT
    try:
        text = page()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return stop.FAILED
    if not args:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print("error: docs/reference.md is not what the code says; run `make reference`.", file=sys.stderr)
        return stop.FAILED
    return stop.DONE


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
